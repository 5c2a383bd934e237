"""Whether what was fetched was released: asked between the fetch and the self-test.

Rules:
- With a TUF root configured, nothing goes on to be verified and tested but an artifact that is a current
  target, by digest, length and manifest. What serves already is not asked about: it goes on serving.
- Metadata is subscribed to while there is something to decide, each file by its exact topic, and forgotten
  after. The TUF library is imported then and not before.
- Metadata that is wrong (rolled back, expired, mixed, signed by too few, too large) decides nothing about the
  deployment: it is told to the cloud, and the next good metadata goes on from there. An artifact that good
  metadata does not name is rejected, once a newer word has had the time to come.
- No message is kept that is longer than its role may be, and no file that was not asked for.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edge_agent.config import AgentConfig
from edge_agent.known_time import KnownTime
from edge_agent.update_events import Ignored
from edge_agent.update_state import Slot
from edgeloop import released, topics
from edgeloop.backoff import Backoff
from edgeloop.errors import ConfigError, RejectedError, TransientError
from edgeloop.released import TIMESTAMP_FILE

logger = logging.getLogger(__name__)

FOLDER = "tuf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What the gate is asked about."""

    slot: Slot
    size_bytes: int


class Wire(Protocol):
    def subscribe(self, topic: str) -> None: ...
    def unsubscribe(self, topic: str) -> None: ...
    def request_metadata(self) -> None: ...


class Gate(Protocol):
    """What the acquisition asks; see `ReleaseGate`."""

    @property
    def deadline_s(self) -> float | None: ...
    def begin(self, candidate: Candidate) -> None: ...
    def stop(self) -> None: ...
    def on_message(self, topic: str, payload: bytes) -> bool | RejectedError | None: ...
    def on_tick(self) -> bool | RejectedError | None: ...


class ShutGate:
    """Decides nothing: for an agent that does not know whether it has a root, or which."""

    deadline_s = None

    def begin(self, candidate: Candidate) -> None:
        """It waits."""

    def stop(self) -> None:
        """It is not asked for any more."""

    def on_message(self, topic: str, payload: bytes) -> None:
        """Nobody listens for any."""

    def on_tick(self) -> None:
        """Nor does time decide."""


