"""``edgeloop check``: what would become of a workload, said before anything is trained.

It needs no control plane: the workload's own code runs here.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud.cli.output import Output, make_table, show_values, size, stderr, stdout
from cloud.documents import load_documents
from cloud.resources import FleetDocument, WorkloadDocument
from edgeloop.errors import ConfigError

if TYPE_CHECKING:  # it brings torch, which no other command needs
    from cloud.compression.preview import GroupPreview, Preview, StudentPreview


def check(
    files: Annotated[
        list[Path],
        typer.Option("--file", "-f", help="YAML file with a Workload; may be given more than once"),
    ],
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")] = Output.TABLE,
) -> None:
    """Load a workload's data, trace, narrow, export and quantise its untrained teacher; change nothing.

    Shows which channels go together and which layers are kept whole. Fleets given beside it are checked too.
    """
    documents = [document for path in files for document in load_documents(path)]
    workloads = [document for document in documents if isinstance(document, WorkloadDocument)]
    if not workloads:
        raise ConfigError(f"{files[0]}: holds no document of kind Workload to check", code="document-kind")
    from cloud.compression.budget import check_artifact_bytes
    from cloud.compression.preview import preview

    stderr.print("checking; this loads the data and runs the workload's code", style="dim")
    previews = [preview(workload.to_domain()) for workload in workloads]
    for found in previews:
        for fleet in documents:
            if isinstance(fleet, FleetDocument) and fleet.workload == found.workload:
                for profile in fleet.to_domain():
                    check_artifact_bytes(profile.constraints, found.least_parameters, profile.name)
    if output is not Output.TABLE:
        show_values([_plain(found) for found in previews], output)
        return
    for found in previews:
        _show(found)


def _plain(found: Preview) -> dict[str, object]:
    """Lists instead of tuples, which YAML would mark."""
    return {
        **asdict(found),
        "input_shape": list(found.input_shape),
        "num_samples": list(found.num_samples),
        "width_ratios": list(found.width_ratios),
        "groups": _plain_groups(found.groups),
        "frozen": [asdict(frozen) for frozen in found.frozen],
        "rewritten": list(found.rewritten),
        "branches": list(found.branches),
        "shortcuts": {**asdict(found.shortcuts), "beside": list(found.shortcuts.beside)},
        "sizes": [asdict(one) for one in found.sizes],
        "students": [
            {
                **asdict(one),
                "groups": _plain_groups(one.groups),
                "frozen": [asdict(frozen) for frozen in one.frozen],
            }
            for one in found.students
        ],
    }


def _plain_groups(groups: tuple[GroupPreview, ...]) -> list[dict[str, object]]:
    return [{**asdict(group), "layers": list(group.layers), "kept": list(group.kept)} for group in groups]


def _show(found: Preview) -> None:
    splits = ", ".join(
        f"{count} {name}"
        for name, count in zip(("train", "validation", "test"), found.num_samples, strict=True)
    )
    stdout.print(
        f"{found.workload}: inputs {list(found.input_shape)}, {found.num_outputs} outputs, judged by "
        f"{found.metric}; samples: {splits}",
        soft_wrap=True,
    )
    stdout.print()
    stdout.print(
        make_table(
            ["NETWORK", "PARAMETERS", "MMAC", "FP32", "INT8"],
            [
                [
                    name,
                    str(one.cost.num_parameters),
                    f"{one.cost.macs / 1e6:.2f}",
                    size(one.fp32_bytes),
                    size(one.int8_bytes) if one.int8_bytes else "no",
                ]
                for name, one in (
                    ("teacher", found.sizes[0]),
                    (f"student at {found.sizes[1].width_ratio:g}", found.sizes[1]),
                    *((f"network {own.name}", own.size) for own in found.students),
                )
            ],
        )
    )
    stdout.print()
    widths = [f"AT {width:g}" for width in found.width_ratios]
    stdout.print(
        make_table(
            ["GOES TOGETHER", "UNITS", "CHANNELS EACH", *widths],
            [
                [_layers(group.layers), str(group.num_units), str(group.unit_size), *map(str, group.kept)]
                for group in found.groups
            ],
        )
    )
    if found.frozen:
        stdout.print()
        rows = [[frozen.operation, frozen.reason] for frozen in found.frozen]
        stdout.print(make_table(["KEPT WHOLE AT", "WHY"], rows))
    if found.branches:
        names = ", ".join(found.branches)
        stdout.print(f"\ndepth_ratio may leave out all but one of: {names}", soft_wrap=True, markup=False)
    if found.shortcuts.beside:
        names = ", ".join(found.shortcuts.beside)
        told = (
            f"the search keeps them: {found.shortcuts.needed}"
            if found.shortcuts.needed
            else ("the search tries that where latency binds")
        )
        stdout.print(
            f"shortcuts=false leaves out those beside: {names} ({told})", soft_wrap=True, markup=False
        )
    if found.rewritten:
        stdout.print(f"\nwritten out, computing the same: {', '.join(found.rewritten)}", soft_wrap=True)
    for one in found.sizes[:1]:
        if one.int8_problem:
            stdout.print(f"\nno int8: {one.int8_problem}", soft_wrap=True, markup=False)
    for own in found.students:
        stdout.print(f"\nnetwork {own.name}: {'; '.join(_of_own(own))}", soft_wrap=True, markup=False)


def _of_own(own: StudentPreview) -> list[str]:
    """What is to be known of one of the workload's own networks."""
    told = [f"from {own.size.cost.num_parameters} parameters down to {own.least_parameters}"]
    if own.least_parameters == own.size.cost.num_parameters:
        told = ["it cannot be narrower, so that its width_ratio is 1"]
    told += [f"kept whole at {frozen.operation} ({frozen.reason})" for frozen in own.frozen]
    told += [f"no int8: {own.size.int8_problem}"] if own.size.int8_problem else []
    told.append(
        f"hint_weight would compare {own.hint_layer}"
        if own.hint_layer
        else "no hint_weight: no inner layer has a name and shape in common with the teacher's"
    )
    return told


def _layers(names: tuple[str, ...]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"
