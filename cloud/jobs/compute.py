"""Hands tasks to Ray and tells what became of them: inside of the driver's process (cloud.jobs.driver).

Guarantees:

- A task that runs is not started a second time; a task that finished, in this process or before it was
  killed, is answered from its result without running. Tasks that want the same teacher, or the same elastic
  family, share one training.
- Each submitted task ends in exactly one ``TaskSucceeded`` or ``TaskFailed``; no progress comes after it.
  A task that failed or was cancelled may be submitted again, and then runs again. All of them end in the
  order in which they were submitted where they have the same id.
- Losing a worker costs its own task an attempt, no more. Losing Ray as a whole is told by ``poll``, and costs
  what runs: whoever drives ends this process, and the next one is given what was unfinished
  (cloud.jobs.remote). Losing this process costs nothing that was finished. Each time, a teacher goes on
  after its last whole epoch.

It belongs to one thread, and any call may wait for Ray, or end the process when Ray's native code aborts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud.domain.tasks import StudentTask, Task, TaskEvent, TaskFailed, TaskProgress, TaskSucceeded
from cloud.jobs.cluster import Cluster
from cloud.jobs.node import DRIVER_ROLE, ROLE_LABEL
from cloud.jobs.progress import Words
from cloud.jobs.results import ResultShelf, decode_result, run_key
from cloud.registry import Registry
from edgeloop.errors import TransientError

if TYPE_CHECKING:  # importing it for real starts Ray's clock, and belongs after Cluster.start
    from cloud.jobs.tasks import Context, Outcome

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Run:
    """One piece of work inside Ray. ``task_ids`` are those that wait for it."""

    task: Task
    reference: Any
    task_ids: list[str] = field(default_factory=list)


class RayCompute:
    """The cluster as the driver sees it.

    ``address`` is "" for a Ray of our own on this machine with ``num_cpus`` (all when ``None``), else
    ``host:port``. ``work_dir`` holds checkpoints and results; with a cluster of machines it and the registry
    must be storage that all of them share.
    """

    def __init__(
        self,
        *,
        work_dir: Path | str,
        registry_url: str,
        address: str = "",
        num_cpus: int | None = None,
    ) -> None:
        self._work_dir = Path(work_dir).absolute()
        self._registry = Registry(registry_url)
        self._cluster = Cluster(address=address, num_cpus=num_cpus)
        self._shelf = ResultShelf(self._work_dir / "results")
        self._runs: dict[str, _Run] = {}
        self._events: list[TaskEvent] = []
        self._words = Words(self._work_dir)
        self._context: Context | None = None

    def start(self) -> None:
        """Start or join Ray; takes seconds. Raises ``ConfigError`` when the address cannot be used."""
        if self._context is not None:
            return
        self._work_dir.mkdir(parents=True, exist_ok=True)
        self._cluster.start()
        from cloud.jobs.tasks import Context

        self._context = Context(work_dir=str(self._work_dir), registry_url=self._registry.url)

    def submit(self, task: Task) -> None:
        """Have the task done, once. What it gives comes out of ``poll``."""
        context = self._started()
        if any(task.task_id in run.task_ids for run in self._runs.values()):
            return
        result = self._shelf.find(task, self._registry)
        if result is not None:
            self._events.append(TaskSucceeded(task_id=task.task_id, result=result))
            return
        key = run_key(task)
        run = self._runs.get(key)
        if run is None:
            self._words.begin(key)
            run = self._runs[key] = _Run(task=task, reference=_launch(task, context))
        run.task_ids.append(task.task_id)
        self._events.append(TaskProgress(task_id=task.task_id, fraction=0.0, message="waiting for a CPU"))

    def poll(self) -> list[TaskEvent]:
        """What happened since the last call, in order. Raises ``TransientError`` when Ray was lost."""
        import ray

        self._started()
        if self._cluster.is_lost:
            raise TransientError("a process of Ray on this machine has died", code="ray-lost")
        try:
            self._collect_words()
            self._collect_outcomes()
        except ray.exceptions.RayError as error:
            raise TransientError(f"Ray does not answer: {error}", code="ray-lost") from error
        events, self._events = self._events, []
        return events

    def cancel(self, task_id: str) -> None:
        """End the task; the next ``poll`` says so. One that is unknown or has ended is left as it is."""
        import ray

        self._started()
        key = next((key for key, run in self._runs.items() if task_id in run.task_ids), None)
        if key is None:
            return
        run = self._runs[key]
        run.task_ids.remove(task_id)
        if not run.task_ids:
            # By force: training does not look up from its loop. What a supervisor started dies with it.
            ray.cancel(run.reference, force=True)
            del self._runs[key]
            self._words.end(key)
            if not isinstance(run.task, StudentTask):
                _free_processors()
        self._events.append(TaskFailed(task_id=task_id, code="cancelled", message="cancelled"))

    def stop(self) -> None:
        """End what runs and leave Ray. Checkpoints and results stay; ``start`` may follow."""
        self._runs.clear()
        self._events.clear()
        self._context = None
        self._cluster.stop()

    def describe(self) -> str:
        """For people: ``local Ray, 2 CPUs``."""
        return self._cluster.describe()

    def _started(self) -> Context:
        assert self._context is not None, "call start() first"
        return self._context

    def _collect_words(self) -> None:
        for key, run in self._runs.items():
            self._collect_word(key, run)

    def _collect_word(self, key: str, run: _Run) -> None:
        word = self._words.newest(key)
        if word is not None:
            fraction, message = word
            self._events += [
                TaskProgress(task_id=task_id, fraction=fraction, message=message) for task_id in run.task_ids
            ]

    def _collect_outcomes(self) -> None:
        import ray

        references = {run.reference: key for key, run in self._runs.items()}
        if not references:
            return
        ready, _ = ray.wait(list(references), num_returns=len(references), timeout=0, fetch_local=False)
        for reference in ready:
            key = references[reference]
            run = self._runs.pop(key)
            self._collect_word(key, run)  # its last, before its end
            self._words.end(key)
            event = self._outcome(run)
            for task_id in run.task_ids:
                self._events.append(_addressed(event, task_id))

    def _outcome(self, run: _Run) -> TaskSucceeded | TaskFailed:
        import ray

        task_id = run.task.task_id
        try:
            outcome: Outcome = ray.get(run.reference)
        except ray.exceptions.TaskCancelledError:
            return TaskFailed(task_id=task_id, code="cancelled", message="cancelled")
        except ray.exceptions.RayTaskError as error:
            logger.error("task %s failed for good: %s", task_id, error.cause)
            message = f"retries are used up: {_first_line(error.cause)} (the log of serve has all of it)"
            return TaskFailed(task_id=task_id, code="failed", message=message)
        except ray.exceptions.RayError as error:
            message = (
                "its process was lost each time (killed, or out of memory), and retries are used up: "
                f"{_first_line(error)}"
            )
            return TaskFailed(task_id=task_id, code="failed", message=message)
        if outcome.code:
            return TaskFailed(task_id=task_id, code=outcome.code, message=outcome.message)
        return TaskSucceeded(task_id=task_id, result=decode_result(run.task, outcome.result))


def _launch(task: Task, context: Context) -> Any:
    import ray

    from cloud.jobs import tasks

    is_training = not isinstance(task, StudentTask)
    function: Any = ray.remote(tasks.run_training if is_training else tasks.run_student)
    options = function.options(
        name=run_key(task),
        # A training's CPU is taken by its worker, not by the supervisor that stands over it.
        num_cpus=0 if is_training else 1,
        max_retries=tasks.MAX_RETRIES,
        # What lends the cluster no processors (a control plane, a head) is not there to train on.
        label_selector={ROLE_LABEL: f"!{DRIVER_ROLE}"},
        retry_exceptions=[TransientError],
    )
    return options.remote(task, context)


def _free_processors() -> None:
    """Give back what a training held that was just ended by force."""
    import ray

    from cloud.jobs import placements

    task: Any = ray.remote(placements.sweep)
    options = task.options(
        name="sweep", num_cpus=0, max_retries=0, label_selector={ROLE_LABEL: f"!{DRIVER_ROLE}"}
    )
    options.remote()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _addressed(event: TaskSucceeded | TaskFailed, task_id: str) -> TaskSucceeded | TaskFailed:
    if isinstance(event, TaskSucceeded):
        return TaskSucceeded(task_id=task_id, result=event.result)
    return TaskFailed(task_id=task_id, code=event.code, message=event.message)
