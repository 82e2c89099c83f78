"""The whole offline command with a real vLLM as teacher: a tiny random model, so every reply must validate or
be an abstention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loop.offline import pipeline
from loop.offline.bench import STUDENT
from loop.offline.config import load_stat
from loop.offline.opening import open_bench
from streams.files import read_objects
from streams.state.ledger import paid
from streams.state.store import StateStore

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1200)]


def test_noise_validates_or_is_abstained_from(make_files: Callable[..., Path], vllm_url: str) -> None:
    config = make_files()
    sampling = "max_tokens = 160\ntemperature = 1.0\ntimeout_s = 120\n"
    chat = (
        f'[teacher.chat]\nbase_url = "{vllm_url}"\nmodel = "teacher"\nprice = {{ free = true }}\n{sampling}'
    )
    text = config.read_text().replace('scripted = { script = "script.json" }', 'kind = "chat"\n' + chat)
    # Noise finds no missing skill, so the data set is made by a strategy that needs none: the pool's
    # solutions in other words.
    config.write_text(text.replace("pairs = 60", 'name = "augment"\npairs = 12'))
    folder = config.parent / "run"
    with open_bench(load_stat(config), folder) as bench:
        pipeline.run_stages(bench, "dataset", lambda event, stage, manifest: None)
    catalog = {row["skill"] for row in read_objects(folder / "catalog.jsonl")}
    labels = list(read_objects(folder / "labels.jsonl"))
    assert (
        catalog
        and all(set(row["skills"]) <= catalog for row in labels)
        and any(row["source"] == "teacher" for row in labels)
    )
    said = {row["question_id"]: row["response"] for row in read_objects(folder / "answers.jsonl")}
    found = list(read_objects(folder / "diagnoses.jsonl"))
    assert len(found) == 8 and {row["verdict"] for row in found} <= {"correct", "incorrect", "abstained"}
    for row in found:
        assert (
            set(row["missing"]) <= set(row["needed"])
            and row["evidence"] in said[row["question_id"]]
            and not row["error"]
        )
    # A rewritten solution must end in the known answer, which noise does not: whatever is in the data set is
    # the data's own.
    answers = {row["question"]: row["answer"] for row in read_objects(config.parent / "train.jsonl.gz")}
    for row in read_objects(folder / "dataset.jsonl"):
        question, solution = (message["content"] for message in row["messages"])
        assert f"\\boxed{{{answers[question]}}}" in solution
    assert paid(StateStore(f"sqlite:///{folder / 'ledger.db'}"), STUDENT).calls >= len(found)
