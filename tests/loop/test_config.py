from __future__ import annotations

from pathlib import Path

import pytest

from loop.backends import open_store
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


def test_the_environment_is_blamed_for_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[policy]\nmin_needed = 11\n")
    for environ, told in (
        (
            {"SKILLLOOP_POLICY__MIN_ANSWER": "20"},
            r"variable SKILLLOOP_POLICY__MIN_ANSWER: .* mean 'min_answers'",
        ),
        ({"SKILLLOOP_POLICY__MIN_ANSWERS": "many"}, r"variable SKILLLOOP_POLICY__MIN_ANSWERS: .*got 'many'"),
        (
            {"SKILLLOOP_POLICY__MIN_STEPS": "900"},
            r"some\.toml, with SKILLLOOP_POLICY__\* on top: policy: min_steps",
        ),
        ({"SKILLLOOP_POLIC__X": "1"}, r"^environment variable SKILLLOOP_POLIC__\*: unknown key 'polic'"),
        ({"SKILLLOOP_A__B": "1", "SKILLLOOP_A__B__C": "1"}, "SKILLLOOP_A__B__C: another one gives 'b'"),
        ({"SKILLLOOP_SEDD": "3"}, r"^environment variable SKILLLOOP_SEDD: .* mean 'seed'"),
        ({"SKILLLOOP_SEED": "-1"}, r"^environment variable SKILLLOOP_SEED: seed: .*got -1"),
    ):
        with pytest.raises(ConfigError, match=told):
            load(path, environ)


def test_a_key_outside_of_sections_comes_from_the_environment_too() -> None:
    commands_own = {"SKILLLOOP_LOG_LEVEL": "DEBUG", "SKILLLOOP_CRASH_AT": "x:1", "SKILLLOOP_IMAGE": "i"}
    assert load(None, {"SKILLLOOP_SEED": "7", **commands_own}).seed == 7


def test_an_unknown_kind_is_blamed_on_who_chose_it(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[store]\nkind = 'postgres'\n")
    told = r"store\.kind: unknown state store 'postgres'; known: sql"
    with pytest.raises(ConfigError, match=rf"some\.toml: {told}"):
        open_store(load(path), tmp_path)
    with pytest.raises(ConfigError, match=rf"^environment variable SKILLLOOP_STORE__KIND: {told}"):
        open_store(load(None, {"SKILLLOOP_STORE__KIND": "postgres"}), tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train]\nlr = 1e-4", "train.lr is now train.sft.lr"),
        ("[train]\nsteps = 10", "train.steps is no longer set: the policy"),
        ("[train.sft]\nbatch_size = 8", "train.sft.batch_size is now train.batch_size"),
        ("[student]\nbatch_size = 8", "is now engine.transformers.batch_size"),
        ("[mlflow]\ntracking_uri = 'http://m'", "mlflow is now registry.mlflow"),
        ("[teacher]\nerror_rate = 0.1", "is now teacher.symbolic.error_rate"),
        ("[curate.synthesis]\nacceptance = 0.9", "curate.synthesis is now strategy"),
        ("[curate]\nmin_agreement = 2", "is now strategy.min_agreement"),
        ("[gate]\nsmall_skills = 'pool'", "gate.small_skills is no longer set"),
        ("[budget]\ntrain_seconds_per_round = 1", "train_seconds_per_round is no longer set"),
        ("[budget]\ncap_usd = 1", "budget.cap_usd is now budget.usd_per_round"),
        ("[filters]\norder = ['gold']", "filters belongs to `skillloop stat`; the loop has [monitor]"),
        ("[data]\ntrain = 'a'", "the loop has [task]"),
        ("[train]\nepochs = 3", "the policy's steps"),
        ("[train]\nkind = 'launch'\nbatch_size = 8\nlaunch.processes = 3", "batch_size 8 is not a multiple"),
    ],
)
def test_an_old_key_is_told_where_it_went(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "old.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"old\.toml") as caught:
        load(path)
    assert told in str(caught.value)


def test_paths_of_the_environment_start_where_the_command_runs(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    path = tmp_path / "some.toml"
    path.write_text('plugins = ["mine.py"]\n[student]\nbase = "models/s"\n[task]\nlabels = ["l.jsonl"]\n')
    config = load(path, {"SKILLLOOP_STUDENT__BASE": "own/s", "SKILLLOOP_TASK__POOL": "pool.jsonl"})
    assert (config.student.base, config.task.pool) == (Path.cwd() / "own/s", Path.cwd() / "pool.jsonl")
    assert config.task.labels == (tmp_path / "l.jsonl",) and config.plugins == (tmp_path / "mine.py",)


def test_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('plugins = []\n[student]\nbase = "models/s"\n[monitor]\nprm = "prm"\n')
    config = load(path)
    assert (config.student.base, config.monitor.prm) == (tmp_path / "models/s", tmp_path / "prm")
    path.write_text('[student]\nbase = "builtin:qwen"')
    assert load(path).student.base == "builtin:qwen"


def test_a_secret_may_look_like_a_number_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text('[teacher]\nkind = "chat"\n[teacher.chat]\nbase_url = "http://h/v1"\nmodel = "m"\n')
    chat = load(path, {"SKILLLOOP_TEACHER__CHAT__API_KEY": "1e5"}).teacher.chat
    assert chat is not None and chat.api_key.get_secret_value() == "1e5"
    path.write_text(path.read_text().replace('model = "m"', "max_tokens = 5"))
    with pytest.raises(ConfigError, match=r"teacher\.chat\.model: Field required") as caught:
        load(path, {"SKILLLOOP_TEACHER__CHAT__API_KEY": "sk-secret"})
    assert "sk-secret" not in str(caught.value)
    path.write_text('[store]\nurl = ["postgresql://u:sk-secret@h/db"]\n')
    with pytest.raises(ConfigError, match=r"store\.url: Input should be a valid string$"):
        load(path)


def test_secrets_in_a_list_come_from_the_environment_and_are_never_shown(tmp_path: Path) -> None:
    gateway = load(None, {"SKILLLOOP_GATEWAY__API_KEYS": '["sk-a", "sk-b"]'}).gateway
    assert gateway is not None
    assert [key.get_secret_value() for key in gateway.api_keys] == ["sk-a", "sk-b"]
    path = tmp_path / "some.toml"
    path.write_text("[gateway]\napi_keys = [12345678]\n")
    with pytest.raises(ConfigError, match=r"gateway\.api_keys\.0: Input should be a valid string$"):
        load(path)
    chat = {"BASE_URL": "http://h/v1", "MODEL": "m", "API_KEY": '["x"]'}
    teacher = load(None, {f"SKILLLOOP_TEACHER__CHAT__{key}": text for key, text in chat.items()}).teacher.chat
    assert teacher is not None and teacher.api_key.get_secret_value() == '["x"]'


def test_a_plugin_that_exits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "some.toml").write_text('plugins = ["leaves.py"]\n')
    with pytest.raises(ConfigError, match=r"leaves\.py: SystemExit"):
        load(tmp_path / "some.toml")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no configuration file nowhere\.toml"):
        load(Path("nowhere.toml"))
