"""One tree of errors: what reaches a user descends from `SkillloopError`."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("agent", "streams", "serving", "training", "graphs", "loop")
CAUGHT_WHERE_THEY_ARISE = {"BadLine", "NotOurs", "NoCompletion", "Rejected", "_BadRequest", "Interrupted"}
"""Never leave their module: a retry, an abstention, a dead letter or a reply is made of them."""


def test_every_other_error_descends_from_the_root() -> None:
    strays = {
        node.name
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Exception" for base in node.bases)
    }
    assert strays - CAUGHT_WHERE_THEY_ARISE == {"SkillloopError"}