class ReleaseGate:
    """Owned by the agent's thread. Methods that may decide return True (released), a RejectedError, or None
    while it is not decided."""

    def __init__(
        self,
        state_dir: Path,
        *,
        root: bytes,
        wire: Wire,
        known_time: KnownTime,
        # Something is wrong with the metadata, and the deployment waits.
        on_trouble: Callable[[Ignored], None],
        timeout_s: float,
        backoff: Backoff,
        monotonic: Callable[[], float],
    ) -> None:
        self._folder = state_dir / FOLDER
        self._root = root
        self._wire = wire
        self._time = known_time
        self._on_trouble = on_trouble
        self._timeout_s = timeout_s
        self._backoff = backoff
        self._monotonic = monotonic
        self._candidate: Candidate | None = None
        self._wanted: set[str] = set()
        self._received: dict[str, bytes] = {}
        self._deadline_s = 0.0
        self._lacks = ""
        self._unsigned: RejectedError | None = None

    @property
    def deadline_s(self) -> float | None:
        """When `on_tick` has something to do."""
        return self._deadline_s if self._candidate is not None else None

    def begin(self, candidate: Candidate) -> None:
        """Ask for the metadata; the answer comes by `on_message` or `on_tick`."""
        from edge_agent import tuf_client

        self.stop()
        self._candidate = candidate
        self._backoff.reset()
        self._wait()
        # The root first: a timestamp may be signed by a key that only the next root names.
        self._want(f"{max(1, tuf_client.newest_root(self._folder)) + 1}.root.json")
        self._want(TIMESTAMP_FILE)
        self._lacks = TIMESTAMP_FILE

    def stop(self) -> None:
        """Forget what is under way."""
        for name in self._wanted:
            self._wire.unsubscribe(topics.tuf(name))
        self._wanted.clear()
        self._received.clear()
        self._candidate = None
        self._unsigned = None

    def on_message(self, topic: str, payload: bytes) -> bool | RejectedError | None:
        try:
            name = topics.tuf_of(topic)
        except RejectedError:
            return None
        if self._candidate is None or name not in self._wanted or not payload:
            return None
        if len(payload) > released.max_bytes(name):
            self._trouble(
                RejectedError(
                    f"{name} has {len(payload)} bytes, at most {released.max_bytes(name)} are read: find who "
                    "else publishes on this topic",
                    code="tuf-too-large",
                )
            )
            return None
        if self._received.get(name) == payload:
            return None
        self._received[name] = payload
        self._wait()
        return self._decide()

    def on_tick(self) -> bool | RejectedError | None:
        if self._candidate is None or self._monotonic() < self._deadline_s:
            return None
        if self._unsigned is not None:
            error = self._unsigned
            self.stop()
            return error
        self._deadline_s = self._monotonic() + self._timeout_s + self._backoff.next()
        logger.info("asking for TUF metadata again lacking=%s", self._lacks or "a newer timestamp")
        # Whatever became of the subscriptions: a new one brings what is retained.
        for name in sorted(self._wanted):
            self._wire.subscribe(topics.tuf(name))
        self._wire.request_metadata()
        # Time passes, and a full disk is emptied.
        return self._decide() if not self._lacks else None

    # --- inside -------------------------------------------------------------------------------------

    def _want(self, name: str) -> None:
        if name not in self._wanted:
            self._wanted.add(name)
            self._wire.subscribe(topics.tuf(name))

    def _wait(self) -> None:
        self._deadline_s = self._monotonic() + self._timeout_s

    def _trouble(self, error: RejectedError) -> None:
        assert self._candidate is not None
        slot = self._candidate.slot
        self._on_trouble(
            Ignored(generation=slot.generation, digest=slot.digest, code=error.code, message=error.message)
        )

    def _decide(self) -> bool | RejectedError | None:
        from edge_agent import tuf_client

        candidate = self._candidate
        assert candidate is not None
        self._unsigned = None
        if TIMESTAMP_FILE not in self._received:
            return None
        self._lacks = ""
        try:
            target = tuf_client.lookup(
                self._folder,
                self._root,
                self._received,
                released.target_path(candidate.slot.digest),
                now_s=self._time.now_s(),
            )
        except tuf_client.NotReceivedError as missing:
            self._lacks = missing.name
            self._want(missing.name)
            return None
        except RejectedError as error:
            self._trouble(error)
            return None
        except TransientError as error:
            logger.error("%s; a deployment waits for it", error)
            return None
        except ConfigError as error:
            self.stop()
            return RejectedError(error.message, code=error.code)
        finally:
            # The next root may come while this waits.
            self._want(f"{max(1, tuf_client.newest_root(self._folder)) + 1}.root.json")
        slot = candidate.slot
        manifests = target.custom.get(released.MANIFESTS_FIELD, ()) if target and target.custom else ()
        if (
            target is None
            or target.hashes.get("sha256") != slot.digest
            or target.length != candidate.size_bytes
            or slot.manifest_digest not in manifests
        ):
            self._unsigned = RejectedError(
                f"artifact {slot.digest[:12]} with manifest {slot.manifest_digest[:12]} was never released: "
                "nothing that TUF's targets role signed names it",
                code="tuf-unsigned-target",
            )
            return None
        logger.info("released digest=%s", slot.digest[:12])
        self.stop()
        return True


def gate_for(
    config: AgentConfig,
    *,
    wire: Wire,
    known_time: KnownTime,
    on_trouble: Callable[[Ignored], None],
    rng: random.Random,
) -> Gate | None:
    """As configured, None where no root is. Several gates of a device share one memory of trusted metadata,
    and each waits for its own deployment: one that nobody released holds up no other."""
    if config.enrolment_problem:
        return ShutGate()
    if config.tuf_root is None:
        return None
    longest_s = max(300.0, config.block_timeout_s)
    return ReleaseGate(
        config.state_dir,
        root=config.tuf_root,
        wire=wire,
        known_time=known_time,
        on_trouble=on_trouble,
        timeout_s=config.block_timeout_s,
        backoff=Backoff(config.block_timeout_s, longest_s, rng),
        monotonic=time.monotonic,
    )
