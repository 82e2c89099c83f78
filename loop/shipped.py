"""The files that come with the program beside its code: configurations, documents, schemas, compose.yaml.

A checkout has them at its root; the wheel has copies in the folder `shipped` beside this file
(pyproject.toml, force-include), laid out in the same way.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_INSTALLED = Path(__file__).with_name("shipped")
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]
CONFIGS = ROOT / "configs"


def program_version() -> str:
    """The version of the installed package; a checkout that was never installed has none."""
    try:
        return version("skillloop")
    except PackageNotFoundError:
        return "of a checkout (not installed)"
