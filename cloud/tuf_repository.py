"""Which artifacts are released: the TUF repository of a control plane, whose online roles it signs.

Rules that this module keeps:

* Before a deployment may name an artifact, targets, snapshot and timestamp that name it are on the disk.
* The timestamp is written last: what it leads to is whole. A process that is killed before that has released
  nothing, and the next one writes the same versions over; after it, no version ever goes down.
* The timestamp lives shortly and is renewed in time; the others are signed again at half of their lives, and
  whenever the root names another key.
* Versions are the seconds since 1970, or one more than the last, and all is signed anew when a process
  begins: a repository that was restored from a backup begins above all that devices may have seen.
* Of several control planes on one folder only the one that acts writes. It keeps its right to act until what
  it writes is whole: another takes over before or after, and never in between.
* Nothing here can sign a root.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from cloud.tuf_files import TufFiles
from edgeloop import released
from edgeloop.errors import ConfigError
from edgeloop.released import ROLES, TIMESTAMP_FILE

logger = logging.getLogger(__name__)

DEFAULT_TIMESTAMP_LIFETIME_S = 3 * 86_400.0
#: With which version of the targets it came.
_SINCE_FIELD = "since"
_SNAPSHOT_LIFETIME_S = 90 * 86_400.0
_TARGETS_LIFETIME_S = 365 * 86_400.0


T = TypeVar("T", Snapshot, Targets, Timestamp)


class TufRepository:
    """Owned by the controller's thread. ``on_files`` gets all that devices may ask for, in the order in which
    it must be published; old roots are among it, for devices that were away.

    ``acting`` is entered around all that writes, and raises ``EdgeloopError`` where another acts by now
    (``Store.transaction`` of a store with a fence)."""

    def __init__(
        self,
        base: Path,
        *,
        size_of: Callable[[str], int],
        on_files: Callable[[dict[str, bytes]], None] = lambda files: None,
        timestamp_lifetime_s: float = DEFAULT_TIMESTAMP_LIFETIME_S,
        acting: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._acting = acting
        self._files = TufFiles(base)
        self._size_of = size_of
        self._on_files = on_files
        self._timestamp_lifetime_s = timestamp_lifetime_s
        self._seen: tuple[tuple[int, int], ...] | None = None
        self._state: _State | None = None

    def release(self, pairs: Collection[tuple[str, str]], now_s: float) -> None:
        """See to it that these (digest, manifest digest) are released, and that nothing runs out.

        Raises ``EdgeloopError``; then nothing that was not released before may ship.
        """
        if (
            self._state is not None
            and self._files.stamps() == self._seen
            and self._state.covers(pairs, now_s)
        ):
            return
        with self._files.locked(), self._acting():
            state = self._load()
            begins = self._state is None
            if begins or not state.covers(pairs, now_s):
                self._sign(state, pairs, now_s, anew=begins)
                state = self._load()
            self._files.settle_keys(state.root.signed)
            self._seen, self._state = self._files.stamps(), state
            files = self._current(state)
        self._on_files(files)

    # -- inside ------------------------------------------------------------------------------------------

    def _load(self) -> _State:
        """What the timestamp leads to, as far as it holds under the current root."""
        files = self._files
        root = files.root()
        timestamp = files.read(TIMESTAMP_FILE, Timestamp)
        snapshot = targets = None
        if timestamp is not None:
            snapshot = files.read(f"{timestamp.signed.snapshot_meta.version}.snapshot.json", Snapshot)
        if snapshot is not None:
            targets = files.read(f"{snapshot.signed.meta['targets.json'].version}.targets.json", Targets)
        if timestamp is not None and (snapshot is None or targets is None):
            raise ConfigError(
                f"{files.metadata} lacks what its {TIMESTAMP_FILE} names: restore it from a backup",
                code="tuf-damaged",
            )
        return _State(
            root=root,
            timestamp=timestamp,
            snapshot=snapshot,
            targets=targets,
            vouched=frozenset(_vouched(root.signed, timestamp, snapshot, targets)),
            timestamp_lifetime_s=self._timestamp_lifetime_s,
        )

    def _sign(self, state: _State, pairs: Collection[tuple[str, str]], now_s: float, *, anew: bool) -> None:
        """Sign what must be, or all of it ``anew``, from the targets up to the timestamp."""
        root = state.root.signed
        changed = False
        targets = state.targets
        missing = state.missing(pairs)
        if targets is None or missing or anew or not state.holds(targets, _TARGETS_LIFETIME_S, now_s):
            signed = targets.signed if targets is not None else _unwritten(Targets())
            self._add(signed, missing, {digest for digest, _ in pairs})
            targets = self._write(signed, "targets", root, now_s, _TARGETS_LIFETIME_S)
            changed = True
            for digest, manifest_digest in sorted(missing):
                logger.info("released %s with manifest %s", digest[:12], manifest_digest[:12])
        snapshot = state.snapshot
        if snapshot is None or changed or not state.holds(snapshot, _SNAPSHOT_LIFETIME_S, now_s):
            facts = snapshot.signed if snapshot is not None else _unwritten(Snapshot())
            facts.meta["targets.json"] = _meta(targets)
            snapshot = self._write(facts, "snapshot", root, now_s, _SNAPSHOT_LIFETIME_S)
        current = state.timestamp.signed if state.timestamp is not None else _unwritten(Timestamp())
        current.snapshot_meta = _meta(snapshot)
        current.unrecognized_fields[released.ROOT_VERSION_FIELD] = root.version
        self._write(current, "timestamp", root, now_s, self._timestamp_lifetime_s)

    def _add(self, targets: Targets, missing: Collection[tuple[str, str]], wanted: Collection[str]) -> None:
        for digest, manifest_digest in sorted(missing):
            path = released.target_path(digest)
            entry = targets.targets.pop(path, None)
            manifests = _manifests(entry) if entry is not None else []
            targets.targets[path] = TargetFile(
                length=self._size_of(manifest_digest),
                hashes={"sha256": digest},
                path=path,
                unrecognized_fields={
                    "custom": {
                        released.MANIFESTS_FIELD: [*manifests, manifest_digest][-released.MAX_MANIFESTS :],
                        _SINCE_FIELD: targets.version + 1,
                    }
                },
            )
        if len(targets.targets) > released.MAX_TARGETS:
            # What nothing runs any more goes first, the oldest before the newer; deployed again, it is back.
            kept = {released.target_path(digest) for digest in wanted}
            old = [path for path in targets.targets if path not in kept]
            for path in sorted(old, key=lambda path: targets.targets[path].custom[_SINCE_FIELD]):
                if len(targets.targets) <= released.MAX_TARGETS:
                    break
                del targets.targets[path]
        if len(targets.targets) > released.MAX_TARGETS:
            raise ConfigError(
                f"{len(targets.targets)} artifacts are deployed at once: at most {released.MAX_TARGETS} can "
                "be released",
                code="tuf-targets",
            )

    def _write(self, signed: T, role: str, root: Root, now_s: float, lifetime_s: float) -> Metadata[T]:
        signed.version = max(signed.version + 1, int(now_s))
        signed.expires = _moment(now_s + lifetime_s)
        metadata = Metadata(signed)
        metadata.sign(self._files.signer(role, root))
        name = TIMESTAMP_FILE if role == "timestamp" else f"{signed.version}.{role}.json"
        raw = metadata.to_bytes()
        if len(raw) > released.max_bytes(name):
            raise ConfigError(f"{name} has {len(raw)} bytes, more than devices read", code="tuf-size")
        self._files.write(name, raw)
        return metadata

    def _current(self, state: _State) -> dict[str, bytes]:
        assert state.snapshot is not None
        assert state.targets is not None
        newest = state.root.signed.version
        oldest = max(1, newest - released.MAX_ROOTS + 1)
        names = [
            *(f"{version}.root.json" for version in range(oldest, newest + 1)),
            f"{state.targets.signed.version}.targets.json",
            f"{state.snapshot.signed.version}.snapshot.json",
            TIMESTAMP_FILE,
        ]
        self._forget(set(names))
        return {name: (self._files.metadata / name).read_bytes() for name in names}

    def _forget(self, kept: Collection[str]) -> None:
        """Old snapshots and targets lead nowhere any more."""
        for path in self._files.metadata.glob("*.json"):
            if path.name not in kept and not path.name.endswith(".root.json"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    root: Metadata[Root]
    timestamp: Metadata[Timestamp] | None
    snapshot: Metadata[Snapshot] | None
    targets: Metadata[Targets] | None
    #: Types whose signature holds under the root.
    vouched: frozenset[str]
    timestamp_lifetime_s: float

    def covers(self, pairs: Collection[tuple[str, str]], now_s: float) -> bool:
        """Whether nothing must be signed."""
        timestamp, snapshot, targets = self.timestamp, self.snapshot, self.targets
        if timestamp is None or snapshot is None or targets is None:
            return False
        return (
            not self.missing(pairs)
            and timestamp.signed.unrecognized_fields.get(released.ROOT_VERSION_FIELD)
            == self.root.signed.version
            and self.holds(timestamp, self.timestamp_lifetime_s, now_s)
            and self.holds(snapshot, _SNAPSHOT_LIFETIME_S, now_s)
            and self.holds(targets, _TARGETS_LIFETIME_S, now_s)
        )

    def missing(self, pairs: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        if self.targets is None:
            return set(pairs)
        known = self.targets.signed.targets
        return {
            (digest, manifest_digest)
            for digest, manifest_digest in pairs
            if (entry := known.get(released.target_path(digest))) is None
            or manifest_digest not in _manifests(entry)
        }

    def holds(
        self,
        metadata: Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets],
        lifetime_s: float,
        now_s: float,
    ) -> bool:
        """Whether half of its life is left, and the root still names its key."""
        signed = metadata.signed
        return signed.type in self.vouched and signed.expires >= _moment(now_s + lifetime_s / 2)


def _vouched(
    root: Root, *found: Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets] | None
) -> set[str]:
    """The roles whose signature holds under this root."""
    holding = set()
    for metadata in found:
        if metadata is not None:
            with contextlib.suppress(RepositoryError, ValueError):
                root.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
                holding.add(metadata.signed.type)
    return holding


def _unwritten(signed: T) -> T:
    """Each writing counts up from the version before."""
    signed.version = 0
    return signed


def _manifests(entry: TargetFile) -> list[str]:
    return list(entry.custom[released.MANIFESTS_FIELD]) if entry.custom else []


def _meta(metadata: Metadata[Snapshot] | Metadata[Targets]) -> MetaFile:
    """With length and hash, so that nothing can be mixed."""
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])


def _moment(at_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(at_s), datetime.UTC)


assert set(ROLES) == {"targets", "snapshot", "timestamp"}
