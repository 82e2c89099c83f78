"""The stages of the offline method in order; a finished one is kept, an interrupted one resumes where it
stopped.

catalog -> labels -> answers -> assessed -> diagnoses -> profile -> dataset -> (train) -> (evaluate)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from loop.config import ConfigError
from loop.offline.bench import Bench
from loop.offline.card import write_card
from loop.offline.folder import StageManifest
from loop.offline.stages.answers import ANSWERS
from loop.offline.stages.dataset import dataset
from loop.offline.stages.diagnoses import ASSESSED, DIAGNOSES
from loop.offline.stages.labels import CATALOG, LABELS
from loop.offline.stages.profile import PROFILE
from loop.offline.stages.stage import Stage
from loop.offline.stages.train import evaluation, train

STAGES = ("catalog", "labels", "answers", "assessed", "diagnoses", "profile", "dataset", "train", "evaluate")
"""What `--from` and `--until` may name."""

Event = Literal["begin", "kept", "done"]
Listen = Callable[[Event, str, StageManifest | None], None]


def nobody(event: Event, stage: str, manifest: StageManifest | None) -> None:
    """A listener that does nothing."""


def stages(bench: Bench) -> list[Stage]:
    """The stages in order; the last three carry the strategy's name when it is not the configured one."""
    last = (dataset(bench.named("dataset")), train(bench.named("train")), evaluation(bench.named("evaluate")))
    return [CATALOG, LABELS, ANSWERS, ASSESSED, DIAGNOSES, PROFILE, *last]


def check_stage(name: str) -> int:
    """The place of a stage. Raises `ConfigError` for a name that is none."""
    if name not in STAGES:
        raise ConfigError(f"unknown stage {name!r}; stages are {', '.join(STAGES)}")
    return STAGES.index(name)


def forget_from(bench: Bench, first: str) -> None:
    """Have the stages from `first` on done again; what the teacher said is kept."""
    for stage in stages(bench)[check_stage(first) :]:
        bench.folder.forget(stage.name)


def run_stages(bench: Bench, until: str = "evaluate", listen: Listen = nobody) -> list[StageManifest]:
    """Run what is not finished, up to the stage `until`; the manifests of all stages up to it.

    Raises what the stages raise; calling it again resumes.
    """
    return [_run(bench, stage, listen) for stage in stages(bench)[: check_stage(until) + 1]]


def _run(bench: Bench, stage: Stage, listen: Listen) -> StageManifest:
    inputs = stage.inputs(bench)
    known = bench.folder.manifest(stage.name)
    if known is not None and bench.folder.is_finished(stage.name, inputs):
        listen("kept", stage.name, known)
        done = known
    else:
        listen("begin", stage.name, None)
        bench.crash(f"stat.{stage.name}.begin")
        result = stage.run(bench)
        bench.crash(f"stat.{stage.name}.made")
        done = bench.folder.finish(stage.name, inputs, result.rows, result.figures, result.notes)
        bench.crash(f"stat.{stage.name}.finished")
        listen("done", stage.name, done)
    if stage.name == bench.named("dataset"):
        write_card(bench)
    return done


def standing(bench: Bench) -> frozenset[str]:
    """The stages whose results stand: finished, with inputs as they are now, and none before them to be done
    again."""
    finished = []
    for stage in stages(bench):
        if not bench.folder.is_finished(stage.name, stage.inputs(bench)):
            break
        finished.append(stage.name)
    return frozenset(finished)
