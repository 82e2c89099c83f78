"""`skillloop init`: what it says, and where it cannot write."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from loop.cli.approvals import signed
from loop.cli.init import Template
from tests.warm import run_warm

SKILLLOOP = Path(sys.executable).parent / "skillloop"


@pytest.mark.parametrize("where", ["afile", "afile/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_one_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("mine")
    done = run_warm(SKILLLOOP, "init", tmp_path / where)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert f"UnusableDirectory: cannot write to {tmp_path / where}: " in done.stderr
    assert (tmp_path / "afile").read_text() == "mine"


@pytest.mark.parametrize("template", list(Template))
def test_what_comes_next_can_be_pasted(template: Template, tmp_path: Path) -> None:
    folder = tmp_path / "my dir"
    done = run_warm(SKILLLOOP, "init", folder, "--template", template)
    said = shlex.split(done.stdout.partition("next: ")[2])
    file = "skillloop.toml" if template == Template.DEMO else "stat.toml"
    assert done.returncode == 0 and str(folder / file) in said


def test_compose_is_told_everything_that_it_needs(tmp_path: Path) -> None:
    said = run_warm(SKILLLOOP, "init", tmp_path / "mine", "--template", "compose").stdout
    for needed in (".env", "skillloop-*.whl", "pool.jsonl", "held_out.jsonl", "student/", "--until labels",
                   "a+rX", "build", "up --detach --wait"):  # fmt: skip
        assert needed in said.partition("next: ")[2], needed


def test_a_user_without_a_name_can_promote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user may have no entry in /etc/passwd."""
    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    nameless = tmp_path / "skillloop"
    nameless.write_text(
        f"import os\nos.getuid = lambda: 54321\nfor name in {names}:\n    os.environ.pop(name, None)\n"
        "from loop.cli.main import main\nmain()\n"
    )
    done = run_warm(nameless, "promote", 2, "--reason", "it is better", "--dir", tmp_path)
    assert "NothingThere" in done.stderr and "Traceback" not in done.stderr, done.stderr
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert signed("it is better", None)[1].startswith("uid 54321@")
    assert signed("it is better", "ann") == ("it is better", "ann")
