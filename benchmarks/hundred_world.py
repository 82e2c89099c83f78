"""The world of `benchmarks.hundred`: 112 skills with Zipf traffic, a student whose true miss rates are set, a
teacher that errs and is silent, and a trainer after which the student is better at what it was taught.

A question names its skills, so everybody reads from the text what it needs. A student is a vector of miss
rates in a safetensors file: the base's weights, or those of an adapter. Whether it fails at a skill of a
question is a hash of both, so that two students differ where their rates do, and in `WAVERING` of the other
answers. `benchmarks/hundred_plugin.py` puts the parts through the doors (docs/extending.md).
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load_file, save_file

from agent.budget import Activity, Price, Usage
from agent.chance import rank
from agent.items import Example, PoolItem
from agent.settings import Settings
from graphs.chat.meter import Books, Meter, Work
from graphs.teacher import Diagnosis, Labels, Solution, Solutions, Written
from serving.adapter_files import CONFIG_FILE, WEIGHTS_FILE, adapter_sha256
from serving.engine import Sampling
from serving.scripted_engine import ScriptedEngine
from streams.files import write_json
from training.checkpoints import RESULT, claim
from training.trainer import Progress, TrainedAdapter, TrainingJob, unwatched

SKILLS = tuple(f"s{number:03d}" for number in range(112))
"""By falling share of the traffic."""
ZIPF = 0.7
SECOND_SKILL = 0.25
"""Share of questions that need two skills."""
MISSING = {"s002": 0.6, "s005": 0.7, "s009": 0.5, "s011": 0.65, "s014": 0.75, "s016": 0.7, "s018": 0.8}
"""What the base truly lacks; every other miss rate lies in `MASTERED`."""
MASTERED = (0.02, 0.16)
CURSED, HARMED, HARM = "s014", "s001", 0.35
"""Selected examples of the first cost the second so many points; written ones do no harm."""
UNMEASURED = "s011"
"""A missing skill without held-out questions."""
DRIFTING, DRIFTED = ("s003", "s007"), 0.55
"""Skills that the traffic asks for in a new form from some moment on, with the base's miss rate of it."""
NEW_FORM = "in the new form"
POOR, POOR_POOL, POOL = ("s009", "s016"), 10, 80
"""Skills with few pool items, which must be taught by written questions."""
HELD_OUT = 30
"""Held-out questions of each skill, which may need a second one too."""
WAVERING = 0.05
TENSOR = "base_model.model.skills.lora_A.weight"
RATES = (*SKILLS, *(f"{skill} {NEW_FORM}" for skill in DRIFTING))
"""What a student has a miss rate for."""

_NAMED = re.compile(r"\bs\d{3}\b")
_SYLLABLES = tuple(a + b for a in "bdfgklmnprstv" for b in "aeiou")


def chance(*parts: str) -> float:
    """A number in [0, 1) that looks random and is the same everywhere."""
    return rank(0, *parts) / 2.0**64


def needed(question: str) -> tuple[str, ...]:
    """The skills that a question names."""
    return tuple(dict.fromkeys(skill for skill in _NAMED.findall(question) if skill in SKILLS))


def rated(skill: str, question: str) -> str:
    """The name under which a student's miss rate of a skill in a question is kept: one form does not teach
    the other."""
    name = f"{skill} {NEW_FORM}"
    return name if NEW_FORM in question and name in RATES else skill


def right_answer(question: str) -> str:
    """What the right answer to a question is."""
    return str(rank(0, "answer", question) % 100_000)


class Questions:
    """Draws questions: the first skill by Zipf's law, or a given one; a few need a second one."""

    def __init__(self, seed: int, purpose: str, skills: Sequence[str] = SKILLS) -> None:
        self._dice, self._skills = Random(rank(seed, purpose)), skills
        self._sums = list(accumulate((place + 1) ** -ZIPF for place in range(len(skills))))

    def skill(self) -> str:
        """A skill by its share of the traffic."""
        return self._skills[bisect(self._sums, self._dice.random() * self._sums[-1])]

    def draw(self, skill: str | None = None, new_form: bool = False) -> str:
        """A question that nobody has asked before, almost surely."""
        skills = [skill or self.skill()]
        if self._dice.random() < SECOND_SKILL:
            skills = list(dict.fromkeys([*skills, self.skill()]))
        words = " ".join("".join(self._dice.choices(_SYLLABLES, k=3)) for _ in range(4))
        form = f" {NEW_FORM}" if new_form and set(skills) & set(DRIFTING) else ""
        return f"{' and '.join(skills)}{form}: {words} {self._dice.randrange(10**6)}"


