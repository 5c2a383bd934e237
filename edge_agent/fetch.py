"""Which topics one fetch listens to, and when it asks for what does not come. No I/O, no clock reads.

Rules:
- Blocks are pulled: at most `window` exact topics are subscribed at a time, and a topic is unsubscribed as
  soon as its content is verified. Never a wildcard: brokers drop retained messages of those silently.
- The manifest comes first, checked against the signed deployment in every field that the two share.
- The broker is a cache. What does not come in time is asked for on the device's request topic, again and
  again with backoff: a broker that lost its store, or a cloud that is away, ends nothing. What is on its way
  is not asked for, however long it takes on a slow link: it would only come twice. Only where bytes have come
  for longer than it takes at the minimum rate, and an hour, are they taken for something else.
- A sender that never ends, and one that trickles, are cut off: once more has come for a fetch than twice the
  artifact and a window of blocks ("fetch-too-much"), and once the blocks that came since the first one fall
  behind a minimum rate ("fetch-too-slow"). Only time with a broker counts, and silence before the first block
  is no sender at all.
- Bytes that do not match their digest are asked for again a bounded number of times, then the deployment is
  refused: "block-altered" or "manifest-altered". A manifest that matches but may not run here is refused at
  once. Empty payloads are the broker's way to say that nothing is retained, and mean nothing.
"""

import itertools
import random
from collections import deque
from dataclasses import dataclass

from edge_agent.update_state import Slot
from edgeloop import artifact, topics
from edgeloop.artifact import BlockAssembler
from edgeloop.backoff import Backoff
from edgeloop.errors import RejectedError
from edgeloop.v1 import artifact_pb2

