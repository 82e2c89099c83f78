"""Tiny random students to train: a Llama and a Qwen3 with a 40-word vocabulary, built once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.items import Example, HeldOutItem, Provenance
from tests.students import build_student


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_student(tmp_path_factory.mktemp("qwen"), "qwen")


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., list[Example]]:
    def make(count: int, skill: str = "add", strategy: str = "select") -> list[Example]:
        return [
            Example(
                example_id=f"{strategy}-{skill}-{i}",
                prompt=f"add {i % 10} and {i // 10 % 10} {i // 100} ?",
                completion=" ".join(str((i + k) % 10) for k in range(1 + i % 7)),
                skills=(skill,),
                provenance=Provenance(strategy=strategy, skill=skill, source_ids=(f"pool-{i}",)),
            )
            for i in range(count)
        ]

    return make


@pytest.fixture(scope="session")
def make_items() -> Callable[..., list[HeldOutItem]]:
    def make(stratum: str, skills: tuple[str, ...], count: int) -> list[HeldOutItem]:
        return [
            HeldOutItem(
                item_id=f"{stratum}-{i}",
                question=f"{stratum} question {i}",
                answer=str(i),
                skills=skills,
                stratum=stratum,
            )
            for i in range(count)
        ]

    return make
