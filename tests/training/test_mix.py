"""Data sets: the same bytes for the same examples, no unfinished file is read, no held-out question is
trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.items import HeldOutItem, Provenance
from training.errors import DatasetError, HeldOutOverlap
from training.mix import assert_disjoint, manifest_path, read_dataset, write_dataset


def test_a_data_set_comes_back_with_its_counts(make_examples: Callable, tmp_path: Path) -> None:
    examples = make_examples(5) + make_examples(3, "sub", "synthesize")
    manifest = write_dataset(tmp_path / "new" / "data.jsonl", examples)
    assert read_dataset(tmp_path / "new" / "data.jsonl") == examples
    assert (manifest.examples, manifest.per_strategy, manifest.per_skill) == (
        8,
        {"select": 5, "synthesize": 3},
        {"add": 5, "sub": 3},
    )
    assert write_dataset(tmp_path / "again.jsonl", examples) == manifest
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_line_separators_inside_a_text_do_not_split_it(make_examples: Callable, tmp_path: Path) -> None:
    odd = make_examples(1)[0].model_copy(update={"completion": "a\u2028b\x85c\nd"})
    write_dataset(tmp_path / "data.jsonl", [odd])
    assert read_dataset(tmp_path / "data.jsonl") == [odd]


def test_unfinished_or_changed_files_are_refused(make_examples: Callable, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_dataset(path, make_examples(5))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError, match="changed or cut"):
        read_dataset(path)
    manifest_path(path).unlink()
    with pytest.raises(DatasetError, match="never finished"):
        read_dataset(path)


def test_empty_and_repeated_are_refused(make_examples: Callable, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no examples"):
        write_dataset(tmp_path / "data.jsonl", [])
    with pytest.raises(DatasetError, match="occur twice"):
        write_dataset(tmp_path / "data.jsonl", make_examples(2) * 2)


def test_held_out_questions_are_found_by_text_and_by_source(make_examples: Callable) -> None:
    examples = make_examples(5)
    item = HeldOutItem(
        item_id="held", question=" ADD 3 and 0\u00a00  ?", answer="3", skills=("add",), stratum="skill:add"
    )
    other = HeldOutItem(item_id="other", question="what?", answer="3", skills=("add",), stratum="skill:add")
    assert_disjoint(examples, [other])
    with pytest.raises(HeldOutOverlap, match="'select-add-3' and item 'held'"):
        assert_disjoint(examples, [other, item])
    derived = examples[0].model_copy(
        update={"provenance": Provenance(strategy="synthesize", skill="add", source_ids=("other",))}
    )
    with pytest.raises(HeldOutOverlap, match="item 'other'"):
        assert_disjoint([derived], [other])
