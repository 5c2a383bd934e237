"""Which tasks have not ended, whatever becomes of the drivers that they are given to. Pure; no threads.

Rules that this module keeps:

- Each task that was taken in ends in exactly one ``TaskSucceeded`` or ``TaskFailed``; nothing about it comes
  after that, and nothing comes about a task that was never taken in.
- A driver is told of a task once. The next driver is told of all that have not ended.
- What was cancelled has ended at once. The driver ends it, too, and says so later: that word is swallowed,
  also when the same task was submitted again meanwhile. A driver ends each submission once, in their order.
"""

from __future__ import annotations

from collections import Counter

from cloud.domain.tasks import Task, TaskEvent, TaskFailed, TaskProgress


class OpenTasks:
    """The book of one ``Compute``."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._has_driver = False
        #: Ends that the present driver still owes to submissions that were cancelled.
        self._swallowed: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def driver_came(self) -> list[Task]:
        """What to give to it, in the order in which it was submitted."""
        self._has_driver = True
        return list(self._tasks.values())

    def driver_went(self, message: str) -> list[TaskEvent]:
        """What to tell those who wait; ``message`` is for people."""
        self._has_driver = False
        self._swallowed.clear()
        return [TaskProgress(task_id=task_id, fraction=0.0, message=message) for task_id in self._tasks]

    def submit(self, task: Task) -> bool:
        """Whether the driver must be told: not of a task that it has, and not while there is none."""
        if task.task_id in self._tasks:
            return False
        self._tasks[task.task_id] = task
        return self._has_driver

    def cancel(self, task_id: str) -> TaskFailed | None:
        """How the task ended, or None when it is not open. The driver, if there is one, must be told."""
        if self._tasks.pop(task_id, None) is None:
            return None
        if self._has_driver:
            self._swallowed[task_id] += 1
        return TaskFailed(task_id=task_id, code="cancelled", message="cancelled")

    def hear(self, event: TaskEvent) -> TaskEvent | None:
        """The driver's word as it is passed on, or None."""
        is_end = not isinstance(event, TaskProgress)
        if self._swallowed[event.task_id] > 0:
            self._swallowed[event.task_id] -= is_end
            return None
        if event.task_id not in self._tasks:
            return None
        if is_end:
            del self._tasks[event.task_id]
        return event

    def clear(self) -> None:
        """Forget all of them."""
        self._tasks.clear()
        self._swallowed.clear()
        self._has_driver = False