MAX_BLOCKS_PER_REQUEST = 64
MAX_REQUEST_INTERVAL_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchSettings:
    window: int = 4
    # What has not come after this long is asked for.
    block_timeout_s: float = 5.0
    # Times that altered bytes are asked for again.
    max_altered: int = 3
    # From the first block on: what may pass before the rate counts, and the rate.
    slow_grace_s: float = 3600.0
    min_rate_bytes_s: float = 64.0
    # A delta of which no block has come for so long, with a broker there, is given up for the artifact.
    delta_silence_s: float = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Subscribe:
    topic: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsubscribe:
    topic: str


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepManifest:
    raw: bytes
    manifest: artifact_pb2.Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepBlock:
    n: int
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """To be published on the device's request topic."""

    manifest: bool = False
    blocks: tuple[int, ...] = ()
    # Whose blocks; empty: the artifact's own.
    digest: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
    """Every block is kept: assemble."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refuse:
    code: str
    message: str


FetchEffect = Subscribe | Unsubscribe | KeepManifest | KeepBlock | Request | Complete | Refuse


class Fetcher:
    """One fetch of one slot. Methods return what is to be done, in order.

    A KeepManifest is followed by `begin_blocks` once the shell has stored it and looked up which blocks
    are there from an earlier run.
    """

    def __init__(self, slot: Slot, settings: FetchSettings, rng: random.Random) -> None:
        self.slot = slot
        # Under which the blocks lie: the artifact's own, or its delta's.
        self._digest = slot.digest
        self._settings = settings
        self._backoff = Backoff(
            settings.block_timeout_s, max(MAX_REQUEST_INTERVAL_S, settings.block_timeout_s), rng
        )
        self._assembler: BlockAssembler | None = None
        # What is subscribed, by topic, and the blocks that come after it.
        self._waiting: dict[str, int] = {}
        self._ahead: deque[int] = deque()
        self._num_altered: dict[int | None, int] = {}
        self._deadline_s = 0.0
        # Since when nothing came whole.
        self._waiting_since_s = 0.0
        self._ended = False
        self._received_bytes = 0
        self._fed_bytes = 0
        # Since the first block came, while there was a broker.
        self._fed_s: float | None = None
        self._counted_at_s = 0.0
        self._connected = True

    @property
    def deadline_s(self) -> float | None:
        """When `on_tick` has something to do; None once the fetch has ended."""
        return None if self._ended else self._deadline_s

    @property
    def progress(self) -> float:
        """0 to 1."""
        return self._assembler.progress if self._assembler else 0.0

    @property
    def topics(self) -> tuple[str, ...]:
        """What is subscribed now."""
        if self._ended:
            return ()
        if self._assembler is None:
            return (topics.manifest(self.slot.manifest_digest),)
        return tuple(self._waiting)

    def begin_manifest(self, now_s: float) -> list[FetchEffect]:
        self._wait(now_s)
        return [Subscribe(topic=topic) for topic in self.topics]

    def begin_blocks(self, assembler: BlockAssembler, now_s: float, *, digest: str = "") -> list[FetchEffect]:
        """Goes on with what the assembler misses; Complete at once when that is nothing.

        `digest` names a delta whose blocks are fetched in place of the artifact's.
        """
        self._assembler = assembler
        self._digest = digest or self.slot.digest
        self._waiting = {}
        self._ahead = deque(assembler.missing())
        self._backoff.reset()
        return self._fill(now_s)

    def stop(self) -> list[FetchEffect]:
        effects: list[FetchEffect] = [Unsubscribe(topic=topic) for topic in self.topics]
        self._ended = True
        return effects

    def on_message(self, topic: str, payload: bytes, now_s: float) -> list[FetchEffect]:
        """Anything that is not waited for was late or doubled, and does nothing but count."""
        if self._ended:
            return []
        self._received_bytes += len(payload)
        if self._received_bytes > self._max_received_bytes:
            return self._refuse(
                RejectedError(
                    f"{self._received_bytes} bytes have come for a fetch of at most "
                    f"{self._max_received_bytes}: find who else publishes under this artifact's topics, and "
                    "deploy again",
                    code="fetch-too-much",
                )
            )
        if not payload:
            return []
        if self._assembler is None:
            return self._on_manifest(payload, now_s) if topic in self.topics else []
        if topic not in self._waiting:
            return []
        return self._on_block(self._assembler, topic, payload, now_s)

    def on_tick(self, now_s: float, fed_at_s: float | None = None) -> list[FetchEffect]:
        """`fed_at_s`: when bytes of a message that is not whole yet came last; None where there is none."""
        if self._ended:
            return []
        if self._is_too_slow(now_s):
            return self._refuse(
                RejectedError(
                    f"the artifact comes at less than {self._settings.min_rate_bytes_s:g} bytes a second: "
                    "mend the link or the sender, and deploy again",
                    code="fetch-too-slow",
                )
            )
        if now_s < self._deadline_s:
            return []
        if fed_at_s is not None and self._is_coming(now_s, fed_at_s):
            self._deadline_s = fed_at_s + self._settings.block_timeout_s
            return []
        self._deadline_s = now_s + self._settings.block_timeout_s + self._backoff.next()
        return [self._request()]

    def on_connected(self, connected: bool, now_s: float) -> None:
        """The broker came or went: time without one is nobody's slowness."""
        self._count_fed(now_s)
        self._connected = connected

    # --- inside -------------------------------------------------------------------------------------

    @property
    def _max_received_bytes(self) -> int:
        manifest_bytes = (self._settings.max_altered + 2) * artifact.MAX_MANIFEST_BYTES
        if self._assembler is None:
            return manifest_bytes
        window_bytes = self._settings.window * (self._settings.max_altered + 2) * self._assembler.size_of(0)
        return manifest_bytes + 2 * self._assembler.size_bytes + window_bytes

    def _count_fed(self, now_s: float) -> None:
        if self._fed_s is not None and self._connected:
            self._fed_s += max(0.0, now_s - self._counted_at_s)
        self._counted_at_s = now_s

    def _is_too_slow(self, now_s: float) -> bool:
        self._count_fed(now_s)
        settings, assembler = self._settings, self._assembler
        if self._fed_s is None or assembler is None or self._fed_s <= settings.slow_grace_s:
            return False
        return self._fed_bytes < (self._fed_s - settings.slow_grace_s) * settings.min_rate_bytes_s

    def _is_coming(self, now_s: float, fed_at_s: float) -> bool:
        """Whether to wait for it; not for ever, since it may be a trickle of something else."""
        settings = self._settings
        # Whatever block of it is under way, none is larger than the first.
        size_bytes = self._assembler.size_of(0) if self._assembler else artifact.MAX_MANIFEST_BYTES
        longest_s = settings.slow_grace_s + size_bytes / settings.min_rate_bytes_s
        return now_s < fed_at_s + settings.block_timeout_s and now_s < self._waiting_since_s + longest_s

    def _wait(self, now_s: float) -> None:
        self._waiting_since_s = now_s
        self._deadline_s = now_s + self._settings.block_timeout_s

    def _request(self) -> Request:
        if self._assembler is None:
            return Request(manifest=True)
        # Those in the window first; the others are likely gone too, and one message serves for all.
        wanted = itertools.chain(self._waiting.values(), self._ahead)
        return self._request_blocks(tuple(itertools.islice(wanted, MAX_BLOCKS_PER_REQUEST)))

    def _request_blocks(self, blocks: tuple[int, ...]) -> Request:
        return Request(blocks=blocks, digest="" if self._digest == self.slot.digest else self._digest)

    def _refuse(self, error: RejectedError) -> list[FetchEffect]:
        return [*self.stop(), Refuse(code=error.code, message=error.message)]

    def _altered(self, what: int | None, error: RejectedError, now_s: float) -> list[FetchEffect]:
        self._num_altered[what] = self._num_altered.get(what, 0) + 1
        if self._num_altered[what] > self._settings.max_altered:
            return self._refuse(error)
        self._deadline_s = now_s + self._settings.block_timeout_s + self._backoff.next()
        return [Request(manifest=True) if what is None else self._request_blocks((what,))]

    def _on_manifest(self, raw: bytes, now_s: float) -> list[FetchEffect]:
        try:
            manifest = check_manifest(self.slot, raw)
        except RejectedError as error:
            if error.code == "manifest-altered":
                return self._altered(None, error, now_s)
            return self._refuse(error)
        return [
            Unsubscribe(topic=topics.manifest(self.slot.manifest_digest)),
            KeepManifest(raw=raw, manifest=manifest),
        ]

    def _on_block(
        self, assembler: BlockAssembler, topic: str, payload: bytes, now_s: float
    ) -> list[FetchEffect]:
        n = self._waiting[topic]
        try:
            assembler.accept(n, payload)
        except RejectedError as error:
            return self._altered(n, error, now_s)
        del self._waiting[topic]
        self._count_fed(now_s)
        self._fed_s = self._fed_s or 0.0
        self._fed_bytes += len(payload)
        self._backoff.reset()
        # Left first: where the disk does not take it, nobody else leaves its topic.
        return [Unsubscribe(topic=topic), KeepBlock(n=n, data=payload), *self._fill(now_s)]

    def _fill(self, now_s: float) -> list[FetchEffect]:
        assert self._assembler is not None
        if self._assembler.complete:
            self._ended = True
            return [Complete()]
        self._wait(now_s)
        new: list[FetchEffect] = []
        while self._ahead and len(self._waiting) < self._settings.window:
            n = self._ahead.popleft()
            topic = topics.block(self._digest, n)
            self._waiting[topic] = n
            new.append(Subscribe(topic=topic))
        return new


def check_manifest(slot: Slot, raw: bytes) -> artifact_pb2.Manifest:
    """The manifest that this slot names, fit for this device. Raises RejectedError."""
    manifest = artifact.parse_manifest(raw, expected_digest=slot.manifest_digest)
    check_fits(slot, manifest)
    return manifest


def check_fits(slot: Slot, manifest: artifact_pb2.Manifest) -> None:
    if manifest.digest != slot.digest:
        raise RejectedError(
            f"the manifest is of artifact {manifest.digest[:12]}, the deployment wants {slot.digest[:12]}",
            code="manifest-wrong-artifact",
        )
    artifact.check_target(manifest, slot.workload, slot.profile)
