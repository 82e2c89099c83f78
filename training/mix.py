"""The training set of a round: written once, hashed, checked against every held-out set.

`write_dataset` writes the examples, then the manifest. The manifest is the marker: a data file without a
matching manifest is not a data set.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from agent.items import Example, Frozen, HeldOutItem
from streams.files import write_bytes, write_text
from training.errors import DatasetError, HeldOutOverlap


class DatasetManifest(Frozen):
    """What a data file holds. `per_skill` counts an example once for each skill it is taught for."""

    sha256: str
    examples: int
    per_strategy: dict[str, int]
    per_skill: dict[str, int]


def manifest_path(path: Path) -> Path:
    """Where the manifest of a data file lies.

    >>> manifest_path(Path("round/data.jsonl")).name
    'data.jsonl.manifest.json'
    """
    return path.with_name(path.name + ".manifest.json")


def write_dataset(path: Path, examples: Sequence[Example]) -> DatasetManifest:
    """Write examples as JSON lines, the manifest last. Equal examples give equal bytes.

    Raises `DatasetError` for an empty set or a repeated example_id.
    """
    if not examples:
        raise DatasetError(f"no examples to write to {path}; a round without data must not be trained")
    repeated = [
        key for key, count in Counter(example.example_id for example in examples).items() if count > 1
    ]
    if repeated:
        raise DatasetError(
            f"{len(repeated)} example ids occur twice, first {repeated[0]!r}; "
            "ids must be unique in a data set"
        )
    data = "".join(example.model_dump_json() + "\n" for example in examples).encode()
    manifest = _describe(data, examples)
    write_bytes(path, data)
    write_text(manifest_path(path), manifest.model_dump_json(indent=1) + "\n")
    return manifest


def read_manifest(path: Path) -> DatasetManifest:
    """The manifest of a data file. Raises `DatasetError` when there is none: the file was never finished."""
    try:
        return DatasetManifest.model_validate_json(manifest_path(path).read_bytes())
    except (OSError, ValidationError) as exc:
        raise DatasetError(
            f"{path} has no readable manifest ({exc}); it was never finished, write it again"
        ) from exc


def read_dataset(path: Path, sha256: str | None = None) -> list[Example]:
    """The examples of a finished data file. Raises `DatasetError` when the file disagrees with its manifest,
    or with the hash that is given in the manifest's place."""
    wanted = read_manifest(path).sha256 if sha256 is None else sha256
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise DatasetError(f"{path} cannot be read ({exc})") from exc
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise DatasetError(
            f"{path} has sha256 {found}, its manifest says {wanted}; it was changed or cut, write it again"
        )
    return [Example.model_validate_json(line) for line in data.split(b"\n") if line]


def write_as_trained(path: Path, examples: Iterable[Example]) -> None:
    """Write what the student is trained on, in TRL's prompt-completion format: the prompt as the student is
    asked (through its chat template), the completion without the end of sequence that trainers add.

    `SFTTrainer(train_dataset=load_dataset("json", data_files=...))` takes it as it is.
    """
    kept = {"example_id", "skills", "prompt", "completion"}
    rows = (example.model_dump(mode="json", include=kept) for example in examples)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows))


def normalised(text: str) -> str:
    """Text for exact comparison: compatibility-composed, case-folded, runs of white space as one blank.

    >>> normalised("  What\\tis 2 + 2? ")
    'what is 2 + 2?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def assert_disjoint(examples: Iterable[Example], held_out: Iterable[HeldOutItem]) -> None:
    """Raise `HeldOutOverlap` when a training prompt is a held-out question, or a non-replay example derives
    from one by id.

    Exact on normalised text; near copies are found earlier, in the curate graph, by MinHash.
    """
    items = list(held_out)
    questions = {normalised(item.question): item.item_id for item in items}
    ids = {item.item_id for item in items}
    clashes: list[tuple[str, str]] = []
    for example in examples:
        hit = questions.get(normalised(example.prompt))
        derived = ids.intersection((example.example_id, *example.provenance.source_ids))
        if hit is not None or derived:
            clashes.append((example.example_id, hit if hit is not None else min(derived)))
    if clashes:
        example_id, item_id = clashes[0]
        raise HeldOutOverlap(
            f"{len(clashes)} training examples repeat held-out items, "
            f"first example {example_id!r} and item {item_id!r}; "
            "remove them from the data, never from the evaluation"
        )


def _describe(data: bytes, examples: Sequence[Example]) -> DatasetManifest:
    strategies = Counter(example.provenance.strategy for example in examples)
    skills = Counter(skill for example in examples for skill in set(example.skills))
    return DatasetManifest(
        sha256=hashlib.sha256(data).hexdigest(),
        examples=len(examples),
        per_strategy={str(key): strategies[key] for key in sorted(strategies)},
        per_skill={key: skills[key] for key in sorted(skills)},
    )
