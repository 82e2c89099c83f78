"""The student: a folder in Hugging Face format, the engine that serves it, the form in which it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from loop.config import BUILTIN, ConfigError
from serving.engine import Engine
from streams.files import text_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARCHITECTURES = ("llama", "qwen")
TOLD_DAY = datetime(2024, 7, 26, 12, tzinfo=UTC)
"""What Llama 3's template says itself where it cannot ask for the day."""


@dataclass(frozen=True)
class Student:
    """A student in `base`, served by what `open_engine` opens. Nothing is loaded before it is needed."""

    base: Path
    open_engine: Callable[[Path], Engine]

    @cached_property
    def engine(self) -> Engine:
        """Its engine. Raises `serving.engine.EngineError` when the folder holds no student."""
        return self.open_engine(self.base)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The student's tokenizer."""
        from transformers import AutoTokenizer  # seconds, which a command that asks nothing need not wait

        return AutoTokenizer.from_pretrained(self.base, local_files_only=True)

    def prompt(self, question: str) -> str:
        """See `chat_prompt`."""
        return chat_prompt(self.tokenizer, question)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The question as a user's turn, as far as the student's answer. Without a chat template: the question.

    Templates that tell the student what day it is (Llama 3's do) always tell `TOLD_DAY`: a round that is
    resumed after midnight trains on the same text, and answers that were evaluated are those to the same
    prompts. Engine and trainer add the beginning-of-sequence token themselves, so it is taken off here.
    """
    if not tokenizer.chat_template:
        return question
    turn = [{"role": "user", "content": question}]
    text = str(
        tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True, strftime_now=TOLD_DAY.strftime
        )
    )
    bos = tokenizer.bos_token
    adds = bool(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds else text


def model_id(base: Path | None, setting: str) -> str:
    """A hash of a model's files: names, sizes and times of the weights, text of everything small. Empty
    without a model.

    Raises `ConfigError` with the setting's name when the folder does not exist.
    """
    if base is None:
        return ""
    if not base.is_dir():
        raise ConfigError(f"{setting}: {base} is not a directory; give a model in Hugging Face format")
    parts = []
    for path in sorted(base.iterdir()):
        if path.is_file():
            stat = path.stat()
            small = path.suffix in {".json", ".jinja", ".txt"} and stat.st_size < 1 << 20
            parts.append(
                f"{path.name} "
                f"{path.read_text(errors='replace') if small else (stat.st_size, stat.st_mtime_ns)}"
            )
    return text_sha256(*parts)


def student_dir(arch: str = "llama") -> Path:
    """Where the shipped weights and tokenizer of an architecture lie. Raises ValueError for an unknown
    one."""
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}: choose one of {', '.join(ARCHITECTURES)}")
    return Path(__file__).parent / "world" / "students" / arch


def base_dir(base: Path | str) -> Path:
    """The directory of a student: one of the shipped ones, or a path. Raises `ConfigError`."""
    if isinstance(base, str) and base.startswith(BUILTIN):
        arch = base.removeprefix(BUILTIN)
        if arch not in ARCHITECTURES:
            raise ConfigError(
                f"student.base {base!r} is unknown; shipped: "
                f"{', '.join(BUILTIN + name for name in ARCHITECTURES)}"
            )
        return student_dir(arch)
    path = Path(base)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"student.base {str(base)!r} is not a model directory (it has no config.json); name one, or "
            f"a shipped student: {', '.join(BUILTIN + name for name in ARCHITECTURES)}"
        )
    return path
