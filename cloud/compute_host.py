"""Brings the cluster up beside everything else, and up again when it cannot be had or fails us.

The control plane serves at once; jobs wait, and say for what, until the cluster is there. ``ready`` is the
cluster while it can be used and None otherwise.
"""

from __future__ import annotations

import logging
import random
import threading
from typing import Protocol

from cloud.job_parts import Compute
from edgeloop.backoff import Backoff

logger = logging.getLogger(__name__)

#: The setting ``compute`` of the control plane that acts, in the store: others answer people, too.
COMPUTE_KEY = "acting-compute"

#: How old the description of a cluster gets: machines join and leave, and a driver of Ray may be lost.
DESCRIBE_INTERVAL_S = 1.0


class StartableCompute(Compute, Protocol):
    """cloud.jobs.remote.RemoteCompute. ``start`` blocks for seconds, and ``stop`` from another thread ends
    that; ``stop`` may be followed by ``start``. ``describe`` returns at once.
    """

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def describe(self) -> str: ...


class ComputeHost:
    """One thread that owns the cluster's life."""

    def __init__(
        self,
        compute: StartableCompute,
        *,
        backoff: Backoff | None = None,
        describe_interval_s: float = DESCRIBE_INTERVAL_S,
    ) -> None:
        self._compute = compute
        self._describe_interval_s = describe_interval_s
        self._backoff = backoff or Backoff(1.0, 60.0, random.Random())
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self.ready: Compute | None = None
        #: What the cluster is, or what is waited for.
        self.message = "the cluster is starting"

    def start(self) -> None:
        """Returns at once."""
        self._thread.start()

    def lost(self) -> None:
        """The cluster does not answer any more: bring it up again."""
        self.ready = None
        self.message = "the cluster was lost and is started again"
        self._lost.set()

    def stop(self, timeout_s: float = 20.0) -> None:
        """End the cluster, or leave it when it is not ours."""
        self._stopping.set()
        self._lost.set()
        if self._thread.is_alive():
            if self.ready is None:
                self._compute.stop()  # a start under way is not waited for
            self._thread.join(timeout_s)

    def describe(self) -> str:
        """For people; never waits for the cluster."""
        return self.message

    def _described(self) -> str:
        try:
            return self._compute.describe()
        except Exception:
            logger.exception("the cluster does not describe itself")
            return "a cluster"

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._compute.start()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                if self._stopping.is_set():
                    return
                self.message = f"the cluster cannot be started: {error}"
                delay_s = self._backoff.next()
                logger.error("%s; trying again in %.0f s", self.message, delay_s)
                self._stopping.wait(delay_s)
                continue
            self._backoff.reset()
            self.message = self._described()
            self.ready = self._compute
            while not self._lost.wait(self._describe_interval_s):
                message = self._described()
                if not self._lost.is_set():
                    self.message = message
            self._lost.clear()
            self.ready = None
            try:
                self._compute.stop()
            except Exception:
                logger.exception("the cluster could not be stopped cleanly")
            if not self._stopping.is_set():
                self._stopping.wait(self._backoff.next())


class NoCompute:
    """Stands in with ``compute = none``: nothing is ever built."""

    ready: Compute | None = None
    message = "this control plane was started without compute (--compute none)"

    def start(self) -> None:
        """Nothing to start."""

    def lost(self) -> None:
        """Nothing to lose."""

    def stop(self, timeout_s: float = 0.0) -> None:
        """Nothing to stop."""

    def describe(self) -> str:
        """For people."""
        return "none"
