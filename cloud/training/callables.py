"""User code named in a workload as ``module:callable``: found, called, and answered for by name.

Rules: the workload's ``source_dir`` is on the import path only while the module is imported and called; a
module of the same name from another workload's directory is never mistaken for this one; whatever user
code raises comes back as a ``ConfigError`` that names the callable and the line where it failed.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeloop.errors import ConfigError

MAX_ERROR_CHARS = 500
_HERE = Path(__file__).parent
_IN_A_LIBRARY = re.compile(rf"site-packages|dist-packages|{re.escape(sysconfig.get_path('stdlib'))}")


def is_callable_path(name: str) -> bool:
    """Whether a workload's value is ``module:callable`` and not a built-in name."""
    return ":" in name


def load_callable(path: str, *, source_dir: str = "", field: str) -> Callable[..., Any]:
    """The object that ``path`` names. Raises ``ConfigError`` naming ``field`` when there is none."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(
            f"{field} is {path!r}: write it as module:callable, for example my_data:load",
            code="callable-name",
        )
    with _import_path(source_dir, module_name):
        try:
            target: Any = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:
            where = f" (looked in {source_dir} first)" if source_dir else ""
            raise ConfigError(
                f"{field}: importing {module_name}{where} failed: {describe(error)}", code="callable-import"
            ) from error
    for part in attribute.split("."):
        target = getattr(target, part, None)
    if not callable(target):
        raise ConfigError(
            f"{field}: {module_name} has no callable named {attribute}", code="callable-missing"
        )
    return target  # type: ignore[no-any-return]  # getattr gives Any, and callable() does not narrow it


def call(
    path: str,
    options: Mapping[str, Any],
    *,
    source_dir: str = "",
    field: str,
    offers: Mapping[str, Any] | None = None,
    options_field: str = "",
) -> Any:
    """Call what ``path`` names with ``options``, and with those of ``offers`` that its signature takes.

    ``options_field`` is where the options stand, ``<field>_options`` unless given.
    """
    target = load_callable(path, source_dir=source_dir, field=field)
    arguments = dict(options)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        parameters = {}  # type: ignore[assignment]  # some built-ins show no signature: then nothing is offered
    for name, value in (offers or {}).items():
        if name in parameters and name not in arguments:
            arguments[name] = value
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = sorted(set(options) - set(parameters))
    if parameters and unknown and not takes_any:
        where = options_field or f"{field}_options"
        raise ConfigError(
            f"{where}: {path} takes no argument {unknown[0]!r}; it takes {', '.join(parameters)}",
            code="callable-options",
        )
    with _import_path(source_dir, path.partition(":")[0]):
        try:
            return target(**arguments)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"{field}: {path} raised {describe(error)}", code="callable-raised") from error


@contextmanager
def _import_path(source_dir: str, module_name: str) -> Iterator[None]:
    if not source_dir:
        yield
        return
    directory = str(Path(source_dir).resolve())
    _forget_namesake(module_name, directory)
    sys.path.insert(0, directory)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)


def _forget_namesake(module_name: str, directory: str) -> None:
    """Two workloads may each have a ``data.py``: drop the one already imported from elsewhere."""
    top = module_name.partition(".")[0]
    here = Path(directory)
    if not ((here / f"{top}.py").is_file() or (here / top).is_dir()):
        return
    loaded = getattr(sys.modules.get(top), "__file__", None)
    if loaded is None or Path(loaded).resolve().is_relative_to(here):
        return
    for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
        del sys.modules[name]


def describe(error: BaseException) -> str:
    """The exception in one line, with the last line of the user's own code in its traceback.

    Where an error comes out of a library or of Python itself, that is the line that called it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        frame
        for frame in frames
        if Path(frame.filename).is_file()
        and not Path(frame.filename).is_relative_to(_HERE)
        and not _IN_A_LIBRARY.search(frame.filename)
    ]
    last = own[-1:]
    where = f" at {Path(last[0].filename).name}:{last[0].lineno}" if last else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MAX_ERROR_CHARS] + where
