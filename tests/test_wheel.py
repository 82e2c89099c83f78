"""The wheel, installed into an environment of its own and used from another directory, as a stranger has it.

The libraries it needs are those of this environment, lent by a .pth file: tests/user/first_loop.sh downloads
them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from loop.cli.init import FILES, Template

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*PIP, *build], check=True)
    (wheel,) = folder.glob("skillloop-*.whl")
    home = folder / "environment"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (site / "lent.pth").write_text("".join(f"{path}\n" for path in lent))
    python = str(home / "bin" / "python")
    subprocess.run(
        [*PIP, "--python", python, "install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)],
        check=True,
    )
    return home / "bin"


def run(command: Path, *arguments: object, where: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SKILLLOOP_DIR")}
    line = [str(command), *map(str, arguments)]
    return subprocess.run(
        line, cwd=where, env=kept | environ, capture_output=True, text=True, check=False, timeout=500
    )


def test_it_says_its_version_and_has_nothing_of_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "skillloop", "--version", where=tmp_path).stdout == "skillloop 0.1.0\n"
    assert run(installed / "python", "-m", "loop.cli", "--version", where=tmp_path).returncode == 0
    code = "import loop.shipped as s; print(s.ROOT, *sorted(p.name for p in s.ROOT.rglob('*.json')))"
    root, *schemas = run(installed / "python", "-c", code, where=tmp_path).stdout.split()
    assert Path(root).is_relative_to(installed.parent)
    assert "skillloop.student-output.v1.json" in schemas


@pytest.mark.parametrize("template", list(Template))
def test_init_writes_a_configuration_that_is_read(
    installed: Path, tmp_path: Path, template: Template
) -> None:
    made = run(installed / "skillloop", "init", "mine", "--template", template, where=tmp_path)
    assert made.returncode == 0 and "next: " in made.stdout, made.stderr
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o755
    for name, source in FILES[template].items():
        written = tmp_path / "mine" / name
        assert written.read_bytes() == (ROOT / source).read_bytes()
        # compose mounts the folder into containers that run as uid 1000
        assert written.stat().st_mode & 0o777 == (0o600 if name == ".env" else 0o644)
    again = run(installed / "skillloop", "init", "mine", "--template", template, where=tmp_path)
    assert again.returncode == 1 and "exists already" in again.stderr
    if (tmp_path / "mine" / "skillloop.toml").is_file():
        listed = run(
            installed / "skillloop",
            "topics",
            "create",
            where=tmp_path,
            SKILLLOOP_CONFIG="mine/skillloop.toml",
            SKILLLOOP_DIR="elsewhere",
        )
        assert listed.returncode == 0 and "8 topics" in listed.stdout, listed.stderr
        assert (tmp_path / "elsewhere" / "log.db").is_file() and not (tmp_path / "runs").exists()


def test_a_configuration_in_the_environment_is_read(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[polcy]\n")
    done = run(installed / "skillloop", "topics", "list", where=tmp_path, SKILLLOOP_CONFIG="mine.toml")
    assert done.returncode == 1 and "mine.toml" in done.stderr and "'policy'" in done.stderr


@pytest.mark.long
def test_the_demo_runs_from_any_directory(installed: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "loop" / "small.toml", tmp_path / "small.toml")
    line = ("demo", "--config", "small.toml", "--json", "figures.json")
    done = run(installed / "skillloop", *line, where=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "figures.json").is_file() and (tmp_path / "runs" / "demo" / "timeline.png").is_file()
