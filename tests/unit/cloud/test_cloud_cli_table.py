"""Lists stay readable, and lines whole, at any width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.cli import columns
from cloud.cli.table import MAX_NOTE_CHARS, Column, lay_out
from edgeloop.v1 import control_service_pb2 as pb

COLUMNS = [
    Column("DIGEST", lambda item: item["digest"]),
    Column("MMAC", lambda item: item["mmac"], rank=2),
    Column("SIZE", lambda item: item["size"], rank=1),
    Column("MESSAGE", lambda item: item["message"], note=True),
]
ITEMS = [
    {"digest": "0123456789ab", "mmac": "1.50", "size": "30 kB", "message": "was slower than its parent"},
    {"digest": "abcdef012345", "mmac": "10.25", "size": "131 kB", "message": ""},
]


def test_with_room_everything_stands_in_one_line_and_numbers_stand_to_the_right() -> None:
    assert lay_out(COLUMNS, ITEMS, 80) == [
        "DIGEST         MMAC    SIZE  MESSAGE",
        "0123456789ab   1.50   30 kB  was slower than its parent",
        "abcdef012345  10.25  131 kB",
    ]


def test_without_room_notes_go_below_their_row_then_the_least_important_column_goes() -> None:
    assert lay_out(COLUMNS, ITEMS, 40) == [
        "DIGEST         MMAC    SIZE",
        "0123456789ab   1.50   30 kB",
        "    was slower than its parent",
        "abcdef012345  10.25  131 kB",
    ]
    assert lay_out(COLUMNS, ITEMS, 24)[0] == "DIGEST          SIZE"


def test_a_message_of_many_lines_becomes_one_that_ends_somewhere() -> None:
    item = {**ITEMS[0], "message": "Traceback:\n  File x\n" * 200}
    lines = lay_out(COLUMNS, [item], None)
    assert len(lines) == 2
    assert "Traceback: File x" in lines[1]
    assert len(lines[1]) < MAX_NOTE_CHARS + 50
    assert lines[1].endswith("…")


@given(width=st.none() | st.integers(1, 200), digest=st.text("0123456789abcdef", min_size=12, max_size=12))
def test_a_cell_that_is_always_shown_is_never_broken(width: int | None, digest: str) -> None:
    assert any(digest in line for line in lay_out(COLUMNS, [{**ITEMS[0], "digest": digest}], width))


@pytest.mark.parametrize(
    ("spec_json", "digest", "together", "shown"),
    [
        ('{"training":{"num_epochs":3}}', "ab" * 32, 0.0, "99.00 %"),
        ('{"training":{"num_epochs":3,"num_teachers":3}}', "ab" * 32, 0.0, "99.00 % (best of 3)"),
        (
            '{"training":{"num_epochs":3,"num_teachers":3}}',
            "ab" * 32,
            0.995,
            "99.50 % (mean of 3; the best alone 99.00 %)",
        ),
        ('{"training":{"num_epochs":3,"num_teachers":3}}', "", 0.0, "-"),
    ],
)
def test_the_accuracy_of_an_ensemble_says_whose_it_is(
    spec_json: str, digest: str, together: float, shown: str
) -> None:
    teacher = pb.TeacherInfo(digest=digest, accuracy=0.99 if digest else 0.0, ensemble_accuracy=together)
    workload = pb.WorkloadInfo(name="digits", spec_json=spec_json, teacher=teacher)
    (column,) = (column for column in columns.WORKLOADS if column.header == "ACCURACY")
    assert column.cell(workload) == shown
