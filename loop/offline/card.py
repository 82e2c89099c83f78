"""The data set's card: what it was made from, how, what is in it and what was left out; Hugging Face's front
matter on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from loop.offline.bench import Bench
from loop.offline.folder import StageManifest
from loop.offline.records import DatasetRow
from streams.files import write_text

TOP_SKILLS = 20


def card_path(bench: Bench) -> Path:
    """Where the card lies, beside the data."""
    return bench.folder.root / f"{bench.named('dataset')}.card.md"


def write_card(bench: Bench) -> Path | None:
    """Write the card of the finished data set; None when there is no data set. Equal data sets give equal
    cards."""
    manifest = bench.folder.manifest(bench.named("dataset"))
    if manifest is None:
        return None
    path = card_path(bench)
    text = card(bench, manifest, bench.folder.rows(bench.named("dataset"), DatasetRow))
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def card(bench: Bench, manifest: StageManifest, rows: Sequence[DatasetRow]) -> str:
    """The card's text."""
    config = bench.config
    parameters = config.strategy.model_dump(exclude={"name", "acceptance", "pairs_per_question"})
    skills = Counter(row.origin.skill for row in rows if row.origin.skill)
    parts = [
        _front_matter(bench, len(rows)),
        f"# {config.strategy.name}: {len(rows)} question-answer pairs",
        (
            "Made by `skillloop stat` (Skill-Targeted Adaptive Training, arXiv 2510.10023, section 3.3). "
            "One JSON object a line: `id`, `messages` (user, assistant), `skills`, `origin`."
        ),
        "## How\n\n" + _table({"teacher": bench.teacher_id, "seed": config.seed, **parameters}),
        "## From what\n\n"
        + _table({f"sha256 of {name}": digest for name, digest in manifest.inputs.items()}),
        "## What is in it\n\n" + _table({name: f"{value:g}" for name, value in manifest.figures.items()}),
        (
            f"## Skills, the first {TOP_SKILLS}\n\n" + _table(dict(skills.most_common(TOP_SKILLS)))
            if skills
            else ""
        ),
        (
            "## Left out\n\nQuestions that repeat another of the set, "
            "and questions that match a held-out or validation question (Jaccard of word triples "
            f"{config.duplicates.duplicate} and {config.duplicates.contamination}), "
            "selected and synthesized alike. The licence is that of the training questions."
        ),
        "\n".join(f"- {note}" for note in manifest.notes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(bench: Bench, rows: int) -> str:
    size = "n<1K" if rows < 1000 else "1K<n<10K" if rows < 10_000 else "10K<n<100K"
    name = bench.config.strategy.name
    return (
        f"---\ntask_categories: [text-generation]\nsize_categories: [{size}]\nconfigs:\n"
        f"- config_name: {name}\n  data_files: {bench.folder.path(bench.named('dataset')).name}\n---"
    )


def _table(values: Mapping[str, object]) -> str:
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in values.items())
