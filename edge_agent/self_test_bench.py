"""Self-tests of several workloads, one after the other: two at once would slow each other down.

Rule: owned by the agent's thread. A test that was stopped while it waited never begins.
"""

from collections import deque

from edge_agent.selftest import SelfTestProcess


class SelfTestBench:
    """`begin` runs a test when its turn comes; `ended` after each result, `tick` from time to time."""

    def __init__(self) -> None:
        self._running: SelfTestProcess | None = None
        self._waiting: deque[SelfTestProcess] = deque()

    def begin(self, process: SelfTestProcess) -> None:
        self._waiting.append(process)
        self.tick()

    def ended(self, process: SelfTestProcess) -> None:
        if process is self._running:
            self._running = None
        self.tick()

    def tick(self) -> None:
        """Begins the next one, once the one before it has ended or was stopped."""
        if self._running is not None and self._running.stopped:
            self._running = None
        while self._running is None and self._waiting:
            process = self._waiting.popleft()
            if not process.stopped:
                self._running = process
                process.start()
