"""Compute without a cluster: the real training and building, in this process, as workers do them."""

from __future__ import annotations

from dataclasses import dataclass, field

from cloud.compression.build import build_student, finish_teacher
from cloud.domain.tasks import (
    FamilyTask,
    StudentTask,
    Task,
    TaskEvent,
    TaskFailed,
    TaskResult,
    TaskSucceeded,
    TeacherTask,
)
from cloud.jobs.results import decode_result
from cloud.jobs.tasks import Context, finish
from cloud.registry import Registry
from cloud.training.teacher import TeacherTrainer


@dataclass
class Here:
    """Compute in this process; ``ran`` are the tasks that were really worked on."""

    context: Context
    ran: list[Task] = field(default_factory=list)
    events: list[TaskEvent] = field(default_factory=list)

    def submit(self, task: Task) -> None:
        assert not isinstance(task, FamilyTask)
        registry = Registry(self.context.registry_url)

        def work() -> TaskResult:
            self.ran.append(task)
            if isinstance(task, TeacherTask):
                trainer = TeacherTrainer(task.workload, device="cpu")
                while trainer.epoch < trainer.num_epochs:
                    trainer.run_epoch()
                return finish_teacher(task.workload, trainer, registry=registry)
            assert isinstance(task, StudentTask)
            return build_student(task, registry=registry, report=lambda *_: None, device="cpu")

        outcome = finish(task, self.context, work)
        if outcome.code:
            self.events.append(TaskFailed(task_id=task.task_id, code=outcome.code, message=outcome.message))
        else:
            result = decode_result(task, outcome.result)
            self.events.append(TaskSucceeded(task_id=task.task_id, result=result))

    def poll(self) -> list[TaskEvent]:
        events, self.events = self.events, []
        return events

    def cancel(self, task_id: str) -> None:
        raise AssertionError(f"nothing here is cancelled, and {task_id} was")
