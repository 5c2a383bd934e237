"""Identities of devices and operators, and the audit log.

Rules kept here:

- A token counts once, also when two calls bring it at the same moment: spending it is a conditional update.
- A key is certified once, ever: the database refuses the second time.
- Secrets are stored as hashes alone.
- The audit log is bounded: the oldest entries go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from cloud.domain.codec import from_json, to_json
from cloud.domain.identities import (
    AuditEntry,
    CertificateRecord,
    Departure,
    DeviceIdentity,
    Operator,
    Role,
)
from cloud.store import schema
from cloud.store.base import Database
from edgeloop.errors import RejectedError, TransientError

MAX_AUDIT_ENTRIES = 100_000
_AUDIT_SLACK = 1_000
#: Keys in ``meta`` of devices that were deleted, until the broker holds nothing of them.
_LEFT = "departed-device/"


class IdentityTables(Database):
    """Who may take part, and who did what."""

    # -- devices -----------------------------------------------------------------------------------

    def save_identity(self, device_id: str, labels: Mapping[str, str], now_s: float) -> None:
        """Create it, or replace its labels; a revocation is lifted."""
        values = {
            "device_id": device_id,
            "labels_json": to_json(dict(labels)),
            "create_time_s": now_s,
            "revoke_time_s": 0.0,
        }
        with self._write() as connection:
            self._upsert(connection, schema.identities, values, keep=["create_time_s"])

    def set_identity_labels(self, device_id: str, labels: Mapping[str, str]) -> bool:
        """False when there is no such identity."""
        table = schema.identities
        with self._write() as connection:
            statement = sa.update(table).where(table.c.device_id == device_id)
            return connection.execute(statement.values(labels_json=to_json(dict(labels)))).rowcount == 1

    def bound_labels(self, device_id: str) -> dict[str, str]:
        """What operators bound to the device; empty for one that never was enrolled."""
        table = schema.identities.c
        with self._read() as connection:
            text = connection.scalar(sa.select(table.labels_json).where(table.device_id == device_id))
        return {} if text is None else from_json(dict[str, str], text)

    def identities(self) -> list[DeviceIdentity]:
        """By device id."""
        return self._identities(sa.true(), sa.true(), sa.true())

    def identity(self, device_id: str) -> DeviceIdentity | None:
        """None for a device that never was enrolled."""
        found = self._identities(
            schema.identities.c.device_id == device_id,
            schema.enrolment_tokens.c.device_id == device_id,
            schema.certificates.c.device_id == device_id,
        )
        return found[0] if found else None

    def revoke_identity(self, device_id: str, now_s: float) -> bool:
        """Revoke it, its certificates and its unused tokens. False when there is no such identity."""
        table = schema.identities
        with self._write() as connection:
            statement = sa.update(table).where(table.c.device_id == device_id).values(revoke_time_s=now_s)
            known = connection.execute(statement).rowcount == 1
            self._revoke_certificates(connection, device_id, now_s)
            self._drop_tokens(connection, device_id)
        return known

    def forget_device(self, device_id: str, now_s: float) -> bool:
        """Revoke it and forget all but its certificates and what it measured. False when it is not known.

        What may lie on the broker of it is remembered for ``departures``.
        """
        told = schema.deployments.c
        with self._write() as connection:
            workloads = connection.scalars(
                sa.select(told.workload).where(told.device_id == device_id).distinct().order_by(told.workload)
            )
            left = {
                "key": f"{_LEFT}{device_id}",
                "value": to_json(Departure(workloads=tuple(workloads), delete_time_s=now_s)),
            }
            self._revoke_certificates(connection, device_id, now_s)
            self._drop_tokens(connection, device_id)
            known = 0
            for table in (
                schema.deployment_history,
                schema.deployments,
                schema.device_workloads,
                schema.devices,
                schema.identities,
            ):
                known += connection.execute(sa.delete(table).where(table.c.device_id == device_id)).rowcount
            if known:
                self._upsert(connection, schema.meta, left)
        return known > 0

    def departures(self) -> dict[str, Departure]:
        """By device, of those that were deleted and may have left something on the broker."""
        table = schema.meta.c
        with self._read() as connection:
            rows = connection.execute(
                sa.select(table.key, table.value).where(table.key.startswith(_LEFT, autoescape=True))
            ).all()
        return {row.key.removeprefix(_LEFT): from_json(Departure, row.value) for row in rows}

    def forget_departure(self, device_id: str) -> None:
        """The broker holds nothing of it any more."""
        with self._write() as connection:
            connection.execute(sa.delete(schema.meta).where(schema.meta.c.key == f"{_LEFT}{device_id}"))

    def add_token(self, token_hash: str, device_id: str, *, now_s: float, expire_time_s: float) -> None:
        """A token for the device; unused ones that it had count no more."""
        with self._write() as connection:
            self._drop_tokens(connection, device_id)
            values = {
                "token_hash": token_hash,
                "device_id": device_id,
                "create_time_s": now_s,
                "expire_time_s": expire_time_s,
                "use_time_s": 0.0,
            }
            connection.execute(sa.insert(schema.enrolment_tokens).values(**values))

    def devices_of_tokens(self, token_hashes: Sequence[str], now_s: float) -> dict[str, str | RejectedError]:
        """For each, the device that it is for, or why it does not count: unknown, expired or used before.

        Call it in the transaction that spends them: until it ends, nobody else can.
        """
        table = schema.enrolment_tokens
        # In order, so that two that lock the same rows never wait for each other in a ring.
        wanted = sa.select(table).where(table.c.token_hash.in_(token_hashes)).order_by(table.c.token_hash)
        with self._write() as connection:
            rows = {row.token_hash: row for row in connection.execute(wanted.with_for_update())}
        found: dict[str, str | RejectedError] = {}
        for token_hash in token_hashes:
            row = rows.get(token_hash)
            if row is None:
                found[token_hash] = _bad_token("is not known", "token-unknown")
            elif row.use_time_s:
                found[token_hash] = used_token_error(row.device_id)
            elif row.expire_time_s <= now_s:
                found[token_hash] = _bad_token(f"of {row.device_id} has expired", "token-expired")
            else:
                found[token_hash] = str(row.device_id)
        return found

    def spend_tokens(self, token_hashes: Sequence[str], now_s: float) -> None:
        """They count no more. Raises ``TransientError``, and spends none, when one was used meanwhile."""
        if not token_hashes:
            return
        table = schema.enrolment_tokens
        used = sa.update(table).where(table.c.token_hash.in_(token_hashes), table.c.use_time_s == 0)
        with self._write() as connection:
            if connection.execute(used.values(use_time_s=now_s)).rowcount != len(token_hashes):
                raise TransientError("a token was used meanwhile: try again", code="token-race")

    def certified_keys(self, key_digests: Sequence[str]) -> set[str]:
        """Those of them that were certified before."""
        table = schema.certificates
        with self._read() as connection:
            return set(
                connection.scalars(sa.select(table.c.key_digest).where(table.c.key_digest.in_(key_digests)))
            )

    def replace_certificates(self, records: Sequence[CertificateRecord]) -> None:
        """Remember what was issued, and revoke whatever else these devices had.

        Raises ``RejectedError`` ("csr-replayed"), and changes nothing, when a key was certified before.
        """
        if not records:
            return
        table = schema.certificates
        devices = [record.device_id for record in records]
        others = sa.update(table).where(table.c.device_id.in_(devices), table.c.revoke_time_s == 0)
        with self._write() as connection:
            connection.execute(others.values(revoke_time_s=records[0].not_before_s))
            try:
                connection.execute(sa.insert(table), [_certificate_row(record) for record in records])
            except sa.exc.IntegrityError:
                raise replayed_error() from None

    def add_certificate(self, record: CertificateRecord) -> None:
        """Remember what was issued, beside those that the device has.

        Raises ``RejectedError`` ("csr-replayed") for a key that was certified before.
        """
        with self._write() as connection:
            if not self._insert_new(connection, schema.certificates, _certificate_row(record)):
                raise replayed_error()

    def certificate(self, serial: str) -> CertificateRecord | None:
        """None for one that was never issued."""
        table = schema.certificates
        with self._read() as connection:
            row = connection.execute(sa.select(table).where(table.c.serial == serial)).one_or_none()
        return None if row is None else CertificateRecord(**row._mapping)

    def revoked_certificates(self, now_s: float) -> list[CertificateRecord]:
        """Those that would be valid otherwise, by time."""
        table = schema.certificates
        statement = (
            sa.select(table)
            .where(table.c.revoke_time_s > 0, table.c.not_after_s > now_s)
            .order_by(table.c.revoke_time_s, table.c.serial)
        )
        with self._read() as connection:
            return [CertificateRecord(**row._mapping) for row in connection.execute(statement)]

    def _identities(
        self,
        wanted: sa.ColumnElement[bool],
        of_tokens: sa.ColumnElement[bool],
        of_certificates: sa.ColumnElement[bool],
    ) -> list[DeviceIdentity]:
        identities, tokens, certificates = (
            schema.identities,
            schema.enrolment_tokens,
            schema.certificates,
        )
        with self._read() as connection:
            waiting: dict[str, float] = {}
            unused = sa.select(tokens).where(tokens.c.use_time_s == 0, of_tokens)
            for row in connection.execute(unused):
                waiting[row.device_id] = max(row.expire_time_s, waiting.get(row.device_id, 0.0))
            newest: dict[str, CertificateRecord] = {}
            issued = sa.select(certificates).where(of_certificates).order_by(certificates.c.not_after_s)
            for row in connection.execute(issued):
                newest[row.device_id] = CertificateRecord(**row._mapping)
            rows = connection.execute(
                sa.select(identities).where(wanted).order_by(identities.c.device_id)
            ).all()
        return [
            DeviceIdentity(
                device_id=row.device_id,
                create_time_s=row.create_time_s,
                labels=from_json(dict[str, str], row.labels_json),
                revoke_time_s=row.revoke_time_s,
                token_expire_time_s=waiting.get(row.device_id, 0.0),
                certificate=newest.get(row.device_id),
            )
            for row in rows
        ]

    def _revoke_certificates(self, connection: sa.Connection, device_id: str, now_s: float) -> None:
        table = schema.certificates
        statement = sa.update(table).where(table.c.device_id == device_id, table.c.revoke_time_s == 0)
        connection.execute(statement.values(revoke_time_s=now_s))

    def _drop_tokens(self, connection: sa.Connection, device_id: str) -> None:
        table = schema.enrolment_tokens
        connection.execute(sa.delete(table).where(table.c.device_id == device_id, table.c.use_time_s == 0))

    # -- operators ---------------------------------------------------------------------------------

    def add_operator(self, operator: Operator, token_hash: str) -> None:
        """Raises ``RejectedError`` ("operator-exists") when the name is taken, also by a revoked one."""
        values = {name: getattr(operator, name) for name in operator.__slots__}
        values |= {"token_hash": token_hash, "role": operator.role.value}
        with self._write() as connection:
            if not self._insert_new(connection, schema.operators, values):
                raise RejectedError(
                    f"operator {operator.name} exists: the log must tell one from the other: choose another "
                    "name",
                    code="operator-exists",
                )

    def operators(self) -> list[Operator]:
        """By name."""
        table = schema.operators
        with self._read() as connection:
            return [_operator(row) for row in connection.execute(sa.select(table).order_by(table.c.name))]

    def operator_by_token(self, token_hash: str) -> Operator | None:
        """None for a token that nobody has."""
        table = schema.operators
        with self._read() as connection:
            row = connection.execute(sa.select(table).where(table.c.token_hash == token_hash)).one_or_none()
        return None if row is None else _operator(row)

    def revoke_operator(self, name: str, now_s: float) -> bool:
        """False when there is none of this name."""
        table = schema.operators
        with self._write() as connection:
            statement = sa.update(table).where(table.c.name == name).values(revoke_time_s=now_s)
            return connection.execute(statement).rowcount == 1

    # -- audit -------------------------------------------------------------------------------------

    def add_audit(self, *entries: AuditEntry) -> None:
        """Append; from time to time the oldest go."""
        if not entries:
            return
        table = schema.audit
        with self._write() as connection:
            connection.execute(sa.insert(table), [_audit_row(entry) for entry in entries])
            position = int(connection.scalar(sa.select(sa.func.max(table.c.position))) or 0)
            if position % _AUDIT_SLACK < len(entries):
                connection.execute(sa.delete(table).where(table.c.position <= position - MAX_AUDIT_ENTRIES))

    def audit(self, *, limit: int = 100, refused_only: bool = False) -> list[AuditEntry]:
        """Newest first."""
        table = schema.audit
        statement = sa.select(table).order_by(table.c.position.desc()).limit(limit)
        if refused_only:
            statement = statement.where(table.c.outcome == "refused")
        with self._read() as connection:
            rows = connection.execute(statement).all()
        return [AuditEntry(**{name: row._mapping[name] for name in AuditEntry.__slots__}) for row in rows]


def _operator(row: sa.Row[Any]) -> Operator:
    return Operator(
        name=row.name,
        role=Role(row.role),
        create_time_s=row.create_time_s,
        expire_time_s=row.expire_time_s,
        revoke_time_s=row.revoke_time_s,
    )


def _certificate_row(record: CertificateRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _audit_row(entry: AuditEntry) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(entry, name) for name in entry.__slots__}
    for name in ("actor", "action", "target", "peer"):
        values[name] = values[name][:200]
    values["message"] = values["message"][:1000]
    return values


def replayed_error() -> RejectedError:
    """A request that was answered before, or a key that a device made once and uses again."""
    return RejectedError(
        "certificate_request is for a key that was certified before: make a new key", code="csr-replayed"
    )


def used_token_error(device_id: str) -> RejectedError:
    """A token counts once."""
    return _bad_token(f"of {device_id} was used before", "token-used")


def _bad_token(why: str, code: str) -> RejectedError:
    return RejectedError(f"token {why}: ask an operator for a new one ('edgeloop device enroll')", code=code)
