"""Collects a root file system that holds Python, one application folder, /bin/sh, and what these load.

    python3 slim_root.py APPLICATION ROOT

Run while an image is built, by the Python that the application's virtual environment stands on. What the base
image has beside (package manager, Perl, pip, headers) is no use to an agent, costs a gateway its disk and its
line, and helps an intruder. It asks Python and ldd instead of naming paths, so that it works on any
glibc base and processor. Raises ``RuntimeError`` for a library that is not found.

Packages of Debian that a file was taken from are named in ``/var/lib/dpkg/status.d``, where scanners for
vulnerabilities look, and keep their licences in ``/usr/share/doc``.
"""

from __future__ import annotations

import compileall
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: Of the standard library: tests, installers, and what needs a screen.
_LEFT_OUT = (
    *("test", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "pydoc_data", "venv"),
    *("site-packages", "dist-packages", "__pycache__", "sitecustomize.py"),
)
_LEFT_OUT_MODULES = re.compile(r"config-.*|_tkinter\..*|_?test.*\.so|_ctypes_test\..*|_xx.*\.so|xx.*\.so")
_ELF = b"\x7fELF"


class SlimRoot:
    """``root`` in the making. A path is taken with every link that leads to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._taken: set[Path] = set()

    def take(self, path: Path) -> None:
        """A file, a link and what it points to, or an empty folder. Nothing happens the second time."""
        if path in self._taken or path == Path("/"):
            return
        self._taken.add(path)
        self.take(path.parent)
        # Where the parent is a link, the folder that it names receives the file.
        target = self._root / (path.parent.resolve() / path.name).relative_to("/")
        if path.is_symlink():
            if not target.is_symlink():
                target.symlink_to(os.readlink(path))
            self.take(path.parent.resolve() / os.readlink(path))
        elif path.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            shutil.copy2(path, target)

    def take_tree(self, folder: Path) -> None:
        for path in _files(folder):
            if path.exists():
                self.take(path)

    def take_libraries(self) -> None:
        """What the programs and modules taken so far load, and what these load."""
        for path in sorted(self._taken):
            if path.is_file() and not path.is_symlink() and _is_elf(path):
                for library in _libraries(path):
                    self.take(library)

    def taken_files(self) -> set[Path]:
        return {path for path in self._taken if path.is_file()}


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or _LEFT_OUT_MODULES.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        else:
            yield path


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == _ELF


def _libraries(path: Path) -> Iterator[Path]:
    done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if "not found" in line:
            raise RuntimeError(f"{path} needs {line.strip()}")
        if found := re.search(r"(/\S+) \(0x", line):
            yield Path(os.path.normpath(found[1]))


def _record_packages(root: Path, files: set[Path]) -> None:
    if shutil.which("dpkg-query") is None:
        return
    # On merged systems the database knows /lib/..., and files are found under /usr/lib/... as well.
    asked = {str(path) for path in files} | {str(path.resolve()) for path in files}
    asked |= {name.removeprefix("/usr") for name in asked}
    found = subprocess.run(["dpkg-query", "-S", *sorted(asked)], capture_output=True, text=True, check=False)
    names = {
        name.strip()
        for line in found.stdout.splitlines()
        if not line.startswith("diversion ")
        for name in line.partition(": ")[0].split(",")
    }
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for package in sorted(names):
        told = subprocess.run(["dpkg-query", "-s", package], capture_output=True, text=True, check=True)
        plain = package.partition(":")[0]
        (status / plain).write_text(told.stdout)
        licence = Path("/usr/share/doc") / plain / "copyright"
        if licence.exists():
            target = root / licence.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(licence, target)


def main() -> None:
    application, root = Path(sys.argv[1]), Path(sys.argv[2])
    root.mkdir(parents=True)
    slim = SlimRoot(root)
    standard_library = Path(sysconfig.get_path("stdlib"))
    # How one gets to the interpreter: the names in its folder, and those in the virtual environment.
    for link in (Path(sys.executable), application / "bin" / "python3", Path("/bin/sh")):
        slim.take(link)
    slim.take_tree(standard_library)
    for path in application.rglob("*"):
        slim.take(path)
    slim.take_libraries()
    _record_packages(root, slim.taken_files())
    # The image may run read-only: what is not compiled here would be compiled at each start.
    compileall.compile_dir(
        root / standard_library.relative_to("/"),
        stripdir=str(root),
        quiet=2,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    for folder, mode in (("etc", 0o755), ("run", 0o755), ("tmp", 0o1777), ("var/lib", 0o755)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder).chmod(mode)
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name in ("ld.so.conf", "os-release", "debian_version"):
        if Path("/etc", name).exists():
            shutil.copyfile(Path("/etc", name), root / "etc" / name)
    if Path("/etc/ld.so.conf.d").is_dir():
        shutil.copytree("/etc/ld.so.conf.d", root / "etc/ld.so.conf.d")
    subprocess.run(["ldconfig", "-r", str(root)], check=True)


if __name__ == "__main__":
    main()
