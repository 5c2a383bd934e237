"""What operators ask about devices: profile binding, labels, deletion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cloud_store_values import DEVICE, PROFILE, WORKLOAD
from fresh_database import fresh_store

from cloud.domain.profiles import MatchRule
from cloud.services.identities import Identities
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb

NOW_S = 1_800_000_000.0
SMALL = replace(PROFILE, name="small", match=MatchRule(labels={"class": "small"}))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = fresh_store(tmp_path / "edgeloop.db")
    store.apply_workload(WORKLOAD, NOW_S)
    store.apply_profile(SMALL, NOW_S)
    yield store
    store.close()


@pytest.fixture
def identities(store: Store) -> Identities:
    return Identities(store, enrols=True, now_s=lambda: NOW_S, poke=lambda: None)


def test_a_profile_binds_the_labels_that_it_matches_on(identities: Identities, store: Store) -> None:
    request = pb.EnrolDeviceRequest(device_id="gw-1", profile="small", labels={"room": "7"})
    answer = identities.enrol(request)
    assert answer.token.startswith("ele_")
    assert answer.identity.state == "pending"
    assert store.bound_labels("gw-1") == {"class": "small", "room": "7"}
    wrong = pb.EnrolDeviceRequest(device_id="gw-1", profile="small", labels={"class": "large"})
    with pytest.raises(RejectedError, match="profile small wants 'small'"):
        identities.enrol(wrong)
    with pytest.raises(RejectedError, match="known are small"):
        identities.enrol(pb.EnrolDeviceRequest(device_id="gw-1", profile="smal"))


def test_what_was_never_enrolled_is_said_to_be_so(identities: Identities, store: Store) -> None:
    store.register_device(replace(DEVICE, device_id="gw-1"), None, "nothing matches", NOW_S)
    for change in (
        lambda: identities.label(pb.LabelDeviceRequest(device_id="gw-1", set={"class": "small"})),
        lambda: identities.revoke(pb.RevokeDeviceRequest(device_id="gw-1")),
    ):
        with pytest.raises(RejectedError, match="'edgeloop device enroll gw-1' gives it an identity"):
            change()
    with pytest.raises(RejectedError, match="not known"):
        identities.revoke(pb.RevokeDeviceRequest(device_id="gw-2"))


def test_new_labels_move_a_registered_device(identities: Identities, store: Store) -> None:
    identities.enrol(pb.EnrolDeviceRequest(device_id="gw-1"))
    device = replace(DEVICE, device_id="gw-1", labels={"room": "7"})
    store.register_device(device, None, "nothing matches", NOW_S)
    answer = identities.label(pb.LabelDeviceRequest(device_id="gw-1", set={"class": "small"}))
    assert answer.profile == "small"
    found = store.device("gw-1")
    assert found is not None
    assert (found.profile, dict(found.labels)) == ("small", {"class": "small", "room": "7"})
    answer = identities.label(pb.LabelDeviceRequest(device_id="gw-1", remove=["class"]))
    assert answer.profile == ""
    assert "class" in answer.message
    with pytest.raises(RejectedError, match="set on the device"):
        identities.label(pb.LabelDeviceRequest(device_id="gw-1", remove=["room"]))


def test_a_deleted_device_is_gone_and_an_unknown_one_is_named(identities: Identities, store: Store) -> None:
    identities.enrol(pb.EnrolDeviceRequest(device_id="gw-1"))
    store.register_device(replace(DEVICE, device_id="gw-1"), None, "", NOW_S)
    identities.delete(pb.DeleteDeviceRequest(device_id="gw-1"))
    assert store.device("gw-1") is None
    assert identities.identities(pb.ListIdentitiesRequest()).identities == []
    with pytest.raises(RejectedError, match="'gw-1' is not known"):
        identities.delete(pb.DeleteDeviceRequest(device_id="gw-1"))


def test_without_keys_nobody_is_enrolled(store: Store) -> None:
    identities = Identities(store, enrols=False, now_s=lambda: NOW_S, poke=lambda: None)
    with pytest.raises(ConfigError, match="keys init"):
        identities.enrol(pb.EnrolDeviceRequest(device_id="gw-1"))


@pytest.mark.parametrize("name", ["admin", "", "a b", "x" * 65])
def test_operators_have_names_that_the_log_can_tell_apart(identities: Identities, name: str) -> None:
    with pytest.raises(RejectedError):
        identities.create_operator(pb.CreateOperatorRequest(name=name, role="viewer"))
    identities.create_operator(pb.CreateOperatorRequest(name="ann", role="viewer"))
    with pytest.raises(RejectedError, match="exists"):
        identities.create_operator(pb.CreateOperatorRequest(name="ann", role="operator"))
