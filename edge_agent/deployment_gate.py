"""What may pass from the device's deployment topic to the update rules.

Rules:
- Nothing passes but what a director key that counts now has signed for this device and that has not expired,
  judged by the time that it is at least. Everything else is refused, each for a reason of its own, and
  changes nothing.
- A refusal is told to the cloud: once for each message and reason, and each reason of each workload at most
  every ten seconds, so that a flood of refusals costs neither the disk nor the link, and that of one workload
  hides none of another. The log has every one.
- What an unknown key signed is kept aside, and tried again when the keys change: which of the two topics is
  heard first does not matter.
- What has expired is kept aside too, and judged again when it turns out to be earlier than the device took it
  to be: a clock that was ahead for a while costs no deployment.
- The chain of key changes is on the disk before anything is accepted by it.
"""

import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from edge_agent.journal import write_atomically
from edge_agent.known_time import KnownTime
from edge_agent.update_state import Slot
from edgeloop import topics, trust
from edgeloop.director_keys import TrustedKeys
from edgeloop.errors import RejectedError
from edgeloop.v1 import deployment_pb2

logger = logging.getLogger(__name__)

CHAIN_FILE = "director-keys.bin"
QUIET_S = 10.0
MAX_REMEMBERED = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """`generation` is 0, and `digest` that of the message, unless a trusted signature names them."""

    generation: int
    digest: str
    code: str
    message: str
    #: Of the device's own that it concerns; empty where that is none, or not known.
    workload: str = ""


def load_keys(state_dir: Path, configured: tuple[bytes, ...]) -> TrustedKeys:
    """The configured keys, and what their changes have made of them since."""
    keys = TrustedKeys.configured(*configured)
    try:
        return keys.follow((state_dir / CHAIN_FILE).read_bytes())
    except FileNotFoundError:
        return keys
    except (OSError, RejectedError) as error:
        # The chain is retained at the broker too.
        logger.error("stored director keys are left aside reason=%s", error)
        return keys


class DeploymentGate:
    """Owned by the agent's thread."""

    def __init__(
        self,
        state_dir: Path,
        *,
        device_id: str,
        configured_keys: tuple[bytes, ...],
        known_time: KnownTime,
        on_refused: Callable[[Refusal], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._state_dir = state_dir
        self._device_id = device_id
        self._time = known_time
        self._on_refused = on_refused
        self._monotonic = monotonic
        self.keys = load_keys(state_dir, configured_keys)
        # The newest on each topic.
        self._unknown: dict[str, bytes] = {}
        # With the time until which it is good.
        self._expired: dict[str, tuple[float, bytes]] = {}
        self._told: dict[tuple[str, str, str], None] = {}
        # Codes are few, and so are the workloads that a device hosts.
        self._told_at_s: dict[tuple[str, str], float] = {}

    def open(self, payload: bytes, *, topic: str = "", hosted: Collection[str] = ()) -> Slot | None:
        """The slot that it names, or None once it has been refused.

        ``hosted`` are the workloads that it may be for; empty: any. ``topic`` is one of the device's own.
        """
        try:
            deployment = trust.open_deployment(
                payload, self.keys.ring, device_id=self._device_id, now_s=self._time.now_s()
            )
        except RejectedError as error:
            message = error.message
            if error.code == "signature-unknown-key":
                self._unknown[topic] = payload
            elif error.code == "deployment-expired":
                self._expired[topic] = (trust.timestamp_s(_inner(payload).expire_time), payload)
                message += f"; {self._time.describe()}"
            of_topic = next(iter(hosted)) if len(hosted) == 1 else ""
            self.refuse(self._named(payload, error.code, message, of_topic))
            return None
        self._unknown.pop(topic, None)
        self._expired.pop(topic, None)
        if hosted and deployment.workload not in hosted:
            self.refuse(
                Refusal(
                    generation=deployment.generation,
                    digest=deployment.digest,
                    code="deployment-wrong-workload",
                    message=f"it is for workload {deployment.workload}, and may be for {', '.join(hosted)} "
                    "here: deploy it on its own topic, or add a [[workload]] table",
                    workload=next(iter(hosted)) if len(hosted) == 1 else "",
                )
            )
            return None
        if deployment.HasField("issue_time"):
            self._time.raise_to(trust.timestamp_s(deployment.issue_time))
        return Slot(
            generation=deployment.generation,
            digest=deployment.digest,
            manifest_digest=deployment.manifest_digest,
            workload=deployment.workload,
            profile=deployment.profile,
            signed=payload,
        )

    def fresh_again(self) -> dict[str, bytes]:
        """Takes out, by topic, what had expired and, by what is known of the time now, has not."""
        if not self._expired:
            return {}
        now_s = self._time.now_s()
        found = {topic: raw for topic, (until_s, raw) in self._expired.items() if now_s <= until_s}
        for topic in found:
            del self._expired[topic]
        return found

    def on_chain(self, raw: bytes) -> dict[str, bytes]:
        """Takes up changed keys; returns the deployments that were waiting for them, by topic."""
        try:
            keys = self.keys.follow(raw)
        except RejectedError as error:
            self.refuse(_unnamed(raw, error.code, error.message))
            return {}
        if keys.version == self.keys.version:
            return {}
        try:
            write_atomically(self._state_dir / CHAIN_FILE, raw)
        except OSError as error:
            logger.error("changed director keys cannot be kept and wait reason=%s", error.strerror)
            return {}
        self.keys = keys
        logger.info("director keys version=%d trusted=%s", keys.version, ",".join(keys.ring))
        waiting, self._unknown = self._unknown, {}
        return waiting

    def refuse(self, refusal: Refusal) -> None:
        """Log it, and tell it once."""
        logger.error("deployment refused code=%s reason=%s", refusal.code, refusal.message)
        kind = (refusal.code, refusal.workload)
        key, now_s = (*kind, refusal.digest), self._monotonic()
        if key in self._told or now_s < self._told_at_s.get(kind, float("-inf")) + QUIET_S:
            return
        self._told_at_s[kind] = now_s
        self._told[key] = None
        if len(self._told) > MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        self._on_refused(refusal)

    def _named(self, payload: bytes, code: str, message: str, workload: str) -> Refusal:
        """Believes what is inside only where the signature held: the code says that it did."""
        if code == "deployment-expired":
            inner = _inner(payload)
            return Refusal(
                generation=inner.generation,
                digest=topics.check_digest(inner.digest),
                code=code,
                message=message,
                workload=workload,
            )
        return _unnamed(payload, code, message, workload)


def _inner(payload: bytes) -> deployment_pb2.Deployment:
    """Of one whose signature held."""
    return deployment_pb2.Deployment.FromString(
        deployment_pb2.SignedDeployment.FromString(payload).deployment
    )


def _unnamed(payload: bytes, code: str, message: str, workload: str = "") -> Refusal:
    digest = hashlib.sha256(payload).hexdigest()
    return Refusal(generation=0, digest=digest, code=code, message=message, workload=workload)
