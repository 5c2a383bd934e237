"""Devices, and what each profile's devices should run.

Rules kept here:

- The highest generation that a device ever claimed never goes down, whatever it registers later.
- A device that hosts several workloads has a row for each beside its own (``cloud.store.hosted``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from cloud.domain.codec import from_json, to_json
from cloud.domain.devices import (
    Device,
    HostedWorkload,
)
from cloud.domain.reconcile import ProfileTarget
from cloud.store import schema
from cloud.store.base import Database
from cloud.store.deployments import device_row_for_update
from cloud.store.hosted import (
    hosted_workloads,
    keep_hosted,
    merged,
    serving_generation,
    set_host_profile,
)


class FleetTables(Database):
    """Devices, and what each profile currently runs."""

    def register_device(self, device: Device, profile: str | None, message: str, now_s: float) -> Device:
        """Insert or replace; ``generation`` never goes down. Marks it connected; returns what is stored."""
        table = schema.devices
        with self._write() as connection:
            row = connection.execute(
                sa.select(table).where(table.c.device_id == device.device_id)
            ).one_or_none()
            hosted = hosted_workloads(connection, device.device_id).get(device.device_id, ())
            known = None if row is None else _device(row, hosted)
            stored = replace(
                device,
                hosted=merged(device.hosted, hosted),
                generation=max(device.generation, known.generation if known else 0),
                serving_generation=serving_generation(device, known),
                profile=profile or "",
                message=message,
                connected=True,
                register_time_s=known.register_time_s if known else now_s,
                last_seen_s=now_s,
            )
            same_boot = known is not None and known.boot_id == device.boot_id
            serving_time_s = row.serving_time_s if row is not None and same_boot else 0.0
            self._upsert(connection, table, _device_row(stored, serving_time_s=serving_time_s))
            if stored.hosted or hosted:
                keep_hosted(connection, stored, same_boot=same_boot)
        return stored

    def devices(self, profile: str | None = None) -> list[Device]:
        """By id. ``profile=""`` gives those that match none."""
        table = schema.devices
        statement = sa.select(table).order_by(table.c.device_id)
        if profile is not None:
            hosting = sa.select(schema.device_workloads.c.device_id).where(
                schema.device_workloads.c.profile == profile
            )
            mine = table.c.profile == profile
            statement = statement.where(sa.or_(mine, table.c.device_id.in_(hosting)) if profile else mine)
        with self._read() as connection:
            hosted = hosted_workloads(connection)
            return [_device(row, hosted.get(row.device_id, ())) for row in connection.execute(statement)]

    def device(self, device_id: str) -> Device | None:
        """None when it never registered."""
        table = schema.devices
        with self._read() as connection:
            row = connection.execute(sa.select(table).where(table.c.device_id == device_id)).one_or_none()
            hosted = hosted_workloads(connection, device_id).get(device_id, ())
        return None if row is None else _device(row, hosted)

    def device_ids(self) -> set[str]:
        """Of every device that ever registered."""
        with self._read() as connection:
            return set(connection.scalars(sa.select(schema.devices.c.device_id)))

    def hosting_devices(self) -> set[str]:
        """Ids of those that host several workloads."""
        with self._read() as connection:
            return set(hosted_workloads(connection))

    def set_device_profile(self, device_id: str, profile: str | None, message: str) -> None:
        """After profiles changed: which one the device belongs to now."""
        self._update_device(device_id, {"profile": profile or "", "message": message})

    def set_device_match(self, device: Device) -> None:
        """After profiles changed: which ones the device and each workload that it hosts belong to now."""
        with self.transaction():
            self.set_device_profile(device.device_id, device.profile or None, device.message)
            with self._write() as connection:
                for host in device.hosted:
                    set_host_profile(connection, device.device_id, host.workload, host.profile, host.message)

    def set_device_labels(self, device_id: str, labels: Mapping[str, str]) -> None:
        """After operators bound other labels: as if it had registered with these."""
        with self.transaction(), self._write() as connection:
            row = device_row_for_update(connection, device_id)
            if row is None:
                return
            hosted = hosted_workloads(connection, device_id).get(device_id, ())
            device = replace(_device(row, hosted), labels=dict(labels))
            self._update_device(device_id, {"registration_json": to_json(device)})

    def set_presence(self, device_id: str, connected: bool, now_s: float) -> bool:
        """False when the device is unknown. Going away is not being heard of."""
        values: dict[str, Any] = {"connected": connected}
        if connected:
            values["last_seen_s"] = now_s
        return self._update_device(device_id, values)

    def touch(self, device_id: str, now_s: float) -> None:
        """It was heard of."""
        self._update_device(device_id, {"last_seen_s": now_s})

    def set_current(
        self, profile: str, digest: str, *, manifest_digest: str, rollout_id: str, now_s: float
    ) -> None:
        """What the profile's devices should run from now on, late joiners included."""
        values = {
            "profile": profile,
            "digest": digest,
            "manifest_digest": manifest_digest,
            "rollout_id": rollout_id,
            "update_time_s": now_s,
        }
        with self._write() as connection:
            self._upsert(connection, schema.current_artifacts, values)

    def current_digest(self, profile: str) -> str:
        """Empty when none was rolled out."""
        return self.current_digests().get(profile, "")

    def current_digests(self) -> dict[str, str]:
        """By profile, of those that run something."""
        with self._read() as connection:
            return {
                row.profile: row.digest for row in connection.execute(sa.select(schema.current_artifacts))
            }

    def targets(self) -> dict[str, ProfileTarget]:
        """By profile: what its devices should run when no rollout says otherwise."""
        with self._read() as connection:
            return {
                row.profile: ProfileTarget(
                    digest=row.digest, manifest_digest=row.manifest_digest, rollout_id=row.rollout_id
                )
                for row in connection.execute(sa.select(schema.current_artifacts))
            }

    def _update_device(self, device_id: str, values: dict[str, Any]) -> bool:
        table = schema.devices
        with self._write() as connection:
            result = connection.execute(
                sa.update(table).where(table.c.device_id == device_id).values(**values)
            )
            return result.rowcount == 1


def _device_row(device: Device, *, serving_time_s: float) -> dict[str, Any]:
    return {
        "device_id": device.device_id,
        "profile": device.profile,
        "message": device.message,
        "registration_json": to_json(device),
        "boot_id": device.boot_id,
        "connected": device.connected,
        "register_time_s": device.register_time_s,
        "last_seen_s": device.last_seen_s,
        "generation": device.generation,
        "serving_digest": device.serving_digest,
        "serving_generation": device.serving_generation,
        "serving_time_s": serving_time_s,
    }


@lru_cache(maxsize=16_384)
def _registered(text: str) -> Device:
    """Every turn of the controller reads all devices; what one of them registered seldom changes."""
    return from_json(Device, text)


def _device(row: sa.Row[Any], hosted: tuple[HostedWorkload, ...]) -> Device:
    """The columns are newer than the text beside them, which is as the device last registered."""
    return replace(
        _registered(row.registration_json),
        hosted=hosted,
        profile=row.profile,
        message=row.message,
        connected=row.connected,
        register_time_s=row.register_time_s,
        last_seen_s=row.last_seen_s,
        generation=row.generation,
        serving_digest=row.serving_digest,
        serving_generation=row.serving_generation,
    )
