"""Keeps the certificate of this device good for as long as the agent runs.

Rules:
- Renewed at two thirds of its life, with a new key, over the connection that the present one opens. A fleet
  that was enrolled at one moment does not renew at one: each device waits a random while longer.
- A device that was away until its certificate expired enrols again by itself: the old key vouches for the
  new one.
- What was issued is on the disk before it is used. A failure leaves the present certificate in place; it is
  tried again with back-off, said once at WARNING and repeated at DEBUG.
- Clocks are set while agents run, by years and in both directions. So the certificate alone says from when it
  is due, a failure is followed by a pause and not by a date, and one that is due as soon as it came (a clock
  far ahead) is left alone for an hour: neither does a wrong clock end renewals for good, nor make a flood.
- Somebody may enrol the device anew while the agent runs. What enrolment left is looked at every ten seconds,
  and taken without a restart, but for addresses and another name, which count from the next start.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc

from edge_agent.config import ENROLMENT_FILE
from edge_agent.identity import Identity, load_identity, save_certificate
from edgeloop.backoff import Backoff
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError, TransientError, error_from_grpc
from edgeloop.identity import certificate_request, facts, new_private_key, read_certificate, vouch
from edgeloop.v1 import enrolment_service_pb2 as pb
from edgeloop.v1.enrolment_service_pb2_grpc import EnrolmentServiceStub, RenewalServiceStub

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20.0
#: The random while, as a share of the certificate's life.
_SPREAD_RATIO = 0.05
_MAX_WAIT_S = 3600.0  # clocks are set while agents run
_LOOK_S = 10.0


class Renewer:
    """``on_renewed`` is called on the renewer's thread, when a new certificate is on the disk."""

    def __init__(
        self,
        state_dir: Path,
        identity: Identity,
        *,
        server: str,
        on_renewed: Callable[[Identity], None],
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.time,
        look_s: float = _LOOK_S,
    ) -> None:
        self._state_dir = state_dir
        self._identity = identity
        self._server = server
        self._on_renewed = on_renewed
        self._backoff = backoff or Backoff(1.0, 300.0, random.Random())
        self._clock = clock
        self._look_s = look_s
        self._complained = False
        # What the identity in use came from, and what was looked at last.
        self._enrolled = self._seen = self._enrolment()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def start(self) -> None:
        """Watches the clock from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stops; a call that is under way is left to its end."""
        self._stop.set()

    def _wait(self, seconds: float) -> bool:
        """Whether it was stopped meanwhile."""
        return self._stop.wait(seconds)

    def _run(self) -> None:
        due_s, pause_s = self._due_s(), 0.0
        while not self._rest(pause_s or min(due_s - self._clock(), _MAX_WAIT_S)):
            pause_s = 0.0
            try:
                if self._taken_anew():
                    self._complained = False
                    self._backoff.reset()
                    due_s = self._due_s()
                if self._clock() < due_s:
                    continue
                self._identity = self._renewed()
                self._on_renewed(self._identity)
            except EdgeloopError as error:
                self._complain(error)
                if isinstance(error, RejectedError | ConfigError):
                    self._backoff.to_max()
                pause_s = self._backoff.next()
                continue
            except Exception:  # a bug here must not leave the device without certificate for good
                logger.exception("the certificate could not be renewed in an unforeseen way")
                pause_s = self._backoff.next()
                continue
            self._complained = False
            self._backoff.reset()
            due_s = self._due_s()
            logger.info("certificate renewed serial=%s", self._identity.facts.serial)
            if due_s <= self._clock():
                logger.warning("the new certificate is due at once: this device's clock is wrong, set it")
                pause_s = _MAX_WAIT_S

    def _rest(self, seconds: float) -> bool:
        """Whether it was stopped meanwhile. Ends early when somebody enrolled the device."""
        while seconds > self._look_s:
            if self._wait(self._look_s):
                return True
            seconds -= self._look_s
            if self._enrolment() != self._seen:
                return False
        return self._wait(seconds)

    def _enrolment(self) -> tuple[int, int] | None:
        """Another one for each enrolment: the file that it writes last is always a new file."""
        try:
            found = (self._state_dir / ENROLMENT_FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _taken_anew(self) -> bool:
        """Whether another identity is in use from now on, since somebody enrolled the device.

        Raises for one that cannot be used, now and whenever it is tried again: nothing is renewed over it.
        """
        self._seen = enrolled = self._enrolment()
        if enrolled == self._enrolled:
            return False
        found = load_identity(self._state_dir)
        if found is None or found.certificate_pem == self._identity.certificate_pem:
            self._enrolled = enrolled
            return False
        if found.device_id != self._identity.device_id:
            raise ConfigError(
                f"{self._state_dir} was enrolled as {found.device_id}, and this agent runs as "
                f"{self._identity.device_id}: start it again",
                code="identity-other-device",
            )
        self._on_renewed(found)
        self._identity, self._enrolled = found, enrolled
        logger.info(
            "enrolled anew serial=%s: it counts from the next connection, addresses from the next start",
            found.facts.serial,
        )
        return True

    def _due_s(self) -> float:
        known = self._identity.facts
        life_s = known.not_after_s - known.not_before_s
        return known.renew_at_s + random.random() * _SPREAD_RATIO * life_s

    def _renewed(self) -> Identity:
        present = self._identity
        key_pem = new_private_key()
        request = certificate_request(key_pem, present.device_id)
        try:
            if present.facts.not_after_s > self._clock():
                issued = self._renew(present, request)
            else:
                issued = self._re_enrol(present, request)
        except grpc.RpcError as error:
            raise error_from_grpc(error) from None
        found = facts(read_certificate(issued.certificate_pem))
        if found.name != present.device_id:
            raise RejectedError(
                f"the server gave a certificate for {found.name}: it is not used", code="certificate"
            )
        if self._enrolment() != self._enrolled:
            raise TransientError("somebody enrolled the device meanwhile", code="enrolled-anew")
        save_certificate(self._state_dir, key_pem, issued.certificate_pem)
        return replace(present, facts=found, key_pem=key_pem, certificate_pem=issued.certificate_pem)

    def _renew(self, present: Identity, request: bytes) -> pb.IssuedCertificate:
        with grpc.secure_channel(self._server, present.fleet_credentials()) as channel:
            answer: pb.RenewResponse = RenewalServiceStub(channel).Renew(
                pb.RenewRequest(certificate_request=request), timeout=_TIMEOUT_S
            )
        return answer.issued

    def _re_enrol(self, present: Identity, request: bytes) -> pb.IssuedCertificate:
        logger.warning("the certificate has expired: enrolling again at %s", present.enrol_server)
        asked = pb.ReEnrolRequest(
            certificate_pem=present.certificate_pem,
            certificate_request=request,
            signature=vouch(present.key_pem, request),
        )
        credentials = grpc.ssl_channel_credentials(present.ca_pem)
        with grpc.secure_channel(present.enrol_server, credentials) as channel:
            answer: pb.ReEnrolResponse = EnrolmentServiceStub(channel).ReEnrol(asked, timeout=_TIMEOUT_S)
        return answer.issued

    def _complain(self, error: EdgeloopError) -> None:
        level = logging.DEBUG if self._complained else logging.WARNING
        self._complained = True
        until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self._identity.facts.not_after_s))
        logger.log(
            level,
            "the certificate, good until %s UTC, cannot be renewed, %s: %s; will try again",
            until,
            error.code,
            error,
        )
