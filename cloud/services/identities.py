"""What operators ask about identities: enrol, revoke, label, delete; other operators; the audit log."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import replace

from cloud.domain.devices import matched
from cloud.domain.identities import AuditEntry, DeviceIdentity, Operator, Role
from cloud.enrolment import (
    DEFAULT_TOKEN_TTL_S,
    MAX_TOKEN_TTL_S,
    check_device_name,
    check_labels,
    new_token,
    secret_hash,
)
from cloud.services.convert import timestamp
from cloud.services.queries import named
from cloud.store import Store
from edgeloop.errors import ConfigError, RejectedError
from edgeloop.v1 import control_service_pb2 as pb

_OPERATOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
_MAX_OPERATOR_TTL_S = 10 * 365 * 86_400
_DEFAULT_NUM_AUDIT, _MAX_NUM_AUDIT = 100, 10_000


class Identities:
    """Safe to call from any thread. ``enrols`` is whether this control plane has keys to enrol with."""

    def __init__(
        self, store: Store, *, enrols: bool, now_s: Callable[[], float], poke: Callable[[], None]
    ) -> None:
        self._store = store
        self._enrols = enrols
        self._now_s = now_s
        self._poke = poke

    def identities(self, _request: pb.ListIdentitiesRequest) -> pb.ListIdentitiesResponse:
        now_s = self._now_s()
        return pb.ListIdentitiesResponse(
            identities=[identity_info(item, now_s) for item in self._store.identities()]
        )

    def enrol(self, request: pb.EnrolDeviceRequest) -> pb.EnrolDeviceResponse:
        """A token, whose labels lead to the profile if one is named."""
        if not self._enrols:
            raise ConfigError(
                "this control plane has no keys to enrol devices with: 'edgeloop keys init DIR' makes them, "
                "and 'edgeloop serve --tls-dir DIR' uses them",
                code="no-keys",
            )
        device_id = check_device_name(request.device_id)
        ttl_s = request.ttl_s or DEFAULT_TOKEN_TTL_S
        if not 1 <= ttl_s <= MAX_TOKEN_TTL_S:
            raise RejectedError(
                f"ttl_s is {ttl_s}: a token counts for at most {MAX_TOKEN_TTL_S // 86_400} days", code="ttl"
            )
        labels = check_labels(request.labels)
        token, now_s = new_token(), self._now_s()
        with self._store.transaction():
            if request.profile:
                known = (profile.name for profile in self._store.profiles())
                profile = named(self._store.profile(request.profile), "profile", request.profile, known)
                labels = {**profile.match.labels, **labels}
                wrong = [key for key, value in profile.match.labels.items() if labels[key] != value]
                if wrong:
                    raise RejectedError(
                        f"label {wrong[0]} is {labels[wrong[0]]!r}, but profile {profile.name} wants "
                        f"{profile.match.labels[wrong[0]]!r}: leave one of the two out",
                        code="labels",
                    )
            # A revocation is lifted here: from now on the token, and nothing the device had, lets it in.
            self._store.save_identity(device_id, labels, now_s)
            self._store.add_token(secret_hash(token), device_id, now_s=now_s, expire_time_s=now_s + ttl_s)
        return pb.EnrolDeviceResponse(token=token, identity=self._info(device_id))

    def revoke(self, request: pb.RevokeDeviceRequest) -> pb.RevokeDeviceResponse:
        self._identity(request.device_id)
        self._store.revoke_identity(request.device_id, self._now_s())
        return pb.RevokeDeviceResponse(identity=self._info(request.device_id))

    def label(self, request: pb.LabelDeviceRequest) -> pb.LabelDeviceResponse:
        """Change the labels that operators bound; a registered device is matched to a profile again."""
        with self._store.transaction():
            identity = self._identity(request.device_id)
            labels = dict(identity.labels)
            for key in request.remove:
                if key not in labels:
                    raise RejectedError(
                        f"label {key!r} is not bound to {request.device_id}: what a device says of itself is "
                        "set on the device",
                        code="labels",
                    )
                del labels[key]
            labels = check_labels({**labels, **request.set})
            self._store.set_identity_labels(request.device_id, labels)
            device = self._store.device(request.device_id)
            name, reason = "", "the device never registered"
            if device is not None:
                kept = {key: value for key, value in device.labels.items() if key not in request.remove}
                device = matched(replace(device, labels={**kept, **labels}), self._store.profiles())
                name, reason = device.profile, device.message
                self._store.set_device_labels(request.device_id, device.labels)
                self._store.set_device_match(device)
        self._poke()
        return pb.LabelDeviceResponse(identity=self._info(request.device_id), profile=name, message=reason)

    def delete(self, request: pb.DeleteDeviceRequest) -> pb.DeleteDeviceResponse:
        known = self._store.forget_device(request.device_id, self._now_s())
        names = {item.device_id for item in self._store.identities()} | self._store.device_ids()
        named(known or None, "device", request.device_id, names)
        self._poke()
        return pb.DeleteDeviceResponse()

    def operators(self, _request: pb.ListOperatorsRequest) -> pb.ListOperatorsResponse:
        return pb.ListOperatorsResponse(operators=[self._operator(item) for item in self._store.operators()])

    def create_operator(self, request: pb.CreateOperatorRequest) -> pb.CreateOperatorResponse:
        if not _OPERATOR_NAME.fullmatch(request.name) or request.name == "admin":
            raise RejectedError(
                f"name is {request.name[:80]!r}: give 1 to 64 letters, digits, '.', '_', '@' or '-', and not "
                "'admin'",
                code="operator-name",
            )
        if request.role not in list(Role):
            raise RejectedError(
                f"role is {request.role[:40]!r}: give {' or '.join(Role)}", code="operator-role"
            )
        if request.ttl_s > _MAX_OPERATOR_TTL_S:
            raise RejectedError(f"ttl_s is {request.ttl_s}: give at most ten years", code="ttl")
        now_s = self._now_s()
        token = f"elo_{secrets.token_urlsafe(32)}"
        operator = Operator(
            name=request.name,
            role=Role(request.role),
            create_time_s=now_s,
            expire_time_s=now_s + request.ttl_s if request.ttl_s else 0.0,
        )
        self._store.add_operator(operator, secret_hash(token))
        return pb.CreateOperatorResponse(token=token, operator=self._operator(operator))

    def revoke_operator(self, request: pb.RevokeOperatorRequest) -> pb.RevokeOperatorResponse:
        found = self._store.revoke_operator(request.name, self._now_s())
        operators = {item.name: item for item in self._store.operators()}
        operator = named(operators.get(request.name) if found else None, "operator", request.name, operators)
        return pb.RevokeOperatorResponse(operator=self._operator(operator))

    def audit(self, request: pb.ListAuditRequest) -> pb.ListAuditResponse:
        entries = self._store.audit(
            limit=min(request.limit or _DEFAULT_NUM_AUDIT, _MAX_NUM_AUDIT),
            refused_only=request.refused_only,
        )
        return pb.ListAuditResponse(entries=[_audit_entry(entry) for entry in entries])

    def _identity(self, device_id: str) -> DeviceIdentity:
        names = (item.device_id for item in self._store.identities())
        if self._store.identity(device_id) is None and self._store.device(device_id) is not None:
            raise RejectedError(
                f"device {device_id} registered without being enrolled, so nothing is bound to it: its "
                f"labels are its agent's own (--label); 'edgeloop device enroll {device_id}' gives it an "
                "identity, where there are keys",
                code="identity-unknown",
            )
        return named(self._store.identity(device_id), "identity", device_id, names)

    def _info(self, device_id: str) -> pb.IdentityInfo:
        return identity_info(self._identity(device_id), self._now_s())

    def _operator(self, operator: Operator) -> pb.OperatorInfo:
        return pb.OperatorInfo(
            name=operator.name,
            role=operator.role.value,
            state=operator.state(self._now_s()),
            create_time=timestamp(operator.create_time_s),
            expire_time=timestamp(operator.expire_time_s) if operator.expire_time_s else None,
        )


def identity_info(identity: DeviceIdentity, now_s: float) -> pb.IdentityInfo:
    """One device's identity, as people see it."""
    newest = identity.certificate
    info = pb.IdentityInfo(
        device_id=identity.device_id,
        state=identity.state(now_s).value,
        labels=dict(identity.labels),
        create_time=timestamp(identity.create_time_s),
    )
    if newest is not None:
        info.serial = newest.serial
        info.expire_time.CopyFrom(timestamp(newest.not_after_s))
    if identity.token_expire_time_s > now_s:
        info.token_expire_time.CopyFrom(timestamp(identity.token_expire_time_s))
    return info


def _audit_entry(entry: AuditEntry) -> pb.AuditEntry:
    return pb.AuditEntry(
        event_time=timestamp(entry.event_time_s),
        actor=entry.actor,
        action=entry.action,
        target=entry.target,
        outcome=entry.outcome,
        message=entry.message,
        peer=entry.peer,
    )
