from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loop.config import CONFIGS, ConfigError
from loop.offline.config import load_stat

Files = Callable[..., Path]


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
