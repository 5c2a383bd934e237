"""``edgeloop context``: which control plane is meant when no flag says so, and how to prove who asks.

Rules kept here:

- The file holds tokens: it is readable by its owner alone, and one that others can read is refused.
- Where a token comes from, the first that is set: EDGELOOP_TOKEN, EDGELOOP_TOKEN_FILE, the context. The same
  for the certificate authority: EDGELOOP_CA, the context, what a control plane on this machine wrote down.
- A token of a context goes to that context's server alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cloud.cli.client import check_address
from cloud.cli.output import Output, make_table, show_values, stderr, stdout
from edgeloop.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Choose which control plane the other commands talk to.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """One control plane. ``ca`` is the name of a file; ``token_file`` wins over ``token``."""

    server: str
    ca: str = ""
    token: str = ""
    token_file: str = ""


@dataclass(frozen=True, slots=True)
class Access:
    """What a connection needs besides the address."""

    ca_pem: bytes | None
    token: str


@dataclass(kw_only=True, slots=True)
class ContextFile:
    """``~/.config/edgeloop/contexts.yaml``, or what EDGELOOP_CONTEXTS names."""

    path: Path
    current: str = ""
    contexts: dict[str, Context] = field(default_factory=dict)

    @classmethod
    def load(cls) -> ContextFile:
        """Empty when there is no file. Raises ``ConfigError`` that names what is wrong with it."""
        path = _path()
        try:
            mode = path.stat().st_mode
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            return cls(path=path)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}): mend or delete it", code="contexts"
            ) from None
        if mode & 0o077:
            raise ConfigError(
                f"{path} can be read by others, and it holds tokens: 'chmod 600 {path}'", code="contexts"
            )
        try:
            contexts = {str(name): Context(**values) for name, values in (raw.get("contexts") or {}).items()}
            current = str(raw.get("current") or "")
        except (AttributeError, TypeError) as error:
            raise ConfigError(f"{path} is damaged ({error}): mend or delete it", code="contexts") from None
        if current and current not in contexts:
            raise ConfigError(f"{path}: current is {current!r}, which it does not have", code="contexts")
        return cls(path=path, current=current, contexts=contexts)

    def current_context(self) -> Context | None:
        return self.contexts.get(self.current)

    def save(self) -> None:
        """The whole file or the old one, for its owner alone."""
        content = {
            "current": self.current,
            "contexts": {
                name: {key: value for key, value in asdict(item).items() if value}
                for name, item in sorted(self.contexts.items())
            },
        }
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                yaml.safe_dump(content, file, sort_keys=False)
            temporary.replace(self.path)
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written ({error.strerror})", code="contexts") from None


def access(context: Context | None, state_dir: Path | None) -> Access:
    """Certificate authority and token for a connection. Raises ``ConfigError`` that names the file."""
    ca = os.environ.get("EDGELOOP_CA", "") or (context.ca if context is not None else "")
    if not ca and context is None:
        ca = _announced_ca(state_dir)
    token = os.environ.get("EDGELOOP_TOKEN", "")
    token_file = os.environ.get("EDGELOOP_TOKEN_FILE", "")
    if not token and not token_file and context is not None:
        token, token_file = context.token, context.token_file
    if token_file and not os.environ.get("EDGELOOP_TOKEN"):
        token = _read(token_file, "the token's file").decode(errors="replace").strip()
    return Access(ca_pem=_read_ca(ca, "the certificate authority") if ca else None, token=token)


def _read_ca(name: str, what: str) -> bytes:
    pem = _read(name, what)
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise ConfigError(
            f"{what}, {name}, holds no certificate (PEM): give the ca.crt of 'edgeloop keys init'",
            code="context-file",
        )
    return pem


def _announced_ca(state_dir: Path | None) -> str:
    if state_dir is None:
        return ""
    try:
        return str(json.loads((state_dir / "server.json").read_text()).get("ca", ""))
    except (OSError, ValueError, AttributeError):
        return ""  # who looks for the address there says what is wrong


def _read(name: str, what: str) -> bytes:
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}, {name}, cannot be read ({error.strerror})", code="context-file") from None


def _path() -> Path:
    given = os.environ.get("EDGELOOP_CONTEXTS")
    if given:
        return Path(given)
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path("~/.config").expanduser()) / "edgeloop" / "contexts.yaml"


@app.command("set")
def set_context(
    name: Annotated[str, typer.Argument()],
    server: Annotated[str, typer.Option(help="control plane, HOST:PORT")],
    ca: Annotated[Path | None, typer.Option(help="ca.crt of 'edgeloop keys init'; without it no TLS")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="file with your token; it is read at each call")
    ] = None,
    token: Annotated[
        str, typer.Option(help="your token; it stays in your shell's history, so rather give a file")
    ] = "",
) -> None:
    """Add or change a context, and use it if it is the first."""
    if token and token_file is not None:
        raise ConfigError("--token and --token-file: give one of them", code="context-token")
    if ca is None and (token or token_file is not None):
        raise ConfigError("a token is not sent without TLS: give --ca too", code="context-token")
    check_address(server)
    if ca is not None:
        _read_ca(str(ca), "--ca")
    if token_file is not None:
        _read(str(token_file), "--token-file")
    contexts = ContextFile.load()
    contexts.contexts[name] = Context(
        server=server,
        ca=str(ca.resolve()) if ca is not None else "",
        token=token,
        token_file=str(token_file.resolve()) if token_file is not None else "",
    )
    contexts.current = contexts.current or name
    contexts.save()
    stdout.print(f"context {name} is {server}{' (current)' if contexts.current == name else ''}")


@app.command()
def use(name: Annotated[str, typer.Argument()]) -> None:
    """Talk to this control plane from now on, unless a flag says otherwise."""
    contexts = ContextFile.load()
    _check_known(contexts, name)
    contexts.current = name
    contexts.save()
    stdout.print(f"context {name} is current: {contexts.contexts[name].server}")


@app.command("list")
def list_contexts(
    output: Annotated[Output, typer.Option("--output", "-o", help="table, json or yaml")] = Output.TABLE,
) -> None:
    """Show all contexts; tokens are not shown."""
    contexts = ContextFile.load()
    if output is not Output.TABLE:
        show_values(
            [
                {"name": name, "current": name == contexts.current, "server": item.server, "ca": item.ca}
                for name, item in sorted(contexts.contexts.items())
            ],
            output,
        )
        return
    if not contexts.contexts:
        stderr.print("no context: 'edgeloop context set NAME --server HOST:PORT --ca FILE' adds one")
        return
    rows = [
        ["*" if name == contexts.current else "", name, item.server, "yes" if item.ca else "no"]
        for name, item in sorted(contexts.contexts.items())
    ]
    stdout.print(make_table(["", "NAME", "SERVER", "TLS"], rows))


@app.command()
def delete(name: Annotated[str, typer.Argument()]) -> None:
    """Forget a context."""
    contexts = ContextFile.load()
    _check_known(contexts, name)
    del contexts.contexts[name]
    contexts.current = "" if contexts.current == name else contexts.current
    contexts.save()
    stdout.print(f"context {name} is forgotten")


def _check_known(contexts: ContextFile, name: str) -> None:
    if name not in contexts.contexts:
        known = ", ".join(sorted(contexts.contexts)) or "none yet"
        raise ConfigError(f"context {name!r} is not known: known are {known}", code="context-unknown")
