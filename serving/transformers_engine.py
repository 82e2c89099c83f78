"""The in-process engine: one base model in transformers, one PEFT adapter per version.

What makes it fast on a CPU with the stock `generate`: a static key-value cache (the dynamic one copies itself
at every token), batches of similar length, and stages: after `stage_tokens` tokens the finished rows leave
and the others are packed anew, so one long answer does not hold up a batch. The cost is one more prefill per
stage.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from serving.adapter_files import WEIGHTS_FILE, adapter_sha256, check_fits
from serving.engine import EngineError, Sampling
from serving.settings import EngineSettings

PROBE_TOKENS = 16


@dataclass
class _Row:
    """One answer in the making; `place` is its number in the caller's order."""

    place: int
    prompt: list[int]
    answer: list[int] = field(default_factory=list)
    done: bool = False


class TransformersEngine:
    """Serves a base student and its adapters from this process. Thread-safe: one call at a time.

    Raises `EngineError` when the base cannot be loaded.
    """

    def __init__(self, base_dir: Path, settings: EngineSettings = EngineSettings()) -> None:
        self._settings = settings
        self._device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._lock = threading.RLock()
        self._digests: dict[int, str | None] = {}
        self._peft: Any = None
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        transformers_logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(base_dir, local_files_only=True)
            base = AutoModelForCausalLM.from_pretrained(
                base_dir, dtype=dtype, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, KeyError) as exc:
            raise EngineError(f"the base student in {base_dir} cannot be loaded ({exc})") from exc
        self._stops = _stop_tokens(base, self._tokenizer)
        base.generation_config = GenerationConfig(
            eos_token_id=sorted(self._stops), pad_token_id=min(self._stops)
        )
        self._base = base.to(self._device).eval()
        self._linears = {
            name: (m.in_features, m.out_features)
            for name, m in base.named_modules()
            if isinstance(m, torch.nn.Linear)
        }

    def load(self, version: int, adapter: Path | None) -> None:
        """See `serving.engine.Engine.load`. The adapter must name modules of this base and change its
        logits."""
        digest = None if adapter is None else adapter_sha256(adapter)
        with self._lock:
            if version in self._digests:
                if self._digests[version] != digest:
                    raise EngineError(
                        f"version {version} is loaded with other files; "
                        "versions are immutable, register a new one"
                    )
                return
            if adapter is not None:
                check_fits(adapter, self._linears)
                self._attach(version, adapter)
            self._digests[version] = digest

    def unload(self, version: int) -> None:
        """Forget a version and free its weights."""
        with self._lock:
            if self._digests.pop(version, None) is not None:
                self._detach(version)

    def versions(self) -> tuple[int, ...]:
        """The loaded versions, ascending."""
        with self._lock:
            return tuple(sorted(self._digests))

    def generate(
        self, prompts: Sequence[str], version: int, sampling: Sampling = Sampling()
    ) -> list[list[str]]:
        """Answers per prompt, shape (len(prompts), sampling.samples); greedy answers do not depend on earlier
        calls."""
        if not prompts:
            return []
        with self._lock:
            adapted = self._adapted(version)
            rows = self._rows(prompts, sampling.samples)
            with self._applying(adapted), _seeded(sampling, self._device), torch.inference_mode():
                for produced in range(0, sampling.max_new_tokens, self._settings.stage_tokens):
                    budget = min(self._settings.stage_tokens, sampling.max_new_tokens - produced)
                    self._stage([row for row in rows if not row.done], budget, sampling)
            texts = self._tokenizer.batch_decode([row.answer for row in rows], skip_special_tokens=True)
        return [texts[start : start + sampling.samples] for start in range(0, len(texts), sampling.samples)]

    def log_probabilities(
        self, texts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], version: int
    ) -> list[list[float]]:
        """See `serving.engine.Scorer`."""
        with self._lock:
            with self._applying(self._adapted(version)), torch.inference_mode():
                return [self._scores(*pair) for pair in zip(texts, candidates, strict=True)]

    def plain_tokens(self) -> list[int]:
        """The ids of all tokens that are text."""
        size = min(len(self._tokenizer), self._base.config.vocab_size)
        return sorted(set(range(size)) - set(self._tokenizer.all_special_ids))

    def _scores(self, text: Sequence[int], candidates: Sequence[int]) -> list[float]:
        ids = torch.tensor([list(text)], device=self._device)  # (1, T)
        logits = self._base(input_ids=ids).logits[0, -1].float()  # (vocabulary,)
        scores: list[float] = logits.log_softmax(-1)[list(candidates)].tolist()
        return scores

    def _adapted(self, version: int) -> int | None:
        """The version whose adapter computes: None for the base."""
        if version not in self._digests:
            raise EngineError(f"version {version} is not loaded; loaded are {self.versions()}")
        return version if self._digests[version] is not None else None

    def _rows(self, prompts: Sequence[str], samples: int) -> list[_Row]:
        encoded = self._tokenizer(list(prompts))["input_ids"]
        limit = self._base.config.max_position_embeddings
        for prompt, ids in zip(prompts, encoded, strict=True):
            if not 0 < len(ids) < limit:
                raise EngineError(
                    f"a prompt has {len(ids)} tokens, this student takes 1 to {limit - 1}: {prompt[:60]!r}"
                )
        return [_Row(place, encoded[place // samples]) for place in range(len(encoded) * samples)]

    def _stage(self, rows: list[_Row], budget: int, sampling: Sampling) -> None:
        """Up to `budget` more tokens for every row, in batches of similar length."""
        rows = sorted(rows, key=lambda row: len(row.prompt))
        for start in range(0, len(rows), self._settings.batch_size):
            batch = rows[start : start + self._settings.batch_size]
            for row, new in zip(batch, self._continue(batch, budget, sampling), strict=True):
                stop = next((place for place, token in enumerate(new) if token in self._stops), None)
                row.answer += new[:stop]
                row.done = stop is not None or len(new) < budget

    def _continue(self, batch: list[_Row], budget: int, sampling: Sampling) -> list[list[int]]:
        """The next tokens of each row, equally many; fewer than `budget` when every row stopped or the
        positions are used up."""
        texts = [row.prompt + row.answer for row in batch]
        width = max(map(len, texts))
        budget = min(budget, self._base.config.max_position_embeddings - width)
        if budget <= 0:
            return [[] for _ in batch]
        pad = min(self._stops)
        ids = torch.tensor(
            [[pad] * (width - len(text)) + text for text in texts], device=self._device
        )  # (B, T), padded left
        mask = torch.tensor(
            [[0] * (width - len(text)) + [1] * len(text) for text in texts], device=self._device
        )
        try:
            out = self._base.generate(
                input_ids=ids, attention_mask=mask, generation_config=self._decoding(budget, sampling)
            )
        except (RuntimeError, ValueError) as exc:
            raise EngineError(
                f"generation failed on {len(batch)} prompts of up to {width} tokens ({exc})"
            ) from exc
        return [list(map(int, row)) for row in out[:, width:].tolist()]

    def _decoding(self, budget: int, sampling: Sampling) -> GenerationConfig:
        common = {
            "max_new_tokens": budget,
            "eos_token_id": sorted(self._stops),
            "pad_token_id": min(self._stops),
        }
        fast = {"cache_implementation": "static", "disable_compile": True}
        if sampling.temperature == 0:
            return GenerationConfig(**common, **fast, do_sample=False)
        return GenerationConfig(
            **common, **fast, do_sample=True, temperature=sampling.temperature, top_k=0, top_p=1.0
        )

    def _applying(self, version: int | None) -> AbstractContextManager[object]:
        """The context in which the base computes with a version's adapter, or (None) as itself."""
        if version is not None:
            self._peft.set_adapter(_name(version))
            return nullcontext()
        return self._peft.disable_adapter() if self._peft is not None else nullcontext()

    def _attach(self, version: int, adapter: Path) -> None:
        weights = load_file(adapter / WEIGHTS_FILE)
        if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
            raise EngineError(f"the adapter in {adapter} holds NaN or infinite weights")
        try:
            if self._peft is None:
                config = PeftConfig.from_pretrained(str(adapter), inference_mode=True)
                self._peft = PeftModel(self._base, config, adapter_name=_name(version)).eval()
            self._peft.load_adapter(str(adapter), adapter_name=_name(version))
            self._prove(version, adapter, weights)
        except EngineError:
            self._detach(version)
            raise
        except (RuntimeError, ValueError, KeyError, TypeError) as exc:
            self._detach(version)
            raise EngineError(f"the adapter in {adapter} cannot be loaded ({exc})") from exc

    def _prove(self, version: int, adapter: Path, weights: dict[str, torch.Tensor]) -> None:
        """The loaded weights are exactly the file's, and they change what the base computes."""
        loaded = get_peft_model_state_dict(
            self._peft, adapter_name=_name(version), save_embedding_layers=False
        )
        if loaded.keys() != weights.keys():
            odd = sorted(loaded.keys() ^ weights.keys())
            raise EngineError(
                f"the adapter in {adapter} and its configuration disagree on {odd[:3]} ({len(odd)} tensors)"
            )
        if not all(torch.equal(loaded[name].float().cpu(), weights[name].float()) for name in weights):
            raise EngineError(f"the adapter in {adapter} was not loaded as it is in the file")
        zero = not any(bool(weight.any()) for name, weight in weights.items() if "lora_B" in name)
        if not zero and torch.equal(self._probe(None), self._probe(version)):
            raise EngineError(
                f"the adapter in {adapter} does not change this base's logits; it is not applied"
            )

    def _probe(self, version: int | None) -> torch.Tensor:
        ids = torch.arange(PROBE_TOKENS, device=self._device).remainder(self._base.config.vocab_size)[
            None
        ]  # (1, T)
        with self._applying(version), torch.inference_mode():
            return self._base(input_ids=ids).logits

    def _detach(self, version: int) -> None:
        if self._peft is None or _name(version) not in self._peft.peft_config:
            return
        others = [name for name in self._peft.peft_config if name != _name(version)]
        if others:
            self._peft.set_adapter(others[0])
            self._peft.delete_adapter(_name(version))
        else:
            self._base, self._peft = self._peft.unload(), None


def _name(version: int) -> str:
    return f"v{version}"


def _stop_tokens(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    listed = base.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(listed if isinstance(listed, list) else [listed])} - {None}
    if not found:
        raise EngineError(
            "the base student names no end-of-sequence token in its tokenizer or generation configuration"
        )
    return frozenset(found)


@contextmanager
def _seeded(sampling: Sampling, device: torch.device) -> Iterator[None]:
    """Sampled decoding from the seed, without touching the process's random state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        yield
