from __future__ import annotations

from pathlib import Path

import pytest

from loop.config import CONFIGS, Config, ConfigError, load


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_every_committed_file_is_valid(path: Path) -> None:
    assert isinstance(load(path), Config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[polcy]\nmin_answers = 1", "did you mean 'policy'"),
        ("[policy]\nmin_answer = 1", "did you mean 'min_answers'"),
        ("[profile]\nwindow = 1", "did you mean 'window_buckets'"),
        ("[train]\nlearning_rate_factor = 1", "known keys"),
        ("[policy]\nmin_answers = 'many'", "policy.min_answers"),
        ("[policy", "cannot read"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_to_write(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.toml") as caught:
        load(path)
    assert told in str(caught.value)


def test_the_environment_overrides_the_file_and_arguments_override_both(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("seed = 1\n[policy]\nmin_answers = 10\nmin_needed = 11\n")
    environ = {
        "SKILLLOOP_POLICY__MIN_ANSWERS": "20",
        "SKILLLOOP_STORE__URL": "postgresql+psycopg://u:secret@h/db",
        "OTHER__X": "1",
    }
    config = load(path, environ, {"seed": 3})
    assert (config.seed, config.policy.min_answers, config.policy.min_needed) == (3, 20, 11)
    assert "secret" not in repr(config)
    assert config.store.url.get_secret_value().endswith("@h/db")


def test_a_misspelt_variable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="did you mean 'min_answers'"):
        load(None, {"SKILLLOOP_POLICY__MIN_ANSWER": "20"})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file nowhere\.toml"):
        load(Path("nowhere.toml"))
