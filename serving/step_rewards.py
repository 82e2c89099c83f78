"""Process reward models: how likely each step of a solution is right, by a model in Hugging Face format.

Two families, told apart by the class that the model's configuration names:

- a causal language model answers each step with `+` or `-` in a chat: the reward is the probability of `+`
  against `-` (RLHFlow/Llama3.1-8B-PRM-Mistral-Data, the one of the paper, and its relatives);
- a token classifier judges the separator after each step: the reward is the probability of its second label
  (models trained with TRL's stepwise supervision).

Models that bring code of their own are refused: their code would run here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from serving.engine import EngineError

RIGHT, WRONG = "+", "-"
SEPARATOR = "\n"


class RewardModel:
    """A process reward model in `folder`, on CUDA in bf16 when there is one. Thread-safe: one solution at a
    time, in one pass.

    Raises `EngineError` when the folder holds no reward model of a family that is known here.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._lock = threading.Lock()
        dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            self._classifies = any("TokenClassification" in name for name in config.architectures or ())
            kind = AutoModelForTokenClassification if self._classifies else AutoModelForCausalLM
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, KeyError) as exc:
            raise EngineError(f"the reward model in {folder} cannot be loaded ({exc})") from exc
        if not self._classifies and not self._tokenizer.chat_template:
            raise EngineError(
                f"the reward model in {folder} has no chat template, which a causal one is asked with"
            )
        if self._classifies and config.num_labels != 2:
            raise EngineError(
                f"the reward model in {folder} has {config.num_labels} labels; "
                "2 are expected, wrong and right"
            )
        self._model = model.to(self._device).eval()
        self._longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)

    def __call__(self, question: str, steps: Sequence[str]) -> list[float] | None:
        """One probability in [0, 1] per step; None when the solution is longer than the model can read."""
        tokens, places = self._marked(question, steps) if self._classifies else self._chat(question, steps)
        if len(tokens) > self._longest:
            return None
        with self._lock, torch.inference_mode():
            logits = self._model(torch.tensor([tokens], device=self._device)).logits[0, places].float()
        if not self._classifies:
            logits = logits[:, [self._token(WRONG), self._token(RIGHT)]]
        rewards: list[float] = logits.softmax(-1)[:, 1].tolist()
        return rewards

    def _token(self, text: str) -> int:
        return int(self._tokenizer.encode(text, add_special_tokens=False)[-1])

    def _chat(self, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens of the chat up to the last step, and the places whose next token is a verdict.

        Each verdict before it is taken as right, as those models were trained. A template that renders a turn
        differently once it is followed by others cannot be read in one pass: `EngineError`.
        """
        turns: list[dict[str, str]] = []
        asked: list[int] = []
        places: list[int] = []
        for step in steps:
            turns.append({"role": "user", "content": step if turns else f"{question} {step}"})
            longer = self._render(turns)
            if longer[: len(asked)] != asked:
                raise EngineError(
                    "the reward model's chat template changes earlier turns when later ones follow"
                )
            asked = longer
            places.append(len(asked) - 1)
            turns.append({"role": "assistant", "content": RIGHT})
        return asked, places

    def _render(self, turns: list[dict[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _marked(self, question: str, steps: Sequence[str]) -> tuple[list[int], list[int]]:
        """The tokens of question and steps, a separator after each step, and the separators' places."""
        tokens: list[int] = self._tokenizer(question + SEPARATOR)["input_ids"]
        places: list[int] = []
        for step in steps:
            tokens += self._tokenizer(step + SEPARATOR, add_special_tokens=False)["input_ids"]
            places.append(len(tokens) - 1)
        return tokens, places
