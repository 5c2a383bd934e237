from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgeloop.subscriptions import MAX_TOPICS_PER_PACKET, Changes, Subscriptions


def hear(_topic: str, _payload: bytes) -> None:
    return None


def test_many_changes_are_told_in_packets_of_bounded_size_and_once() -> None:
    subscriptions = Subscriptions()
    topics = [f"t/{n}" for n in range(MAX_TOPICS_PER_PACKET * 2 + 1)]
    for topic in topics:
        subscriptions.add(topic, hear, 1)
    changes = subscriptions.take_changes()
    assert changes is not None
    assert [len(piece) for piece in changes.wanted] == [MAX_TOPICS_PER_PACKET] * 2 + [1]
    assert list(itertools.chain(*changes.wanted)) == [(topic, 1) for topic in topics]
    assert changes.gone == []
    assert subscriptions.take_changes() is None


def test_a_new_connection_is_told_what_is_subscribed_and_not_what_was_left() -> None:
    subscriptions = Subscriptions()
    subscriptions.add("kept", hear, 0)
    subscriptions.add("left", hear, 1)
    subscriptions.take_changes()
    assert subscriptions.remove("left")
    assert not subscriptions.remove("left")
    subscriptions.begin_again()
    assert subscriptions.take_changes() == Changes([], [[("kept", 0)]])


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "remove", "tell", "connect"])), max_size=20
    )
)
def test_the_broker_always_ends_up_with_what_is_subscribed(steps: list[tuple[str, str]]) -> None:
    subscriptions, subscribed, at_broker = Subscriptions(), set[str](), set[str]()

    def tell() -> None:
        changes = subscriptions.take_changes()
        if changes is not None:
            at_broker.difference_update(itertools.chain(*changes.gone))
            at_broker.update(topic for topic, _ in itertools.chain(*changes.wanted))

    for topic, step in steps:
        if step == "add":
            subscriptions.add(topic, hear, 1)
            subscribed.add(topic)
        elif step == "remove":
            assert subscriptions.remove(topic) == (topic in subscribed)
            subscribed.discard(topic)
        else:
            if step == "connect":
                at_broker.clear()
                subscriptions.begin_again()
            tell()
            assert at_broker == subscribed
    tell()
    assert at_broker == subscribed
