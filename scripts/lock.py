"""Write the lock files of the images: exact versions, and the hash of the wheel of each processor family.

    python scripts/lock.py agent       deploy/requirements-agent.lock
    python scripts/lock.py cloud       deploy/requirements-cloud.lock
    python scripts/lock.py build       deploy/requirements-build.lock: what makes edgeloop's own wheel

pip itself resolves and says the hashes (``--report``), from whatever index it is configured to use; no
address is written down. torch is left out of the cloud's lock: its CPU and CUDA builds share a version and
differ in everything else, so the Dockerfile takes it from the index that a build argument names.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Of the images: Python 3.11 on Debian 12, whose C library is 2.36.
PYTHON = "3.11"
GLIBC_MINORS = (36, 35, 34, 31, 28, 27, 26, 24, 17)
PROCESSORS = ("x86_64", "aarch64")
NOT_LOCKED = ("torch", "triton")
NOT_LOCKED_PREFIXES = ("nvidia-", "cuda-")


def wanted(which: str) -> list[str]:
    """What pyproject.toml asks for."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if which == "build":
        return list(document["build-system"]["requires"])
    project = document["project"]
    extra = project["optional-dependencies"]["cloud"] if which == "cloud" else []
    return [*project["dependencies"], *extra]


def ask_pip(requirements: list[str], *, processor: str, resolve: bool) -> dict[str, tuple[str, str]]:
    """Name -> (version, sha256) of what pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
            *("--report", str(report), "--target", folder, "--only-binary", ":all:"),
            *("--python-version", PYTHON, "--implementation", "cp"),
            *(word for minor in GLIBC_MINORS for word in ("--platform", f"manylinux_2_{minor}_{processor}")),
            *("--platform", f"manylinux2014_{processor}", "--platform", f"linux_{processor}"),
        ]
        if not resolve:
            command.append("--no-deps")
        subprocess.run([*command, *requirements], check=True)
        items = json.loads(report.read_text())["install"]
    return {
        item["metadata"]["name"].lower().replace("_", "-"): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in items
    }


def is_locked(name: str) -> bool:
    return name not in NOT_LOCKED and not name.startswith(NOT_LOCKED_PREFIXES)


def main() -> int:
    which = sys.argv[1] if len(sys.argv) == 2 else ""
    if which not in ("agent", "cloud", "build"):
        raise SystemExit("usage: python scripts/lock.py agent|cloud|build")
    first, *others = PROCESSORS
    found = {
        name: (version, [digest])
        for name, (version, digest) in ask_pip(wanted(which), processor=first, resolve=True).items()
        if is_locked(name)
    }
    pins = [f"{name}=={version}" for name, (version, _) in found.items()]
    for processor in others:
        for name, (_, digest) in ask_pip(pins, processor=processor, resolve=False).items():
            if digest not in found[name][1]:
                found[name][1].append(digest)
    lines = [
        f"# Written by scripts/lock.py {which}: Python {PYTHON}, {' and '.join(PROCESSORS)}, Debian 12.",
        *(
            f"{name}=={version}" + "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(digests))
            for name, (version, digests) in sorted(found.items())
        ),
    ]
    path = ROOT / "deploy" / f"requirements-{which}.lock"
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(found)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
