"""The conformance suite of the engine port, run over every engine: in process, scripted, vLLM's API in this
process, and a real vLLM."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serving.engine import Engine, EngineError, Sampling
from serving.scripted_engine import ScriptedEngine
from serving.settings import EngineSettings
from serving.testing.fake_vllm import FakeVllm
from serving.transformers_engine import TransformersEngine
from serving.vllm_engine import VllmEngine

PROMPTS = ["add 1 and 2 ?", "sub 9 of 4 and 3 ?", "mul 2 and the 3 + 4 * 5 ?", "7 ?"]
REAL = pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow, pytest.mark.long])


@pytest.fixture(params=["transformers", "scripted", "vllm's API", REAL])
def engine(
    request: pytest.FixtureRequest,
    base: Path,
    make_fake: Callable[[], FakeVllm],
    make_engine: Callable[..., VllmEngine],
) -> Engine:
    if request.param == "scripted":
        return ScriptedEngine(lambda prompt, version, sample: f"{prompt} {version} {sample}")
    if request.param == "vllm's API":
        return make_engine(make_fake().url, make_fake().url)
    if request.param == "vllm":
        return make_engine(request.getfixturevalue("vllm_server"), base_as_adapter=True)
    return TransformersEngine(base, EngineSettings(batch_size=3, stage_tokens=5, device="cpu"))


def test_nothing_is_loaded_at_first(engine: Engine) -> None:
    assert engine.versions() == ()
    with pytest.raises(EngineError, match="version 1 is not loaded"):
        engine.generate(PROMPTS, 1)


def test_answers_have_the_shape_of_prompts_and_samples(engine: Engine) -> None:
    engine.load(1, None)
    answers = engine.generate(PROMPTS, 1, Sampling(max_new_tokens=8, temperature=1.0, samples=3))
    assert [len(row) for row in answers] == [3, 3, 3, 3]
    assert all(isinstance(text, str) for row in answers for text in row)
    assert engine.generate([], 1) == []


def test_greedy_and_seeded_sampling_repeat(engine: Engine) -> None:
    engine.load(1, None)
    for sampling in (
        Sampling(max_new_tokens=12),
        Sampling(max_new_tokens=12, temperature=1.0, samples=2, seed=5),
    ):
        assert engine.generate(PROMPTS, 1, sampling) == engine.generate(PROMPTS, 1, sampling)


def test_answers_belong_to_their_prompts(engine: Engine) -> None:
    engine.load(1, None)
    together = engine.generate(PROMPTS, 1, Sampling(max_new_tokens=12))
    assert together == [engine.generate([prompt], 1, Sampling(max_new_tokens=12))[0] for prompt in PROMPTS]
    assert engine.generate(PROMPTS[::-1], 1, Sampling(max_new_tokens=12)) == together[::-1]


def test_versions_answer_as_themselves(
    engine: Engine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    engine.load(1, None)
    alone = engine.generate(PROMPTS, 1, Sampling(max_new_tokens=12))
    engine.load(3, make_adapter(tmp_path / "a", seed=3))
    engine.load(2, make_adapter(tmp_path / "b", seed=2))
    assert engine.versions() == (1, 2, 3)
    answers = {
        version: engine.generate(PROMPTS, version, Sampling(max_new_tokens=12)) for version in (3, 1, 2, 1)
    }
    assert answers[1] == alone
    assert len({str(answer) for answer in answers.values()}) == 3
    engine.unload(2)
    assert engine.versions() == (1, 3)
    assert engine.generate(PROMPTS, 3, Sampling(max_new_tokens=12)) == answers[3]
    engine.unload(3)
    engine.unload(3)
    assert engine.generate(PROMPTS, 1, Sampling(max_new_tokens=12)) == alone
    with pytest.raises(EngineError):
        engine.generate(PROMPTS, 3)


def test_a_version_is_immutable(engine: Engine, make_adapter: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make_adapter(tmp_path / "a", seed=3), make_adapter(tmp_path / "b", seed=4)
    engine.load(2, first)
    engine.load(2, first)
    for other in (second, None):
        with pytest.raises(EngineError, match="version 2 is loaded with other files"):
            engine.load(2, other)
    assert engine.versions() == (2,)


@pytest.mark.parametrize(
    "damage", ["truncated", "no weights", "no configuration", "not json", "dora", "missing directory"]
)
def test_a_corrupt_adapter_is_refused(
    engine: Engine, make_adapter: Callable[..., Path], tmp_path: Path, damage: str
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=3)
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.rename(adapter / "adapter_model.bin")
    elif damage == "no configuration":
        config.unlink()
    elif damage == "not json":
        config.write_text("{")
    elif damage == "dora":
        config.write_text(config.read_text().replace('"use_dora": false', '"use_dora": true'))
    else:
        adapter = tmp_path / "nowhere"
    with pytest.raises(EngineError, match="adapter"):
        engine.load(2, adapter)
    assert engine.versions() == ()
    engine.load(2, make_adapter(tmp_path / "whole", seed=3))
    assert engine.generate(["add 1 ?"], 2, Sampling(max_new_tokens=2))


def test_threads_get_their_own_version(
    engine: Engine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    engine.load(1, None)
    engine.load(2, make_adapter(tmp_path / "a", seed=3))
    expected = {version: engine.generate(PROMPTS, version, Sampling(max_new_tokens=6)) for version in (1, 2)}
    wrong: list[int] = []

    def ask(version: int) -> None:
        for _ in range(3):
            if engine.generate(PROMPTS, version, Sampling(max_new_tokens=6)) != expected[version]:
                wrong.append(version)

    threads = [threading.Thread(target=ask, args=(version,)) for version in (1, 2, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_log_probabilities_are_those_of_the_version(
    engine: Engine, base: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    if isinstance(engine, ScriptedEngine):
        pytest.skip("a script has no log-probabilities")
    adapter = make_adapter(tmp_path / "a", seed=3)
    texts, candidates = [[5, 9, 30, 11], [7, 8]], [[4, 5, 6], [30]]
    peft = TransformersEngine(base, EngineSettings(device="cpu"))
    for version, files in ((1, None), (2, adapter)):
        engine.load(version, files)
        peft.load(version, files)
        scores = engine.log_probabilities(texts, candidates, version)
        assert [len(row) for row in scores] == [3, 1]
        for row, expected in zip(scores, peft.log_probabilities(texts, candidates, version), strict=True):
            assert row == pytest.approx(expected, abs=1e-4)
    with pytest.raises(EngineError, match="version 9 is not loaded"):
        engine.log_probabilities(texts, candidates, 9)
