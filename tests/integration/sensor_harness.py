"""A folder source in a process of its own, with a real model: `python sensor_harness.py MODEL FOLDER`.

Says "ready" once it reads the folder, and goes on until it is killed.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from edge_agent.inference import InferenceEngine, ServedModel
from edge_agent.runtime import load_onnx
from edge_agent.sensors.asker import Asker
from edge_agent.sensors.counts import SourceCounts
from edge_agent.sensors.folder import FolderSource
from edge_agent.source_settings import FolderSettings
from edge_agent.trial import TrialMeter
from edgeloop.artifact import sha256_hex


def serve(model: bytes, *, generation: int = 1) -> ServedModel:
    return ServedModel(
        runtime=load_onnx(model), digest=sha256_hex(model), generation=generation, workload="tiny"
    )


def started_engine(model: bytes | None, meter: TrialMeter, *, max_pending: int = 64) -> InferenceEngine:
    engine = InferenceEngine(meter=meter, max_pending=max_pending)
    if model is not None:
        engine.swap(serve(model))
    engine.start()
    return engine


def folder_settings(path: Path, *, settle_s: float = 0.0, sample_format: str = "json") -> FolderSettings:
    return FolderSettings(
        name="folder-1",
        path=path,
        pattern=f"*.{sample_format}",
        output=path / "out",
        format=sample_format,
        poll_s=0.05,
        settle_s=settle_s,
    )


def main(model: Path, folder: Path) -> None:
    engine = started_engine(model.read_bytes(), TrialMeter(window_s=3600))
    settings = folder_settings(folder)
    counts = SourceCounts([settings.name])
    FolderSource(settings, Asker(engine, timeout_s=60, max_bytes=1 << 20), counts).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
