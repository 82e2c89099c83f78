"""What documents, comments and docstrings name is in the repository."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from loop.cli.main import app

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "benchmarks", "graphs", "loop", "serving", "streams", "training")
FOLDERS = (*PACKAGES, "configs", "docs", "tests")
SUFFIXES = (".md", ".py", ".toml", ".yaml")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w")
MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[a-z_]\w*)+(?![\w(/-])")
LINK = re.compile(r"\]\((?!https?:)([\w./-]*[./][\w./-]*|decisions|schemas)(?:#[^)]*)?\)")
COMMAND = re.compile(r"(?:`|^ *|# +)skillloop ([a-z]+)", re.MULTILINE)
DECISION = re.compile(r"decisions?[ /](0\d{3})")
ELSEWHERE = re.compile(r"\b(?:design|facts|method|world|conventions)\.md\b|shared/\w+\.md\b")
NAMES_THE_PAST = ("CHANGELOG.md", "tests/test_documents.py")


@cache
def texts() -> dict[str, str]:
    """Documents, sources and configurations by their path."""
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    paths += [*ROOT.glob("*.md"), *ROOT.glob("*.yaml"), ROOT / "pyproject.toml", ROOT / "Makefile"]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for path in paths
        if path.suffix in SUFFIXES or path.name == "Makefile"
    }


def named(pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """(file, what it names) over everything but the files that tell of earlier names."""
    return [
        (name, match)
        for name, text in texts().items()
        if name not in NAMES_THE_PAST
        for match in pattern.findall(text)
    ]


def path_is_there(path: str) -> bool:
    """Whether the file or folder exists; a decision may be named by its number alone, and what the wheel has
    a copy of by the copy's place."""
    path = path.removeprefix("loop/shipped/")
    return (ROOT / path).exists() or any(ROOT.glob(path if "*" in path else f"{path}-*.md"))


def module_is_there(name: str) -> bool:
    """Whether a module, or a name of the package's own `__init__`, stands behind the dotted name."""
    folder, _, rest = name.partition(".")
    first = rest.split(".")[0]
    place = ROOT / folder
    if (place / f"{first}.py").is_file():
        return True
    if (place / first).is_dir():
        return rest == first or module_is_there(f"{folder}/{rest}")
    package = place / "__init__.py"
    return package.is_file() and re.search(rf"\b{first}\b", package.read_text()) is not None


def listing(pairs: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name} names {what}" for name, what in pairs)


def test_every_path_that_is_named_exists() -> None:
    wrong = [pair for pair in named(PATH) if not path_is_there(pair[1])]
    assert not wrong, listing(wrong)


def test_every_module_that_is_named_exists() -> None:
    wrong = [pair for pair in named(MODULE) if not module_is_there(pair[1])]
    assert not wrong, listing(wrong)


def test_links_between_documents_lead_somewhere() -> None:
    links = [pair for pair in named(LINK) if pair[0].endswith(".md")]
    wrong = [(name, link) for name, link in links if not (ROOT / name).parent.joinpath(link).exists()]
    assert links and not wrong, listing(wrong)


def test_every_command_that_is_named_exists() -> None:
    groups = {group.name for group in app.registered_groups}
    known = groups | {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    }
    wrong = [pair for pair in named(COMMAND) if pair[1] not in known]
    assert not wrong, listing(wrong)


def test_cited_decisions_exist() -> None:
    numbers = {path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")}
    wrong = [pair for pair in named(DECISION) if pair[1] not in numbers]
    assert not wrong, listing(wrong)


def test_nothing_cites_a_document_outside_the_repository() -> None:
    assert not named(ELSEWHERE), listing(named(ELSEWHERE))


@pytest.mark.parametrize("number", range(1, 9))
def test_the_contracts_that_the_code_cites_are_explained(number: int) -> None:
    assert re.search(rf"^{number}\. \*\*", texts()["docs/architecture.md"], re.MULTILINE)


def _messages(source: str) -> Iterator[str]:
    """The texts of a module that are no docstrings, joined where they stand in one expression."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value for part in node.values if isinstance(part, ast.Constant)]
            docs |= {id(part) for part in node.values}
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value


def test_messages_name_a_command_that_a_wheels_user_has() -> None:
    """`make` needs a checkout."""
    told = [
        (name, message)
        for name, text in texts().items()
        if name.endswith(".py") and name.split("/")[0] in set(PACKAGES) - {"benchmarks"}
        for message in _messages(text)
        if re.search(r"make [a-z]+(-[a-z]+)*(`|$)", message) and "pip install" not in message
    ]
    assert told == []
