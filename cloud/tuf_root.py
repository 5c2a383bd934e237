"""TUF's root: made once, and changed only by a threshold of keys that no running process needs.

Rules that this module keeps:

* The first start makes root keys of its own in ``root-keys/``, so that nothing has to be switched on; who
  wants them offline from the first moment runs ``edgeloop keys tuf-init`` with a folder elsewhere before it.
* A change is a draft that gathers signatures, wherever the keys are, and counts only once a threshold of the
  old root and of the new one has signed it. Taking it up is one file that appears.
* Every step may be repeated: a command that was killed is finished by running it again.
"""

from __future__ import annotations

import copy
import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from cloud.pki.key_folder import write_file
from cloud.tuf_files import TufFiles, sync
from edgeloop import released
from edgeloop.errors import ConfigError
from edgeloop.released import ROLES
from edgeloop.trust import DirectorKey

logger = logging.getLogger(__name__)

DEFAULT_ROOT_KEYS, DEFAULT_THRESHOLD = 3, 2
ROOT_LIFETIME_S = 10 * 365 * 86_400.0
MAX_ROOT_KEYS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A root that gathers signatures: how many count so far, by the old root's keys and by its own."""

    version: int
    num_old: int
    old_threshold: int
    num_new: int
    new_threshold: int

    @property
    def complete(self) -> bool:
        return self.num_old >= self.old_threshold and self.num_new >= self.new_threshold


def ensure(files: TufFiles, *, now_s: float) -> None:
    """At the first start, make what ``create`` makes. Raises ``ConfigError``."""
    if not files.root_version():
        with files.locked():
            if not files.root_version():  # nobody else made it meanwhile
                create(files, now_s=now_s)
                logger.warning(
                    "TUF root keys were made in %s: take them off this machine; nothing that runs needs them",
                    files.root_keys,
                )


def create(
    files: TufFiles,
    *,
    now_s: float,
    root_keys: Path | None = None,
    num_keys: int = DEFAULT_ROOT_KEYS,
    threshold: int = DEFAULT_THRESHOLD,
) -> None:
    """Make every key, and root version 1. The lock is the caller's. Raises ``ConfigError``."""
    if not 1 <= threshold <= num_keys <= MAX_ROOT_KEYS:
        raise ConfigError(
            f"--threshold is {threshold} of --root-count {num_keys}: give 1 to {MAX_ROOT_KEYS} keys, and a "
            "threshold that they can reach",
            code="tuf-threshold",
        )
    if files.root_version():
        raise ConfigError(f"{files.base} has a TUF root already: nothing was changed", code="tuf-exists")
    folder = root_keys or files.root_keys
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror})", code="tuf-folder") from None
    root = Root(version=1, consistent_snapshot=True, expires=_moment(now_s + ROOT_LIFETIME_S))
    signers = [
        CryptoSigner(DirectorKey.load_or_generate(folder / f"root-{number}.pem").private)
        for number in range(1, num_keys + 1)
    ]
    for signer in signers:
        root.add_key(signer.public_key, Root.type)
    root.roles[Root.type].threshold = threshold
    for role in ROLES:
        key = DirectorKey.load_or_generate(files.keys / f"{role}.pem")
        root.add_key(CryptoSigner(key.private).public_key, role)
    sync(files.keys)
    metadata = Metadata(root)
    for signer in signers:
        metadata.sign(signer, append=True)
    files.write("1.root.json", metadata.to_bytes())


def propose(
    files: TufFiles,
    *,
    now_s: float,
    roles: Sequence[str] = (),
    retired: Sequence[str] = (),
    added: Sequence[Path] = (),
    threshold: int | None = None,
) -> Draft:
    """Begin the next root: new keys for these online roles, root keys retired (by id or the beginning of one)
    and added (files, made when missing). Raises ``ConfigError``.
    """
    with files.locked():
        current = files.root().signed
        root = copy.deepcopy(current)
        root.version += 1
        root.expires = _moment(now_s + ROOT_LIFETIME_S)
        for role in roles:
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(files.new_key(role).public_key, role)
        for path in added:
            root.add_key(CryptoSigner(DirectorKey.load_or_generate(path).private).public_key, Root.type)
        for name in retired:
            found = [keyid for keyid in root.roles[Root.type].keyids if name and keyid.startswith(name)]
            if len(found) != 1:
                raise ConfigError(
                    f"--retire {name[:64]!r} names {len(found)} root keys: 'edgeloop keys tuf-status' lists "
                    "them",
                    code="tuf-key",
                )
            root.revoke_key(found[0], Root.type)
        if threshold is not None:
            root.roles[Root.type].threshold = threshold
        wanted, num_keys = root.roles[Root.type].threshold, len(root.roles[Root.type].keyids)
        if not 1 <= wanted <= num_keys <= MAX_ROOT_KEYS:
            raise ConfigError(
                f"the root would have {num_keys} keys and a threshold of {wanted}: nobody could sign it",
                code="tuf-threshold",
            )
        metadata = Metadata(root)
        write_file(files.draft, metadata.to_bytes(), 0o644)
        return _draft(current, metadata)


def sign(path: Path, keys: Sequence[Path]) -> None:
    """Add signatures to a draft; needs nothing but the two. Raises ``ConfigError``."""
    metadata = _read_draft(path)
    for key in keys:
        signer = CryptoSigner(DirectorKey.load(key).private)
        metadata.sign(signer, append=True)
    write_file(path, metadata.to_bytes(), 0o644)


def apply(files: TufFiles, path: Path | None = None) -> Draft:
    """Take the draft up once enough have signed it; else only say how many lack. Raises ``ConfigError``."""
    with files.locked():
        current = files.root().signed
        metadata = _read_draft(path or files.draft)
        if metadata.signed.version != current.version + 1:
            raise ConfigError(
                f"the draft is of version {metadata.signed.version}, the root of version {current.version}: "
                "begin a new one with 'edgeloop keys rotate-tuf'",
                code="tuf-draft",
            )
        draft = _draft(current, metadata)
        if draft.complete:
            for role in ROLES:  # a root that locks this control plane out is a mistake
                files.signer(role, metadata.signed)
            raw = metadata.to_bytes()
            if len(raw) > released.MAX_ROOT_BYTES:
                raise ConfigError(f"the root has {len(raw)} bytes, more than devices read", code="tuf-size")
            files.write(f"{draft.version}.root.json", raw)
            files.settle_keys(metadata.signed)
            files.draft.unlink(missing_ok=True)
        return draft


def _draft(current: Root, metadata: Metadata[Root]) -> Draft:
    result = metadata.signed.get_root_verification_result(current, metadata.signed_bytes, metadata.signatures)
    return Draft(
        version=metadata.signed.version,
        num_old=len(result.first.signed),
        old_threshold=result.first.threshold,
        num_new=len(result.second.signed),
        new_threshold=result.second.threshold,
    )


def _read_draft(path: Path) -> Metadata[Root]:
    try:
        raw = path.read_bytes()
        if len(raw) > released.MAX_ROOT_BYTES:
            raise RepositoryError(f"{len(raw)} bytes")
        metadata: Metadata[Root] = Metadata.from_bytes(raw)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}: begin with 'edgeloop keys rotate-tuf'", code="tuf-draft"
        ) from None
    except (OSError, RepositoryError) as error:
        raise ConfigError(f"{path} cannot be read as a root: {error}", code="tuf-draft") from None
    if not isinstance(metadata.signed, Root):
        raise ConfigError(f"{path} holds no root", code="tuf-draft")
    return metadata


def _moment(at_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(at_s), datetime.UTC)
