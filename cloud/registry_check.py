"""Whether the registry holds what the fleet needs now: what is deployed, rolled out or served.

Rules that this module keeps:

* Nothing is written, and the work is bounded: a folder's artifacts are read and hashed up to
  ``MAX_READ_BYTES``, those in an object store are asked for their size, and no more than ``MAX_DIGESTS`` are
  looked at. What some device must still fetch comes first, and what was not looked at is counted.
* Manifests are small: each is read, hashed and parsed wherever it lies, and says how long its artifact is.
* A registry that cannot be reached is said once, not for each digest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from cloud.registry import Registry
from cloud.store import Store
from edgeloop.artifact import MAX_MANIFEST_BYTES, parse_manifest
from edgeloop.errors import RejectedError

MAX_DIGESTS: Final = 500
MAX_READ_BYTES: Final = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """An artifact that somebody needs. ``manifest_digest`` is empty where nobody knows it."""

    digest: str
    manifest_digest: str
    profile: str
    #: Devices that were told to run it, or do.
    num_devices: int = 0
    #: Some device may have to fetch it yet.
    to_fetch: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """What is wrong with a blob (``missing`` or ``damaged``), and who needs it."""

    need: Need
    digest: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryCheck:
    """``num_hashed`` artifacts were read whole, of ``num_sized`` the size was compared."""

    num_needed: int
    num_hashed: int
    num_sized: int
    problems: tuple[Problem, ...]

    @property
    def num_left(self) -> int:
        return self.num_needed - self.num_hashed - self.num_sized - len(self.problems)


def needs(store: Store) -> list[Need]:
    """Of the newest deployments, the unfinished rollouts, and what devices serve; most devices first."""
    counts: Counter[str] = Counter()
    known: dict[str, tuple[str, str]] = {}
    to_fetch: set[str] = set()
    for deployment in store.deployments():
        counts[deployment.digest] += 1
        known[deployment.digest] = (deployment.manifest_digest, deployment.profile)
        if not deployment.state.terminal:
            to_fetch.add(deployment.digest)
    for rollout in store.rollouts(unfinished_only=True):
        known.setdefault(rollout.digest, (rollout.manifest_digest, rollout.profile))
        to_fetch.add(rollout.digest)
        if rollout.previous_digest:  # what an aborted one goes back to
            known.setdefault(rollout.previous_digest, (rollout.previous_manifest_digest, rollout.profile))
    serving = {
        host.serving_digest: host.profile
        for device in store.devices()
        for host in device.hosts
        if host.serving_digest and host.serving_digest not in known
    }
    if serving:
        built = {candidate.digest: candidate for candidate in store.candidates()}
        for digest, profile in serving.items():
            manifest = built[digest].manifest_digest if digest in built else ""
            known[digest] = (manifest, profile)
    found = [
        Need(
            digest=digest,
            manifest_digest=manifest_digest,
            profile=profile,
            num_devices=counts[digest],
            to_fetch=digest in to_fetch,
        )
        for digest, (manifest_digest, profile) in known.items()
    ]
    return sorted(found, key=lambda need: (not need.to_fetch, -need.num_devices, need.digest))


def look_at(
    registry: Registry,
    needed: list[Need],
    *,
    max_digests: int = MAX_DIGESTS,
    max_read_bytes: int = MAX_READ_BYTES,
) -> RegistryCheck:
    """Raises ``TransientError`` "registry-unavailable" when it cannot be read at all."""
    problems: list[Problem] = []
    num_hashed = num_sized = 0
    left_bytes = max_read_bytes if registry.is_local else 0
    for need in needed[:max_digests]:
        looked_at = need.manifest_digest or need.digest
        try:
            wanted = _wanted_bytes(registry, need.manifest_digest) if need.manifest_digest else None
            looked_at = need.digest
            size_bytes = registry.size(need.digest)
            if wanted not in (None, size_bytes):
                raise _damaged(need.digest)
            if size_bytes <= left_bytes:
                registry.get(need.digest)
                left_bytes -= size_bytes
                num_hashed += 1
            else:
                num_sized += 1
        except RejectedError as error:
            what = "missing" if error.code == "registry-missing" else "damaged"
            problems.append(Problem(need=need, digest=looked_at, what=what))
    return RegistryCheck(
        num_needed=len(needed), num_hashed=num_hashed, num_sized=num_sized, problems=tuple(problems)
    )


def _wanted_bytes(registry: Registry, manifest_digest: str) -> int:
    """How long the artifact is, as its manifest says."""
    if registry.size(manifest_digest) > MAX_MANIFEST_BYTES:
        raise _damaged(manifest_digest)
    return parse_manifest(registry.get(manifest_digest), expected_digest=manifest_digest).size_bytes


def _damaged(digest: str) -> RejectedError:
    return RejectedError(f"blob {digest} has another size than it was built with", code="registry-altered")
