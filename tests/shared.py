"""What is dear to make is made once for all test processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

BuildOnce = Callable[[str, Callable[[Path], None]], Path]


def build_once(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder `root/name` as `build` filled it; the first process to ask builds it, the others wait.

    A build that fails leaves its folder behind for inspection, and the next process tries again in a new one.
    """
    with FileLock(root / f"{name}.lock"):
        done = root / f"{name}.done"
        if not done.exists():
            attempt = len(list(root.glob(f"{name}-*")))
            folder = root / f"{name}-{attempt}"
            folder.mkdir()
            build(folder)
            done.write_text(folder.name)
        return root / done.read_text()
