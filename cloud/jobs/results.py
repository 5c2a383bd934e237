"""What finished tasks gave, kept as JSON beside the checkpoints: a task that was finished is never run again.

Rules: a result counts only for exactly the task that it was written for (its fingerprint is part of the
file) and only while the registry still holds what it points to. A file that cannot be read counts as absent.
Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from cloud.domain import codec
from cloud.domain.candidates import Candidate
from cloud.domain.families import FamilyResult, family_key
from cloud.domain.tasks import FamilyTask, StudentTask, Task, TaskResult, TeacherResult, TeacherTask
from cloud.domain.workloads import Workload
from cloud.registry import Registry
from cloud.workload_source import source_digest

logger = logging.getLogger(__name__)


def decode_result(task: Task, text: str) -> TaskResult:
    """What ``codec.to_json`` wrote for a result of this task. Raises ``ValueError`` when it is none."""
    if isinstance(task, TeacherTask):
        return codec.from_json(TeacherResult, text)
    if isinstance(task, FamilyTask):
        return codec.from_json(FamilyResult, text)
    return codec.from_json(Candidate, text)


def run_key(task: Task) -> str:
    """Name of the run that answers this task, fit for a file name.

    Tasks that want the same teacher share one run, unless they ask for another attempt at it; so do those
    that want the same elastic family. The workload's own source is part of both names: after an edit, neither
    a checkpoint nor a result of the old code is taken up.
    """
    if isinstance(task, StudentTask):
        return "student-" + _safe(task.task_id)
    source = _source_digest(task.workload)
    if isinstance(task, FamilyTask):
        key = family_key(task.teacher.identity, task.settings)
        return "-".join(part for part in ("family", _safe(task.workload.name), key, source) if part)
    parts = ["teacher", _safe(task.workload.name), task.workload.teacher_key]
    attempt = _safe(task.attempt) if task.attempt else ""
    return "-".join(part for part in (*parts, source, attempt) if part)


def fingerprint(task: Task) -> str:
    """Of everything that the result depends on."""
    is_shared = not isinstance(task, StudentTask)
    text = run_key(task) if is_shared else codec.to_json(replace(task, task_id=""))
    return hashlib.sha256(text.encode()).hexdigest()


class ResultShelf:
    """One JSON file a run, in a folder that every worker shares."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, task: Task, result: TaskResult) -> None:
        """Keep the result; once this returns it survives a power cut."""
        self._folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"fingerprint": fingerprint(task), "result": codec.to_json(result)})
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(self._path(task))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def find(self, task: Task, registry: Registry) -> TaskResult | None:
        """The result of this very task, or ``None`` when it must run."""
        try:
            values = json.loads(self._path(task).read_text(encoding="utf-8"))
            if values["fingerprint"] != fingerprint(task):
                return None
            result = decode_result(task, values["result"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result if all(registry.exists(digest) for digest in _digests(result)) else None

    def _path(self, task: Task) -> Path:
        return self._folder / f"{run_key(task)}.json"


def discard_torn_run(folder: Path) -> None:
    """Remove a run whose list of checkpoints a power cut left unreadable: Ray Train could never open it."""
    snapshot = folder / "checkpoint_manager_snapshot.json"
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        logger.warning("%s is damaged: training starts afresh", snapshot)
        shutil.rmtree(folder)


def _digests(result: TaskResult) -> list[str]:
    if isinstance(result, TeacherResult):
        return [result.checkpoint_digest, result.artifact_digest, *result.other_checkpoints]
    if isinstance(result, FamilyResult):
        return [result.checkpoint_digest]
    return [digest for digest in (result.digest, result.manifest_digest) if digest]


def _safe(name: str) -> str:
    """Fit for a file name, and still different for different names."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:60] + "-" + digest


def _source_digest(workload: Workload) -> str:
    """Of the Python files beside the workload, when its data or its teacher come from code of its own."""
    return source_digest(workload.source_dir) if workload.has_code else ""
