"""Signatures first; filled in below."""

from __future__ import annotations

from pathlib import Path

from cloud.domain.tasks import StudentTask, TaskEvent, TeacherTask


class RayCompute:
    def __init__(
        self, *, work_dir: Path | str, registry_url: str, address: str = "", num_cpus: int | None = None
    ) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Blocks 3 to 5 s; call it from any thread. ConfigError when the address cannot be reached."""
        raise NotImplementedError

    def submit(self, task: TeacherTask | StudentTask) -> None:
        """Idempotent by task_id."""
        raise NotImplementedError

    def poll(self) -> list[TaskEvent]:
        """What happened since the last call; never blocks."""
        raise NotImplementedError

    def cancel(self, task_id: str) -> None:
        """The next poll gives TaskFailed(code="cancelled"); unknown or finished tasks are left as they are."""
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def describe(self) -> str:
        raise NotImplementedError
