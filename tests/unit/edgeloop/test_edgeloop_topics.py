from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeloop import topics
from edgeloop.errors import RejectedError

device_ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(device_ids)
def test_device_topics_give_the_device_back(device_id: str) -> None:
    for topic in (topics.deployment(device_id), topics.requests(device_id), topics.presence(device_id)):
        assert topics.device_of(topic) == device_id
        assert topic.startswith("edgeloop/v1/")


@given(digests, st.integers(0, topics.MAX_BLOCK_INDEX))
def test_content_topics_give_digest_and_index_back(digest: str, n: int) -> None:
    assert topics.block_of(topics.block(digest, n)) == (digest, n)
    assert topics.manifest_of(topics.manifest(digest)) == digest


@pytest.mark.parametrize(
    "device_id",
    ["", "a" * 65, "../etc", ".hidden", "-rf", "a/b", "a+b", "#", "a b", "a\n", "a\0", "gerät", "٣", None, 7],
)
def test_names_that_could_leave_their_place_are_refused(device_id: object) -> None:
    with pytest.raises(RejectedError) as caught:
        topics.check_device_id(device_id)  # type: ignore[arg-type]  # what a parser may hand over
    assert caught.value.code == "device-id"
    assert "letters" in caught.value.message


@pytest.mark.parametrize("digest", ["", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "g" * 64, "+"])
def test_what_is_no_digest_reaches_no_topic(digest: str) -> None:
    for make in (topics.manifest, lambda value: topics.block(value, 0)):
        with pytest.raises(RejectedError) as caught:
            make(digest)
        assert caught.value.code == "digest"


@pytest.mark.parametrize("n", [-1, topics.MAX_BLOCK_INDEX + 1])
def test_block_index_out_of_range_is_refused(n: int) -> None:
    with pytest.raises(RejectedError):
        topics.block("a" * 64, n)


@given(st.text() | st.text("edgloop/v1dicsarty+#.0a", max_size=60).map(lambda tail: "edgeloop/v1/" + tail))
def test_any_topic_is_understood_or_refused(topic: str) -> None:
    for read in (topics.device_of, topics.block_of, topics.manifest_of):
        try:
            value = read(topic)
        except RejectedError:
            continue
        assert value


def test_foreign_topics_are_refused() -> None:
    for topic in (topics.ALL_REQUESTS, "edgeloop/v2/devices/a/requests", topics.SENTINEL):
        with pytest.raises(RejectedError):
            topics.device_of(topic)
    with pytest.raises(RejectedError):
        topics.block_of(f"edgeloop/v1/artifacts/{'a' * 64}/blocks/007")
