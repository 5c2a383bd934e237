"""What one agent is told: TOML file, overridden by EDGELOOP_AGENT_* variables, overridden by flags.

Rules:
- A value comes from exactly one place, and every complaint names that place, the key, what was found and
  what was expected. Unknown keys are errors in all three places: a typing mistake never passes in silence.
- Relative paths in a file are relative to that file, elsewhere to the working directory.
- The result is immutable and complete: nothing below this module reads the environment.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from edge_agent.config_values import (
    Endpoint as Endpoint,
)
from edge_agent.config_values import (
    Place,
    between,
    endpoint_value,
    existing_file,
    labels_value,
    log_level_value,
    path_value,
    text_value,
    whole,
)
from edge_agent.config_values import (
    parse_endpoint as parse_endpoint,
)
from edge_agent.source_settings import BridgeSettings, FolderSettings, read_bridges, read_folders
from edge_agent.workload_settings import WorkloadSettings, read_workloads
from edgeloop import released, topics
from edgeloop.errors import ConfigError, RejectedError

ENVIRONMENT_PREFIX = "EDGELOOP_AGENT_"
# Variables of the prefix that are not settings of `run` but of the command line itself.
_ENVIRONMENT_OTHER = frozenset({"CONFIG"})

UNIX_PREFIX = "unix:"
# Below the state folder; what `edgeloop-agent enroll` was told.
ENROLMENT_FILE = Path("identity") / "enrolment.json"
# The same, for when that one does not read.
ENROLMENT_COPY = Path("identity") / "enrolment.copy.json"
# More samples than this in one request, or in one run, would hold up the others for too long.
MAX_BATCH = 64
MAX_QUEUE_DELAY_US = 100_000


# Where applications of this gateway find the local inference API, unless told otherwise.
DEFAULT_SERVE_GRPC = Endpoint(host="127.0.0.1", port=8001)
DEFAULT_SERVE_REST = Endpoint(host="127.0.0.1", port=8000)


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentConfig:
    device_id: str
    state_dir: Path
    server: Endpoint
    broker: Endpoint
    # Raw Ed25519 public keys of the directors that this device obeys.
    director_keys: tuple[bytes, ...]
    # TUF root metadata that this device trusts from the first; None: it checks no release.
    tuf_root: bytes | None = None
    labels: tuple[tuple[str, str], ...] = ()
    # Recorded inputs that the agent feeds to its own model; None: only the applications' requests.
    replay: Path | None = None
    rate_hz: float = 10.0
    emulate_slowdown: int = 1
    # Overrides the interval that the server says; None: the server's word, or 30 s before it has spoken.
    report_interval_s: float | None = None
    num_threads: int = 1
    log_level: str = "info"
    # A trial commits after this many good requests, or after this long without an error.
    trial_requests: int = 20
    trial_s: float = 30.0
    self_test_timeout_s: float = 30.0
    # How long a block may take before the agent asks the publisher for it.
    block_timeout_s: float = 5.0
    # Room that fetching leaves free on the disk.
    reserve_bytes: int = 64 * 1024 * 1024
    # Most that models, manifests and blocks may take; None: what the disk has, less the reserve.
    blob_quota_bytes: int | None = None
    spool_quota_bytes: int = 32 * 1024 * 1024
    # Where the local inference API listens: an endpoint (port 0: any that is free), the path of a unix
    # socket, or None for not at all.
    serve_grpc: Endpoint | Path | None = DEFAULT_SERVE_GRPC
    serve_rest: Endpoint | Path | None = DEFAULT_SERVE_REST
    # How long a request of an application may wait and run.
    serve_timeout_s: float = 5.0
    serve_max_request_bytes: int = 16 * 1024 * 1024
    # Samples of several requests that may share a run of the model (1: none), and how long a request may be
    # held for others.
    serve_max_batch_size: int = 1
    serve_max_queue_delay_us: int = 0
    # What feeds the model without an application: topics of a broker, and folders. Only in the file.
    bridges: tuple[BridgeSettings, ...] = ()
    folders: tuple[FolderSettings, ...] = ()
    # What is hosted side by side; none: one workload, whichever is deployed. Only in the file.
    workloads: tuple[WorkloadSettings, ...] = ()
    # Why server, broker, director keys and TUF root are not known (see edge_agent.lost_enrolment); nothing is
    # connected while it says something. Nobody sets it.
    enrolment_problem: str = ""

    def __post_init__(self) -> None:
        shared = {bridge.name for bridge in self.bridges} & {folder.name for folder in self.folders}
        if shared:
            raise ConfigError(
                f"[[bridge]] and [[folder]] tables share the name {min(shared)!r}; give each its own",
                code="config-value",
            )
        names = {workload.name for workload in self.workloads}
        sources: tuple[BridgeSettings | FolderSettings, ...] = (*self.bridges, *self.folders)
        for source in sources:
            if self.workloads and source.workload not in names:
                raise ConfigError(
                    f"source {source.name!r} has workload {source.workload!r}; with [[workload]] tables each "
                    f"source names one of them: {', '.join(sorted(names))}",
                    code="config-value",
                )
            if not self.workloads and source.workload:
                raise ConfigError(
                    f"source {source.name!r} has workload {source.workload!r}, but there is no [[workload]] "
                    "table: add one, or leave it out",
                    code="config-value",
                )
        if self.workloads and self.replay is not None:
            raise ConfigError(
                "replay feeds the only model of a device: use [[folder]] beside [[workload]] tables",
                code="config-value",
            )

        if self.serve_max_queue_delay_us and self.serve_max_batch_size == 1:
            raise ConfigError(
                f"serve_max_queue_delay_us is {self.serve_max_queue_delay_us} but serve_max_batch_size is 1, "
                "so that requests would wait for nothing; raise that to 2 or more, or leave both out",
                code="config-value",
            )

    @property
    def label_map(self) -> dict[str, str]:
        return dict(self.labels)


def _device_id(value: object, place: Place) -> str:
    text = text_value(value, place)
    try:
        topics.check_device_id(text)
    except RejectedError as error:
        place.fail(value, f"a device id ({error})")
    return text


def _serve_address(value: object, place: Place) -> Endpoint | Path | None:
    text = text_value(value, place)
    if text == "off":
        return None
    if text.startswith(UNIX_PREFIX) and len(text) > len(UNIX_PREFIX):
        return place.folder / Path(text.removeprefix(UNIX_PREFIX)).expanduser()
    try:
        return parse_endpoint(text, lowest_port=0)
    except ValueError as error:
        place.fail(value, f"{error}, or unix: and the path of a socket, or off")


def _director_keys(value: object, place: Place) -> tuple[bytes, ...]:
    """One or several keys: 64 hex digits each, or the name of a file that holds them, one on a line."""
    expected = "a director's public key (64 hex digits), several of them, or a file that holds them"
    items = value if isinstance(value, list) else [value]
    words: list[str] = []
    for item in items:
        if not isinstance(item, str):
            place.fail(value, expected)
        for word in re.split(r"[\s,]+", item.strip()):
            if re.fullmatch(r"[0-9a-fA-F]{64}", word):
                words.append(word)
                continue
            path = place.folder / Path(word).expanduser()
            try:
                lines = path.read_text(encoding="ascii").split() if word else []
            except (OSError, UnicodeDecodeError):
                place.fail(word, expected)
            if not lines or not all(re.fullmatch(r"[0-9a-fA-F]{64}", line) for line in lines):
                place.fail(word, expected)
            words.extend(lines)
    # The order stays as written; a key named twice counts once.
    return tuple(dict.fromkeys(bytes.fromhex(word) for word in words))


def _tuf_root(value: object, place: Place) -> bytes:
    """The root itself, as enrolment writes it, or the name of a file that holds it."""
    expected = "the root metadata of 'edgeloop keys tuf-root', or a file that holds it"
    text = text_value(value, place)
    try:
        raw = text.encode() if text.startswith("{") else (place.folder / Path(text).expanduser()).read_bytes()
        if len(raw) > released.MAX_ROOT_BYTES or json.loads(raw)["signed"]["_type"] != "root":
            raise ValueError("it is no root")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        place.fail(text[:80], f"{expected} ({getattr(error, 'strerror', None) or error})")
    return raw


# Key as written in the file -> (field of AgentConfig, parser). The environment has the same keys in
# capitals, flags with dashes.
_KEYS: Mapping[str, tuple[str, Callable[[object, Place], object]]] = {
    "device_id": ("device_id", _device_id),
    "state_dir": ("state_dir", path_value),
    "server": ("server", endpoint_value),
    "broker": ("broker", endpoint_value),
    "director_key": ("director_keys", _director_keys),
    "tuf_root": ("tuf_root", _tuf_root),
    "labels": ("labels", labels_value),
    "replay": ("replay", existing_file),
    "rate_hz": ("rate_hz", between(0.01, 100_000, "Hz")),
    "emulate_slowdown": ("emulate_slowdown", whole(1, 1000)),
    "report_interval_s": ("report_interval_s", between(0.1, 86_400, "s")),
    "num_threads": ("num_threads", whole(1, 256)),
    "log_level": ("log_level", log_level_value),
    "trial_requests": ("trial_requests", whole(1, 1_000_000)),
    "trial_s": ("trial_s", between(0, 86_400, "s")),
    "self_test_timeout_s": ("self_test_timeout_s", between(1, 3600, "s")),
    "block_timeout_s": ("block_timeout_s", between(0.05, 3600, "s")),
    "reserve_bytes": ("reserve_bytes", whole(0, 2**50)),
    "blob_quota_bytes": ("blob_quota_bytes", whole(64 * 1024, 2**50)),
    "spool_quota_bytes": ("spool_quota_bytes", whole(64 * 1024, 2**40)),
    "serve_grpc": ("serve_grpc", _serve_address),
    "serve_rest": ("serve_rest", _serve_address),
    "serve_timeout_s": ("serve_timeout_s", between(0.001, 3600, "s")),
    "serve_max_request_bytes": ("serve_max_request_bytes", whole(64 * 1024, 2**30)),
    "serve_max_batch_size": ("serve_max_batch_size", whole(1, MAX_BATCH)),
    "serve_max_queue_delay_us": ("serve_max_queue_delay_us", whole(0, MAX_QUEUE_DELAY_US)),
    "bridge": ("bridges", read_bridges),
    "folder": ("folders", read_folders),
    "workload": ("workloads", read_workloads),
}
# Tables, which neither a variable nor a flag can say.
_ONLY_IN_FILE = frozenset({"bridge", "folder", "workload"})
_REQUIRED = ("device_id", "state_dir", "server", "broker", "director_key")


def _read_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give --config the name of a TOML file",
            code="config-file",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}", code="config-file") from error


def load_values(
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    working_dir: Path | None = None,
    required: tuple[str, ...] = (),
) -> dict[str, object]:
    """Merges the three sources; the result holds only what was written somewhere, by field of AgentConfig.

    `flags` may hold None for flags that were not given.
    """
    here = working_dir or Path.cwd()
    written: dict[str, tuple[Place, object]] = {}
    if config_file is not None:
        folder = config_file.absolute().parent
        for key, value in _read_file(config_file).items():
            if key not in _KEYS:
                raise ConfigError(
                    f"{config_file}: unknown key {key!r}; known are " + ", ".join(sorted(_KEYS)),
                    code="config-key",
                )
            written[key] = (Place(source=str(config_file), key=key, folder=folder), value)
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if not name.startswith(ENVIRONMENT_PREFIX) or name[len(ENVIRONMENT_PREFIX) :] in _ENVIRONMENT_OTHER:
            continue
        key = name[len(ENVIRONMENT_PREFIX) :].lower()
        if key not in _KEYS or key in _ONLY_IN_FILE:
            raise ConfigError(
                f"environment: unknown variable {name}; known are "
                + ", ".join(
                    ENVIRONMENT_PREFIX + known.upper() for known in sorted(_KEYS.keys() - _ONLY_IN_FILE)
                ),
                code="config-key",
            )
        written[key] = (Place(source="environment", key=name, folder=here), value)
    for key, value in (flags or {}).items():
        if value is None or value in ([], ()):
            continue
        flag = "--" + ("label" if key == "labels" else key.replace("_", "-"))
        written[key] = (Place(source="command line", key=flag, folder=here), value)

    missing = [key for key in required if key not in written]
    if missing:
        raise ConfigError(
            "not set: "
            + ", ".join(
                f"{key} (in the file, {ENVIRONMENT_PREFIX}{key.upper()}, or --{key.replace('_', '-')})"
                for key in missing
            ),
            code="config-missing",
        )
    return {_KEYS[key][0]: _KEYS[key][1](value, place) for key, (place, value) in written.items()}


def load_config(
    *,
    config_file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    working_dir: Path | None = None,
) -> AgentConfig:
    def read(required: tuple[str, ...]) -> dict[str, object]:
        return load_values(
            config_file=config_file,
            environment=environment,
            flags=flags,
            working_dir=working_dir,
            required=required,
        )

    state_dir: object = None
    wrong: ConfigError | None = None
    try:
        state_dir = read(()).get("state_dir")
    except ConfigError as error:  # told below, after what is missing
        wrong = error
    enrolled = _enrolled(state_dir)
    try:
        values = enrolled | read(tuple(key for key in _REQUIRED if _KEYS[key][0] not in enrolled))
    except ConfigError as error:
        # What is missing may stand in the state folder, which was not looked into for the mistake.
        if wrong is not None and error.code == "config-missing" and "state_dir" not in error.message:
            raise wrong from None
        raise
    if enrolled and values["device_id"] != enrolled["device_id"]:
        raise ConfigError(
            f"device_id is {values['device_id']!r}, but this state folder was enrolled as "
            f"{enrolled['device_id']!r}: leave it out, or enrol another folder",
            code="config-value",
        )
    return AgentConfig(**values)  # type: ignore[arg-type]  # each parser above gives its field's type


def _enrolled(state_dir: object) -> dict[str, object]:
    """What enrolment told: the defaults of an enrolled state folder, by field of AgentConfig."""
    if not isinstance(state_dir, Path) or not is_enrolled(state_dir):
        return {}
    try:
        return _told(state_dir / ENROLMENT_FILE)
    except ConfigError as error:
        try:
            return _told(state_dir / ENROLMENT_COPY)
        except ConfigError:
            raise ConfigError(f"{error.message}; so is its copy", code=error.code) from None


def is_enrolled(state_dir: Path) -> bool:
    """Also where the disk does not say: then what was told is damaged, and not missing."""
    try:
        (state_dir / ENROLMENT_FILE).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _told(path: Path) -> dict[str, object]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        keys = ["device_id", "server", "broker", "director_key"]
        if "tuf_root" in told:  # a server of an older version tells none
            keys.append("tuf_root")
        place = {key: Place(source=str(path), key=key, folder=path.parent) for key in keys}
        return {_KEYS[key][0]: _KEYS[key][1](told[key], place[key]) for key in keys}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}): enrol again", code="identity-files") from None


assert {name for name, _ in _KEYS.values()} == {field.name for field in fields(AgentConfig)} - {
    "enrolment_problem"
}
