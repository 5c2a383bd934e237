"""What a page shows to be copied is read by the product's own loaders, and what it names is there."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

from cloud.documents import load_documents
from cloud.domain.specs import CompressionSpec
from edge_agent.config import load_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = ("cloud", "edge_agent", "edgeloop", "benchmarks")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_QUOTED = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in _BLOCK.findall(page.read_text("utf-8")) if language in languages]


def examples(*languages: str) -> list[pytest.ParameterSet]:
    return [
        pytest.param(text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, text in enumerate(blocks(page, *languages))
    ]


@pytest.mark.parametrize("text", examples("yaml"))
def test_yaml_is_what_the_product_reads(text: str, tmp_path: Path) -> None:
    values = yaml.safe_load(text)
    path = tmp_path / "example.yaml"
    if values.get("apiVersion"):  # Kubernetes': it is YAML, and more cannot be said here
        return
    if "kind" in values:
        path.write_text(text)
        (document,) = load_documents(path)
        assert document.kind == values["kind"]
        return
    (part,) = values
    if part in ("quantisation", "sparsity"):
        assert CompressionSpec.from_mapping(values).to_json()
        return
    whole = {
        "search": {"kind": "Workload", "name": "w", "dataset": "digits", **values},
        "rollout": {
            "kind": "Fleet",
            "workload": "w",
            "profiles": [{"name": "p", "match": {"labels": {"class": "a"}}, **values}],
        },
    }[part]
    path.write_text(yaml.safe_dump(whole))
    (document,) = load_documents(path)
    assert document.to_domain()


@pytest.mark.parametrize("text", examples("toml"))
def test_toml_starts_an_agent(text: str, tmp_path: Path) -> None:
    for name in re.findall(r'path = "(/[^"]+)"', text):
        (tmp_path / name[1:]).mkdir(parents=True)
        text = text.replace(f'"{name}"', f'"{tmp_path / name[1:]}"')
    # Certificates are looked into, and have a test of their own.
    text = re.sub(r"^(ca|certificate|key)_file = .*\n", "", text, flags=re.MULTILINE)
    assert tomllib.loads(text)
    path = tmp_path / "agent.toml"
    path.write_text(text)
    flags: dict[str, object] = {
        "device_id": "gw-1",
        "state_dir": str(tmp_path / "state"),
        "server": "cloud:50061",
        "broker": "broker:1883",
        "director_key": ["ab" * 32],
    }
    load_config(config_file=path, environment={}, flags=flags)


@pytest.mark.parametrize("text", examples("python"))
def test_python_is_python(text: str) -> None:
    compile(text, "example", "exec")


@cache
def names_in(path: Path) -> frozenset[str]:
    """What a module defines or imports at its top, and its classes' attributes as ``Class.attribute``."""
    found: set[str] = set()

    def add(body: list[ast.stmt], before: str = "") -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(before + node.name)
                if isinstance(node, ast.ClassDef):
                    add(node.body, f"{node.name}.")
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found.update(before + (name.asname or name.name) for name in node.names)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(before + target.id for target in targets if isinstance(target, ast.Name))

    add(ast.parse(path.read_text("utf-8")).body)
    return frozenset(found)


def is_there(dotted: str) -> bool:
    """Whether ``package.module`` or ``package.module.name`` exists."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        place, rest = ROOT.joinpath(*parts[:length]), ".".join(parts[length:])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.exists():
                return not rest or rest in names_in(path)
        if place.is_dir() and not rest:
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules_files_and_pages_that_are_named_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    missing = []
    for quoted in _QUOTED.findall(_BLOCK.sub("", text)):
        if re.fullmatch(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+", quoted):
            # A host name, a metric or a file in a state folder looks the same.
            known = is_there(quoted) or quoted.endswith((".db", ".yaml", ".json"))
            missing += [] if known else [quoted]
        elif re.fullmatch(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|json|lock|service|conf|sh|toml)", quoted):
            top = quoted.split("/")[0]
            if (ROOT / top).is_dir() and not (ROOT / quoted).exists():
                missing.append(quoted)
        elif re.fullmatch(r"test_\w+\.py", quoted) and not list((ROOT / "tests").rglob(quoted)):
            missing.append(quoted)
    for target in _LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = page if not file else page.parent / file
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            missing.append(target)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_is_not_there_is_seen() -> None:
    assert is_there("cloud.compression.distil.distil")
    assert is_there("cloud.domain.quantisation.QuantisationSpec.weight_bits")
    assert is_there("cloud.domain")
    assert not is_there("cloud.compression.distil.distill")
    assert not is_there("cloud.compresion")
