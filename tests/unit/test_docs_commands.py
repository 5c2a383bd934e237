"""Every command that a page tells somebody to type exists, with its options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from cloud.cli import app as cloud_cli
from edge_agent import cli as agent_cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/adr").glob("*.md"))]
APPS = {"edgeloop": cloud_cli.app, "edgeloop-agent": agent_cli.app}
#: A command line begins where nothing, a prompt, or what runs it for somebody else stands before it.
_RUN_BY = (
    r"(?:docker-compose (?:exec|run)[^`\n]*? (?:edgeloop|control|init) )?"
    r"(?:(?:sudo -u \S+ )?(?:/opt/edgeloop/bin/)?)"
)
_COMMAND = re.compile(
    rf"(?:^ {{4}}|`|[$#] +|&& |exec |sh -c '){_RUN_BY}(edgeloop(?:-agent)?) ([a-z][^`\n]*)", re.MULTILINE
)


def commands(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [f"{match[1]} {match[2]}" for match in _COMMAND.finditer(text)]


def problem(command: str) -> str:
    """What is wrong with it, or nothing; ``a|b`` stands for two commands."""
    choice = re.search(r"(?<= )[a-z-]+(?:\|[a-z-]+)+", command)
    if choice is not None:
        before, after = command[: choice.start()], command[choice.end() :]
        return "".join(problem(f"{before}{word}{after}") for word in choice[0].split("|"))
    line = re.split(r" (?:#|&&|\|\||>|<|\|) ?|; | > ", command)[0].rstrip(".,;:)'")
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    node: object = typer.main.get_command(APPS[words[0]])
    for word in words[1:]:
        children = getattr(node, "commands", None)
        if children is None:
            break
        if word not in children:
            return f"{word!r} is none of {sorted(children)}"
        node = children[word]
    known = {name for option in node.params for name in (*option.opts, *option.secondary_opts)}  # type: ignore[attr-defined]
    used = {word.partition("=")[0] for word in words[1:] if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
    unknown = sorted(used - known - {"--help", "--install-completion", "--show-completion"})
    return f"it has no {', '.join(unknown)}" if unknown else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_the_page_exists(page: Path) -> None:
    wrong = {command: found for command in commands(page) if (found := problem(command))}
    assert wrong == {}


def test_commands_are_found_and_a_wrong_one_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "$ edgeloop get profiles   # all\nsay `edgeloop why DEVICE` or\n"
        "# sudo -u a /opt/edgeloop/bin/edgeloop-agent status --state-dir x\n"
        "$ docker-compose exec control edgeloop doctor\n"
    )
    assert len(commands(page)) == 4
    assert all(problem(command) == "" for command in commands(page))
    assert problem("edgeloop device enrol x") != ""
    assert problem("edgeloop rollout start --digest x") != ""
