"""The examples of docs/extending.md, as they stand there, chosen by configuration and used by a running
loop."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from loop.backends import open_log
from loop.config import ConfigError, load
from loop.demo.stream import START, DemoStream
from loop.doors import open_engine, open_trainer
from loop.embedded import Embedded
from loop.offline import pipeline
from loop.offline.config import load_stat
from loop.offline.opening import open_bench
from loop.wiring import open_services, set_up_student
from loop.workers.services import Ports
from streams.clock import HandClock
from streams.codec import Codec, encode
from streams.events import Diagnosed, StudentOutput
from streams.files import read_objects
from training.mix import read_dataset
from training.registry import MlflowRegistry

HERE = Path(__file__).parent
DOCUMENT = (HERE.parents[1] / "docs" / "extending.md").read_text()
EXAMPLES = re.findall(r"```(?:python|toml)\n(# (\S+)\n.*?)```", DOCUMENT, re.DOTALL)
CODE = [name for _, name in EXAMPLES if name.endswith(".py")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's files. One folder for all tests: a kind is added once in a process."""
    folder = tmp_path_factory.mktemp("extending")
    for text, name in EXAMPLES:
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("name", CODE)
def test_an_example_is_short(name: str) -> None:
    lines = next(text for text, other in EXAMPLES if other == name).splitlines()
    assert 10 <= sum(bool(line.strip()) for line in lines) <= 30 and max(map(len, lines)) <= 120


@pytest.mark.slow
def test_engine_trainer_teacher_filter_and_strategy_are_used_by_a_running_loop(
    folder: Path, tmp_path: Path
) -> None:
    small = tomllib.loads((HERE / "small.toml").read_text())
    small["demo"] |= {"questions": 200}
    small["policy"] |= {"min_pool": 10, "examples_per_skill": 16}
    small["curate"] = {"replay_candidates": 40}
    small["strategy"] = {"rewrite": False}
    config = load(folder / "mine.toml", overrides=small)
    clock = HandClock(START)
    empty = StudentOutput(
        event_id="e",
        occurred_at=START,
        student="demo",
        student_version=1,
        question="an empty answer",
        answer=" ",
    )
    with open_log(config, tmp_path) as log, open_services(config, tmp_path, Ports(clock=clock)) as services:
        set_up_student(services)
        stream, embedded = DemoStream(services, log, clock), Embedded(services, log)
        while stream.step() and not services.rounds.list("demo"):
            embedded.settle()
        log.append([encode(empty)])
        embedded.settle()
        ended = services.rounds.list("demo")[0]
        diagnoses = [Codec().decode(record) for record in log.read("diagnoses")]
    assert ended.state in ("promoted", "rejected"), ended.record.ended
    assert type(services.engine).__name__ == "RememberingEngine" and vars(services.engine)["known"]
    made = ended.record.need_trained()
    (result,) = services.round_dir(ended.round_id).glob("sft/*/result.json")
    assert json.loads(result.read_text())["steps"] < ended.record.decision.steps and made.tokens > 0
    rows = read_dataset(services.round_dir(ended.round_id) / "dataset.jsonl")
    assert {row.provenance.part for row in rows if row.provenance.strategy != "replay"} == {"single-skill"}
    assert isinstance(services.registry, MlflowRegistry)
    found = [event for event in diagnoses if isinstance(event, Diagnosed)]
    assert {"unfinished", "gold"} == {event.decided_by for event in found}
    assert {event.teacher for event in found if event.teacher} == {"keyword"}


def test_a_strategy_is_used_by_the_offline_method(folder: Path) -> None:
    def question(number: int, skills: list[str]) -> dict[str, object]:
        text = f"{' and '.join(skills)} of {number * 7} boats, {number * number} jars and {number + 90} drums"
        return {
            "id": f"q{number}",
            "question": text,
            "solution": "s",
            "answer": str(number),
            "skills": skills,
        }

    pool = [question(number, [["add"], ["gcd"], ["add", "gcd"]][number % 3]) for number in range(30)]
    asked = [question(number, ["gcd"]) for number in range(100, 104)]
    said = [{"question_id": row["id"], "response": "no idea"} for row in asked]
    for name, rows in (("train", pool), ("validation", asked), ("answers", said)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_bench(load_stat(folder / "stat.toml"), folder / "run") as bench:
        pipeline.run_stages(bench, "dataset")
    rows = list(read_objects(folder / "run" / "dataset.jsonl"))
    assert rows and {tuple(row["skills"]) for row in rows} == {("gcd",)}
    assert {row["origin"]["strategy"] for row in rows} == {"single-skill"}


def test_a_mistake_in_a_plugins_options_is_named(folder: Path, tmp_path: Path) -> None:
    config = load(folder / "mine.toml", {"SKILLLOOP_TRAIN__FEW_PASSES__PASSES": "many"})
    with pytest.raises(ConfigError, match=r"trainer 'few_passes': passes: .*integer"):
        open_trainer(config.train)
    with pytest.raises(ConfigError, match=r"SKILLLOOP_TRAIN__OTHER__\*: unknown key 'train\.other'"):
        load(folder / "mine.toml", {"SKILLLOOP_TRAIN__OTHER__PASSES": "1"})
    broken = tmp_path / "broken.toml"
    broken.write_text('plugins = ["gone.py"]')
    with pytest.raises(ConfigError, match=r"gone\.py is not a Python file"):
        load(broken)
    (tmp_path / "gone.py").write_text("from loop.doors import ENGINES\nENGINES.add('scripted', None)")
    with pytest.raises(ConfigError, match="engine 'scripted' exists already"):
        load(broken)
    (tmp_path / "gone.py").write_text("from loop.doors import ENGINES\nENGINES.add('mine', lambda one: 1)")
    with pytest.raises(ConfigError, match=r"'mine' must be a function of section, base_dir"):
        load(broken)
    (tmp_path / "gone.py").write_text("from agent.strategies import STRATEGIES\nSTRATEGIES.add('mine', None)")
    with pytest.raises(ConfigError, match=r"'mine' must be a function of given, settings"):
        load(broken)
    flat = tmp_path / "flat.toml"
    flat.write_text("[train]\nkind = 'few_passes'\nfew_passes = 3")
    with pytest.raises(ConfigError, match=r"flat\.toml: train\.kind: .* 'few_passes' must be a table"):
        open_trainer(load(flat).train)
    with pytest.raises(ConfigError, match="unknown engine 'remembring'; did you mean 'remembering'"):
        open_engine(config.engine.model_copy(update={"kind": "remembring"}), tmp_path)
