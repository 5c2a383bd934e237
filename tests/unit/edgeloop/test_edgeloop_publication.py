from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeloop.errors import TransientError
from edgeloop.mqtt import MqttSession
from edgeloop.publication import Acknowledgements, Publication

LOST = TransientError("gone", code="mqtt-lost")


def publication() -> Publication:
    return Publication("t", threading.Thread())


def outcome(of: Publication) -> str:
    if not of.done:
        return "waiting"
    return "lost" if of.future.exception() else "acknowledged"


@given(st.permutations(["expect", "acknowledge", "end"]))
def test_every_order_of_events_ends_it_exactly_once(order: list[str]) -> None:
    acknowledgements, one = Acknowledgements(), publication()
    for event in order:
        if event == "expect":
            acknowledgements.expect(1, one)
        elif event == "acknowledge":
            acknowledgements.acknowledged(1)
        else:
            acknowledgements.end(LOST)
    assert one.done
    came_in_time = order.index("acknowledge") < order.index("end") or order.index(
        "acknowledge"
    ) < order.index("expect")
    assert outcome(one) == ("acknowledged" if came_in_time else "lost")
    assert len(acknowledgements) == 0


def test_acknowledgement_reaches_only_its_own_message() -> None:
    acknowledgements = Acknowledgements()
    first, second = publication(), publication()
    acknowledgements.expect(1, first)
    acknowledgements.expect(2, second)
    acknowledgements.acknowledged(2)
    assert (outcome(first), outcome(second)) == ("waiting", "acknowledged")
    acknowledgements.end(LOST)
    assert (outcome(first), outcome(second)) == ("lost", "acknowledged")


def test_waiting_reports_loss_and_lapse() -> None:
    one = publication()
    with pytest.raises(TransientError) as caught:
        one.wait(0.01)
    assert caught.value.code == "mqtt-timeout"
    one.end(LOST)
    with pytest.raises(TransientError) as caught:
        one.wait(0.01)
    assert caught.value.code == "mqtt-lost"


@pytest.mark.parametrize("topic", ["", "a/#/b", "a/b#", "a/+b", "a\0b", "x" * 65_536])
def test_impossible_filter_is_refused_before_it_could_break_a_reconnect(topic: str) -> None:
    session = MqttSession("127.0.0.1", 1, "agent")
    with pytest.raises(ValueError, match="filter"):
        session.subscribe(topic, lambda topic, payload: None)
    session.close()
