"""What runs inside the cluster: one student, or the training of one teacher or elastic family.

Rules that this module keeps:

- What is wrong with the input comes back as a value, not as an exception, so that nothing retries it:
  neither Ray nor Ray Train tells a user's mistake from a lost machine. What is transient is raised.
- A finished result is on the shelf before the task returns. A task that runs again finds it there.
- A training's state is checkpointed after each epoch and read back without running code from it. Training
  goes on from there whoever died: a worker, its supervisor, the driver, or all of Ray.
- Between our own processes Ray pickles arguments and answers; nothing from outside is ever unpickled.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from cloud.domain import codec
from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult, family_key
from cloud.domain.tasks import FamilyTask, StudentTask, Task, TaskResult, TeacherResult, TeacherTask
from cloud.jobs.placements import Sweeping
from cloud.jobs.progress import Heartbeat, Reporter
from cloud.jobs.results import ResultShelf, discard_torn_run, run_key
from cloud.jobs.weights import RegistryWeights
from cloud.registry import Registry
from edgeloop.errors import ConfigError, EdgeloopError, RejectedError, TransientError

if TYPE_CHECKING:  # torch is for the processes that train, not for whoever hands out the work
    from cloud.compression.family import FamilyTrainer
    from cloud.training.teacher import TeacherTrainer

    Trainer = TeacherTrainer | FamilyTrainer

logger = logging.getLogger(__name__)

#: How often a task is started again after its process or machine was lost.
MAX_RETRIES = 3
#: Epoch checkpoints kept of one run: the newest, and the one before it in case the newest was torn.
NUM_CHECKPOINTS = 2
STATE_FILE = "trainer.pt"
#: Epochs are the first 95 % of a training; the export and measurement are the rest.
EPOCHS_SHARE = 0.95

#: Read by Ray Train in the process that calls fit().
_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Without these a run needs more processes, and relative paths mean something else in its workers.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What every task needs beside itself. ``work_dir`` is a folder that all machines share."""

    work_dir: str
    registry_url: str

    def reporter(self, task: Task) -> Reporter:
        """Says how far this task is."""
        return Reporter(self.work_dir, run_key(task))

    def weights(self, registry: Registry) -> RegistryWeights:
        """What trainings share."""
        return RegistryWeights(Path(self.work_dir, "weights"), registry)

    @property
    def shelf(self) -> ResultShelf:
        return ResultShelf(Path(self.work_dir, "results"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Either ``result`` (JSON) or a ``code`` of ``TaskFailed`` with a message for people."""

    result: str = ""
    code: str = ""
    message: str = ""


def run_student(task: StudentTask, context: Context) -> Outcome:
    """Build one student. It needs one CPU."""

    def build() -> Candidate:
        from cloud.compression.build import build_student

        one_thread()
        with Heartbeat(context.reporter(task)) as report:
            report(0.0, "starting")
            registry = Registry(context.registry_url)
            return build_student(task, registry=registry, report=report, shelf=context.weights(registry))

    return finish(task, context, build)


def run_training(task: TeacherTask | FamilyTask, context: Context) -> Outcome:
    """Stand over one Ray Train run; it needs no CPU of its own. Killing this ends the whole run."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    found = context.shelf.find(task, Registry(context.registry_url))
    if found is not None:
        return Outcome(result=codec.to_json(found))
    os.environ.update(_TRAIN_ENVIRONMENT)
    discard_torn_run(Path(context.work_dir, "checkpoints", run_key(task)))
    report = context.reporter(task)
    report(0.0, "starting")
    loop: Any = train_loop  # its stubs know no loop that returns a value; Result.return_value does
    trainer = TorchTrainer(
        loop,
        train_loop_config={"task": task, "context": context},
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=ray.cluster_resources().get("GPU", 0) >= 1,
            resources_per_worker={"CPU": 1},
        ),
        run_config=RunConfig(
            name=run_key(task),
            storage_path=str(Path(context.work_dir, "checkpoints")),
            failure_config=FailureConfig(max_failures=MAX_RETRIES),
            checkpoint_config=CheckpointConfig(num_to_keep=NUM_CHECKPOINTS),
        ),
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        with Sweeping():
            fitted: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        return Outcome(code="failed", message=f"training failed {MAX_RETRIES + 1} times: {_root(error)}")
    finally:
        _let_go(on_interrupt)
    outcome = fitted.return_value
    assert isinstance(outcome, Outcome)
    return outcome


def _let_go(on_interrupt: Any) -> None:
    """Hold nothing of a run that has ended, so that its controller ends and this process may.

    Ray Train's ``fit`` installs a handler of SIGINT that refers to the run's controller, and leaves it there:
    the controller, its helpers and the process that stood over the training then stay, idle, with most of a
    gigabyte.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, on_interrupt if on_interrupt is not None else signal.SIG_DFL)
    gc.collect()


def train_loop(config: dict[str, Any]) -> Outcome:
    """The body of the Ray Train worker: epochs from the last checkpoint on, then what is finished."""
    task: TeacherTask | FamilyTask = config["task"]
    context: Context = config["context"]

    def train() -> TeacherResult | FamilyResult:
        one_thread()
        registry = Registry(context.registry_url)
        with Heartbeat(context.reporter(task)) as report:
            report(0.0, "loading the data")
            trainer = _restored(task, context, registry)
            if trainer.epoch:
                report(
                    EPOCHS_SHARE * trainer.epoch / trainer.num_epochs, f"resumed after epoch {trainer.epoch}"
                )
            while trainer.epoch < trainer.num_epochs:
                metrics = trainer.run_epoch(lambda fraction, text: report(EPOCHS_SHARE * fraction, text))
                _checkpoint(trainer, metrics.validation_accuracy)
            report(EPOCHS_SHARE, "exporting and measuring")
            return _finished(task, trainer, registry)

    return finish(task, context, train)


def finish(task: Task, context: Context, work: Callable[[], TaskResult]) -> Outcome:
    """Run ``work`` unless its result is there already. Only ``TransientError`` escapes."""
    try:
        registry = Registry(context.registry_url)
        result = context.shelf.find(task, registry)
        if result is None:
            result = work()
            context.shelf.put(task, result)
        return Outcome(result=codec.to_json(result))
    except TransientError:
        raise
    except ConfigError as error:
        return Outcome(code="config", message=error.message)
    except EdgeloopError as error:
        return Outcome(code="failed", message=f"{error.message} ({error.code})")
    except Exception as error:  # whatever the work raised is told to the user, once
        logger.exception("task %s failed", task.task_id)
        return Outcome(code="failed", message=_told(error))


def one_thread() -> None:
    """One task, one core: more threads would fight over the cores that other tasks were given."""
    import torch

    torch.set_num_threads(1)


def _restored(task: TeacherTask | FamilyTask, context: Context, registry: Registry) -> Trainer:
    """A trainer that goes on from the newest checkpoint of this run, or starts afresh."""
    from ray.train import get_checkpoint

    from cloud.training import checkpoints

    trainer = _afresh(task, context, registry)
    checkpoint = get_checkpoint()
    if checkpoint is None:
        return trainer
    try:
        with checkpoint.as_directory() as folder:
            trainer.load_state_dict(checkpoints.from_bytes(Path(folder, STATE_FILE).read_bytes()))
    except (RejectedError, OSError) as error:
        logger.warning(
            "the checkpoint of %s cannot be used, training starts afresh: %s", run_key(task), error
        )
        return _afresh(task, context, registry)
    return trainer


def _afresh(task: TeacherTask | FamilyTask, context: Context, registry: Registry) -> Trainer:
    from cloud.compression.family import FamilyTrainer
    from cloud.compression.teacher_weights import load_teacher, load_wisdom
    from cloud.compression.view_answers import AnswerShelf
    from cloud.training.datasets import load_dataset
    from cloud.training.teacher import TeacherTrainer

    if isinstance(task, TeacherTask):
        return TeacherTrainer(task.workload)
    dataset = load_dataset(task.workload)
    teacher = load_teacher(task.workload, dataset, task.teacher, registry=registry)
    key = family_key(task.teacher.identity, task.settings)
    wisdom = load_wisdom(task.workload, dataset, task.teacher, teacher, registry=registry)
    shelf = AnswerShelf(context.weights(registry), task.workload, task.teacher)
    return FamilyTrainer(task.workload, teacher, dataset, task.settings, key=key, wisdom=wisdom, shelf=shelf)


def _finished(
    task: TeacherTask | FamilyTask, trainer: Trainer, registry: Registry
) -> TeacherResult | FamilyResult:
    from cloud.compression.build import finish_teacher
    from cloud.compression.family import finish_family
    from cloud.training.teacher import TeacherTrainer

    if isinstance(trainer, TeacherTrainer):
        return finish_teacher(task.workload, trainer, registry=registry)
    assert isinstance(task, FamilyTask)
    return finish_family(trainer, task.teacher, registry=registry)


def _checkpoint(trainer: Trainer, validation_accuracy: float) -> None:
    """Hand the state after an epoch to Ray Train; once this returns it is in the run's folder."""
    from ray.train import Checkpoint, report

    from cloud.training import checkpoints

    with tempfile.TemporaryDirectory(prefix="el-epoch-") as folder:
        Path(folder, STATE_FILE).write_bytes(checkpoints.to_bytes(trainer.state_dict()))
        report(
            {"epoch": trainer.epoch, "validation_accuracy": validation_accuracy},
            checkpoint=Checkpoint.from_directory(folder),
        )


def _told(error: BaseException) -> str:
    """The exception and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{where}"[:2000]


def _root(error: Exception) -> str:
    """What the workers of a failed run said, without Ray's own stack."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = list(failures.values()) or [error]
    last = str(causes[0]).strip().splitlines() or [type(causes[0]).__name__]
    return last[-1][:2000]
