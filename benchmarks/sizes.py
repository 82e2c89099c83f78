"""Sizes of the source, to compare two versions by: `python -m benchmarks.sizes [ROOT]`.

Source is every `.py` file of the six packages; lines count blanks and docstrings; statements do not depend on
the width of lines. `Any` is counted where the
code uses the name, imports aside. An arrow is an import from one room of `loop/` (a folder, or a module at
its top) of a room above it in the order that pyproject.toml gives to import-linter; in a version without that
contract, an import that closes a circle between two rooms counts instead.
"""

from __future__ import annotations

import argparse
import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("agent", "streams", "serving", "training", "graphs", "loop")
WIDTH = 110

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: Path) -> dict[Path, str]:
    """The text of every source file, by its path below `root`."""
    files = (path for package in PACKAGES for path in sorted((root / package).rglob("*.py")))
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in files}


def room(parts: tuple[str, ...]) -> str:
    """The room of `loop/` that a module lies in: `loop/cli/main.py` and `loop.cli.main` are in `cli`."""
    return parts[1].removesuffix(".py") if len(parts) > 1 else ""


def imports(tree: ast.Module) -> Iterator[str]:
    """The modules of `loop` that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "loop":
            base = str(node.module)
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "loop" else (base,)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("loop."))


def order(root: Path) -> dict[str, int] | None:
    """The floor of each room, 0 at the top, or None where no contract names them."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    for contract in settings["contracts"]:
        if contract.get("containers") == ["loop"]:
            floors = [re.split(r"[|:]", layer) for layer in contract["layers"]]
            return {name.strip(" ()"): floor for floor, names in enumerate(floors) for name in names}
    return None


def upward(trees: dict[Path, ast.Module], floors: dict[str, int] | None) -> set[tuple[str, str]]:
    """The pairs of rooms with an arrow up."""
    arrows = {
        (room(path.parts), room(tuple(name.split("."))))
        for path, tree in trees.items()
        if path.parts[0] == "loop"
        for name in imports(tree)
    }
    arrows = {(here, there) for here, there in arrows if here != there and there}
    if floors is None:
        return {pair for pair in arrows if pair[::-1] in arrows}
    return {(a, b) for a, b in arrows if a in floors and b in floors and floors[b] < floors[a]}


def longest_function(trees: dict[Path, ast.Module]) -> tuple[int, str]:
    """(lines, where) of the longest function, docstring included."""
    return max(
        ((node.end_lineno or 0) - node.lineno + 1, f"{path}:{node.name}")
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    )


def figures(root: Path) -> dict[str, str]:
    """What is printed, by name."""
    texts = sources(root)
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = [line for text in texts.values() for line in text.splitlines()]
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    longest = max(texts, key=lambda path: texts[path].count("\n"))
    size, name = longest_function(trees)
    floors = order(root)
    arrows = upward(trees, floors)
    per_package = {p: sum(t.count("\n") for path, t in texts.items() if path.parts[0] == p) for p in PACKAGES}
    return {
        "source lines": f"{len(lines)} ({', '.join(f'{p} {n}' for p, n in per_package.items())})",
        "statements": str(sum(isinstance(node, ast.stmt) for node in nodes)),
        "files": str(len(texts)),
        "classes": f"{classes}, {1000 * classes / len(lines):.1f} per 1,000 lines",
        "longest file": f"{longest}, {texts[longest].count(chr(10))} lines",
        "longest function": f"{name}, {size} lines",
        "Any": str(sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)),
        "upward arrows in loop/": f"{len(arrows)} {sorted(arrows) if arrows else ''}".strip(),
        "floors of loop/": str(len(set(floors.values()))) if floors else "no contract",
        f"lines over {WIDTH} columns": f"{sum(len(line) > WIDTH for line in lines) / len(lines):.1%}",
    }


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description="sizes of the source")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    for name, value in figures(parser.parse_args().root).items():
        print(f"{name:24} {value}")


if __name__ == "__main__":
    main()
