"""Generate the committed protobuf modules from protos/ (``make protos``).

The messages of the Open Inference Protocol go below the one package that speaks it, because ``inference`` at
the top level is a name that others install; their service stub is not generated, since its imports would ask
for that name.

``--check`` generates into a temporary folder instead and fails when the committed modules differ, so that
neither a stale module nor a hand edit can land.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
#: Where packages live that are not at the top level: folder of protos/ -> folder that holds the package.
HOMES = {"inference": Path("edge_agent/serving")}


def generate(out: Path) -> list[Path]:
    """Generate every .proto below ``protos/`` into ``out`` and return the files written."""
    for folder in sorted(path for path in PROTOS.iterdir() if path.is_dir()):
        home = out / HOMES.get(folder.name, Path())
        home.mkdir(parents=True, exist_ok=True)
        sources = sorted(folder.rglob("*.proto"))
        arguments = [
            "protoc",
            f"-I{PROTOS}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={home}",
            f"--pyi_out={home}",
            *([f"--grpc_python_out={home}"] if folder.name not in HOMES else []),
            *(str(source) for source in sources),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc failed: see the messages above")
        for source in sources:
            if "service " not in source.read_text():
                stem = source.relative_to(PROTOS).with_suffix("")
                (home / f"{stem}_pb2_grpc.py").unlink(missing_ok=True)
    return sorted([*out.rglob("*_pb2*.py"), *out.rglob("*_pb2*.pyi")])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed modules are stale")
    check = parser.parse_args().check
    if not check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        fresh = generate(out)
        stale = [
            str(path.relative_to(out))
            for path in fresh
            if not (ROOT / path.relative_to(out)).exists()
            or not filecmp.cmp(path, ROOT / path.relative_to(out), shallow=False)
        ]
    if stale:
        print(
            f"stale generated modules: {', '.join(stale)}; run 'make protos' and commit the result",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