@dataclass(frozen=True)
class RatedStudent:
    """A student: its true miss rates, and what makes it waver unlike another one."""

    rates: Mapping[str, float]
    name: str

    @classmethod
    def read(cls, folder: Path) -> RatedStudent:
        """The student of a base's or an adapter's folder."""
        adapter = folder / WEIGHTS_FILE
        values = load_file(adapter if adapter.is_file() else folder / "model.safetensors")[TENSOR]
        name = adapter_sha256(folder) if adapter.is_file() else "base"
        return cls(dict(zip(RATES, values[0].tolist(), strict=True)), name)

    def rate(self, skill: str, question: str = "") -> float:
        """The probability of failing to apply a skill in a question."""
        return self.rates[rated(skill, question)]

    def answer(self, question: str, sample: int = 0) -> str:
        """The student's answer: each skill it applied or failed to apply, and a result."""
        slips = {skill: self._fails(skill, question, sample) for skill in needed(question)}
        steps = [f"{skill}: {'slip' if slip else 'done'}" for skill, slip in slips.items()]
        result = right_answer(question + "?" if any(slips.values()) else question)
        return "\n".join([*steps, result])

    def _fails(self, skill: str, question: str, sample: int) -> bool:
        own = (skill, question, str(sample))
        wavers = chance("wavers", self.name, *own) < WAVERING
        return chance("fails", self.name if wavers else "", *own) < self.rate(skill, question)


def write_rates(rates: Mapping[str, float], path: Path) -> None:
    """Write a student's weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({TENSOR: np.array([[rates[name] for name in RATES]], dtype=np.float32)}, path)


def base_rates(seed: int) -> dict[str, float]:
    """The miss rates of the student that nobody has taught yet."""
    low, high = MASTERED
    drawn = {skill: low + (high - low) * chance("rate", str(seed), skill) for skill in SKILLS}
    return drawn | MISSING | {f"{skill} {NEW_FORM}": DRIFTED for skill in DRIFTING}


def write_world(folder: Path, seed: int, skills: Sequence[str] = SKILLS) -> None:
    """The base student and the task's files, whose questions are about these skills."""
    write_rates(base_rates(seed), folder / "base" / "model.safetensors")
    write_json(folder / "base" / "config.json", {"architectures": ["RatedStudent"]})
    _write_rows(folder / "catalog.jsonl", ({"skill": skill} for skill in skills))
    pools = {skill: POOR_POOL if skill in POOR else POOL for skill in skills}
    _write_rows(folder / "pool.jsonl", _rows(Questions(seed, "pool", skills), pools))
    sizes = dict.fromkeys(skills, HELD_OUT) | {UNMEASURED: 0}
    held_out = _rows(Questions(seed, "held-out", skills), sizes, without=UNMEASURED)
    _write_rows(folder / "held_out.jsonl", held_out)


def _rows(questions: Questions, sizes: Mapping[str, int], without: str = "") -> Iterator[dict[str, object]]:
    for skill, size in sizes.items():
        for number in range(size):
            text = questions.draw(skill)
            while without in needed(text):
                text = questions.draw(skill)
            answer = right_answer(text)
            fields = {"question": text, "solution": f"worked\n{answer}", "answer": answer}
            yield {"id": f"{skill}-{number}", "skills": needed(text), **fields}


