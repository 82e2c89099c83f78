from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loop.config import CONFIGS, Config, ConfigError
from loop.offline.config import NOT_HERE, StatConfig, load_stat
from tests.warm import run_warm

Files = Callable[..., Path]
SKILLLOOP = Path(sys.executable).parent / "skillloop"


@pytest.mark.parametrize("path", sorted((CONFIGS / "stat").glob("*.toml")), ids=lambda path: path.name)
def test_every_committed_file_is_valid(path: Path) -> None:
    assert load_stat(path).data.train.is_absolute()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[stratgy]\nname = 'mix'", "did you mean 'strategy'"),
        ("[strategy]\nk_sell = 3", "did you mean 'k_sel'"),
        ("[strategy]\nname = 'stat'", "strategy.name"),
        ("[teacher]\nkind = 'chat'", "needs its server in [teacher.chat]"),
        ("[catalog]\nsource = 'file'", "catalog.file is needed"),
        ("[filters]\norder = ['prm']", "filters.prm is needed"),
        ("[monitor]\nfilters = ['gold']", "monitor belongs to the loop; `skillloop stat` has [filters]"),
        ("[budget]\nusd_per_day = 1", "`skillloop stat` has budget.usd_per_round"),
        ("[budget]\ncap_usd = 1", "budget.cap_usd is now budget.usd_per_round"),
        ("[train]\nlr = 1e-4", "train.lr is now train.sft.lr"),
        ("[gate]\nalpha = 0.1", "gate belongs to the loop"),
        ("[", "cannot read"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_to_write(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(
        text if text.startswith("[data]") or text == "[" else f"[data]\ntrain = 't.jsonl'\n{text}"
    )
    with pytest.raises(ConfigError) as caught:
        load_stat(path)
    assert told in str(caught.value) and "wrong.toml" in str(caught.value)


def test_paths_start_at_the_files_folder_and_the_environment_is_on_top(make_files: Files) -> None:
    config = make_files()
    loaded = load_stat(config, {"SKILLLOOP_STRATEGY__PAIRS": "7", "SKILLLOOP_SEED": "3"})
    assert (
        loaded.data.held_out == (config.parent / "test.jsonl",)
        and loaded.answers == config.parent / "answers.jsonl"
    )
    assert loaded.strategy.pairs == 7


def test_a_key_in_the_environment_stays_secret(make_files: Files) -> None:
    config = make_files()
    chat = '[teacher.chat]\nbase_url = "http://h/v1"\nmodel = "m"\nprice = { free = true }\n'
    scripted = 'scripted = { script = "script.json" }'
    config.write_text(config.read_text().replace(scripted, 'kind = "chat"\n' + chat))
    loaded = load_stat(config, {"SKILLLOOP_TEACHER__CHAT__API_KEY": "sk-secret"})
    assert loaded.teacher.chat is not None and loaded.teacher.chat.api_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(loaded)


def test_the_loops_variables_are_left_alone_and_its_keys_in_a_file_are_not(tmp_path: Path) -> None:
    """Whoever exports where Kafka is can run both commands."""
    (tmp_path / "stat.toml").write_text("[data]\ntrain = 't.jsonl'\n")
    loops = {
        "SKILLLOOP_LOG__KIND": "kafka",
        "SKILLLOOP_STUDENT__NAME": "mathbot",
        "SKILLLOOP_GATEWAY__PORT": "1",
        "SKILLLOOP_BUDGET__USD_PER_DAY": "1",
    }
    command = ("stat", "--config", tmp_path / "stat.toml", "--run", tmp_path / "run", "--from", "nothing")
    done = run_warm(SKILLLOOP, *command, environ=loops)
    assert done.returncode == 1 and "'nothing'" in done.stderr, done.stderr  # as far as its arguments
    done = run_warm(SKILLLOOP, *command, environ=loops | {"SKILLLOOP_STUDENT__NAM": "x"})
    assert "environment variable SKILLLOOP_STUDENT__NAM" in done.stderr
    (tmp_path / "stat.toml").write_text("[log]\nkind = 'kafka'\n")
    assert "log belongs to the loop" in run_warm(SKILLLOOP, *command, environ=loops).stderr


def test_every_section_of_the_loop_alone_is_known_as_such() -> None:
    assert set(Config.model_fields) - set(StatConfig.model_fields) <= set(NOT_HERE)
