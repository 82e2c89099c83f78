"""What only the in-process engine must do: match plain generation and PEFT, and refuse adapters that would
not be applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.engine import EngineError, Sampling
from serving.settings import EngineSettings
from serving.transformers_engine import TransformersEngine

PROMPTS = ["add 1 and 2 ?", "sub 9 of 4 and 3 ?", "mul 2 and the 3 + 4 * 5 ?", "7 ?", "is 4 and 4 ?"]


def one_by_one(base: Path, adapter: Path | None, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy decoding by the definition: one prompt, no cache, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    answers = []
    for prompt in prompts:
        ids, new = tokenizer(prompt)["input_ids"], []
        while len(new) < max_new_tokens:
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            new.append(token)
        answers.append(tokenizer.decode(new, skip_special_tokens=True))
    return answers


@pytest.fixture
def engine(base: Path) -> TransformersEngine:
    return TransformersEngine(base, EngineSettings(batch_size=3, stage_tokens=5, device="cpu"))


def test_batched_stages_equal_the_definition(
    engine: TransformersEngine, base: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=1)
    engine.load(1, None)
    engine.load(2, adapter)
    for version, path in ((1, None), (2, adapter)):
        answers = engine.generate(PROMPTS, version, Sampling(max_new_tokens=17))
        assert [row[0] for row in answers] == one_by_one(base, path, PROMPTS, 17)


def test_another_models_adapter_is_refused(
    engine: TransformersEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace(".layers.0.", ".layers.7."): weight for name, weight in weights.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(EngineError, match="matches no linear module of the base"):
        engine.load(2, adapter)
    grown = {
        name: torch.cat([weight, weight]) if "lora_B" in name else weight for name, weight in weights.items()
    }
    save_file(grown, adapter / "adapter_model.safetensors")
    with pytest.raises(EngineError, match="the base needs"):
        engine.load(2, adapter)


def test_weights_the_configuration_does_not_load_are_refused(
    engine: TransformersEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(EngineError, match="disagree"):
        engine.load(2, adapter)
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["nowhere"]}))
    with pytest.raises(EngineError, match="cannot be loaded"):
        engine.load(2, adapter)
    engine.load(2, make_adapter(tmp_path / "whole", seed=1))


def test_a_scaling_of_zero_is_refused_and_zero_weights_are_not(
    engine: TransformersEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    engine.load(2, make_adapter(tmp_path / "fresh", seed=1, scale=0.0))
    adapter = make_adapter(tmp_path / "mute", seed=1)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e-30}))
    with pytest.raises(EngineError, match="does not change"):
        engine.load(3, adapter)
    assert engine.versions() == (2,)


def test_nan_weights_are_refused(
    engine: TransformersEngine, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "a", seed=1)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: weight * float("nan") for name, weight in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(EngineError, match="NaN"):
        engine.load(2, adapter)


def test_the_context_is_a_limit(engine: TransformersEngine) -> None:
    engine.load(1, None)
    with pytest.raises(EngineError, match="takes 1 to 127"):
        engine.generate(["add " * 128], 1)
    with pytest.raises(EngineError, match="0 tokens"):
        engine.generate([""], 1)
    nearly = engine.generate(["add " * 120, "add 1 ?"], 1, Sampling(max_new_tokens=30))
    assert len(nearly[0][0].split()) <= 8


def test_sampling_leaves_the_process_random_state_alone(engine: TransformersEngine) -> None:
    engine.load(1, None)
    before = torch.random.get_rng_state()
    some = engine.generate(PROMPTS, 1, Sampling(max_new_tokens=12, temperature=1.0, samples=4, seed=1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert some != engine.generate(
        PROMPTS, 1, Sampling(max_new_tokens=12, temperature=1.0, samples=4, seed=2)
    )
    assert len(set(some[0])) > 1


def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        TransformersEngine(tmp_path)