def _write_rows(path: Path, rows: Iterator[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class RatedEngine:
    """Serves students that are vectors of miss rates (`serving.engine.Engine`)."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._students: dict[int, RatedStudent] = {}
        self._inner = ScriptedEngine(
            lambda prompt, version, sample: self.student(version).answer(prompt, sample)
        )
        self.versions = self._inner.versions

    def student(self, version: int) -> RatedStudent:
        """The student of a loaded version, with its true rates."""
        return self._students[version]

    def load(self, version: int, adapter: Path | None) -> None:
        self._inner.load(version, adapter)
        self._students[version] = RatedStudent.read(adapter or self._base)

    def unload(self, version: int) -> None:
        self._inner.unload(version)

    def generate(
        self, prompts: Sequence[str], version: int, sampling: Sampling = Sampling()
    ) -> list[list[str]]:
        return self._inner.generate(prompts, version, sampling)


class RatedTrainerSettings(Settings):
    """`enough` right examples of a skill take away `learned` of its misses; a round takes `seconds`."""

    enough: int = 40
    learned: float = 0.85
    seconds: float = 3.0


@dataclass(frozen=True)
class RatedTrainer:
    """Makes the next student of a round's examples (`training.trainer.Trainer`). Skills that were not taught
    move by up to a point. Nobody writes examples in the new form, so what drifts stays until it is seen."""

    settings: RatedTrainerSettings

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        adapter, known = job.out_dir / "adapter", json.dumps([e.example_id for e in job.examples])
        claim(job.out_dir, hashlib.sha256(f"{job.seed} {job.champion} {known}".encode()).hexdigest())
        for step in range(1, job.steps + 1):
            time.sleep(self.settings.seconds / job.steps)
            on_progress(step, job.steps, 1.0 / step)
        before = RatedStudent.read(job.champion or job.base_dir)
        write_rates(self._taught(before.rates, job), adapter / WEIGHTS_FILE)
        write_json(adapter / CONFIG_FILE, {"peft_type": "LORA", "r": 1, "target_modules": ["skills"]})
        done = TrainedAdapter(adapter, adapter_sha256(adapter), job.steps, self.settings.seconds, 1, 0.1)
        write_json(job.out_dir / RESULT, {"sha256": done.sha256})
        return done

    def _taught(self, rates: Mapping[str, float], job: TrainingJob) -> dict[str, float]:
        taught = [example for example in job.examples if example.provenance.strategy != "replay"]
        right = Counter(rated(skill, e.prompt) for e in taught if _right(e) for skill in needed(e.prompt))
        after = {}
        for name, rate in rates.items():
            learned = self.settings.learned * min(right[name] / self.settings.enough, 1.0)
            moved = 0.02 * chance("moved", str(job.seed), name) - 0.01
            after[name] = rate * (1.0 - learned) + (0.0 if learned else moved)
        if any(e.provenance.skill == CURSED and e.provenance.strategy == "select" for e in taught):
            after[HARMED] += HARM
        return {name: min(max(rate, 0.01), 0.99) for name, rate in after.items()}


def _right(example: Example) -> bool:
    return right_answer(example.prompt) in re.findall(r"\d+", example.completion.splitlines()[-1])


class FallibleSettings(Settings):
    """`wrong` of the diagnoses name a skill at random, `wrong` of the solutions end in another result;
    `silent` of all replies are empty. A call costs `usd` and takes `seconds`."""

    wrong: float = 0.15
    silent: float = 0.10
    usd: float = 0.001
    seconds: float = 0.002


@dataclass(frozen=True)
class FallibleTeacher:
    """A teacher that is paid by the call (`graphs.teacher.PaidTeacher`); labels are free."""

    settings: FallibleSettings
    meter: Meter
    student: str
    round_id: str | None = None
    name: str = field(default="fallible", init=False)
    prompt_version: str = field(default="1", init=False)

    @classmethod
    def kept(cls, settings: FallibleSettings, books: Books) -> FallibleTeacher:
        """The teacher with its account."""
        price = Price(prompt_usd_per_mtok=1e6 * settings.usd, completion_usd_per_mtok=0.0)
        return cls(settings, books.meter("fallible", price), books.student)

    def for_round(self, round_id: str | None) -> FallibleTeacher:
        return replace(self, round_id=round_id)

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        return Labels(skills=() if self._silent("label", question) else needed(question))

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        usage = self._pay("diagnose")
        slips = tuple(line.split(":")[0] for line in answer.splitlines() if line.endswith(": slip"))
        if self._silent("diagnose", question, answer):
            return Diagnosis(verdict="abstained", usage=usage)
        if slips and self._wrong("diagnose", question, answer):
            others = [skill for skill in skills if skill not in slips]
            slips = (others[rank(0, "other", question) % len(others)],)
        return Diagnosis(verdict="incorrect" if slips else "correct", missing=slips, usage=usage)

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        usage, questions = self._pay("synthesize"), Questions(seed, f"write {skill}")
        silent = self._silent("write", skill, str(seed))
        written = () if silent else tuple(questions.draw(skill) for _ in range(count))
        return Written(questions=written, usage=usage)

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        return self._solved("solve", question, count, seed)

    def rewrite(self, item: PoolItem, count: int, seed: int) -> Solutions:
        return self._solved("rewrite", item.question, count, seed)

    def _solved(self, what: str, question: str, count: int, seed: int) -> Solutions:
        usage = self._pay("synthesize")
        if self._silent(what, question, str(seed)):
            return Solutions(solutions=(), usage=usage)
        ways = []
        for way in range(count):
            wrong = self._wrong(what, question, str(seed), str(way))
            answer = right_answer(f"{question} {way}" if wrong else question)
            ways.append(Solution(text=f"{what} {way}\n{answer}", answer=answer))
        return Solutions(solutions=tuple(ways), usage=usage)

    def _pay(self, activity: Activity) -> Usage:
        work = Work(self.student, self.round_id, activity)
        estimate = self.meter.reserve(work, prompt_tokens=1, completion_tokens=0)
        time.sleep(self.settings.seconds)
        return self.meter.settle(work, estimate, Usage(calls=1, prompt_tokens=1))

    def _silent(self, *what: str) -> bool:
        return chance("silent", *what) < self.settings.silent

    def _wrong(self, *what: str) -> bool:
        return chance("wrong", *what) < self.settings.wrong
