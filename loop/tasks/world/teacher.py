"""The demo's symbolic teacher: reads only text, as a language model would, and can be made as unreliable as
one.

Every random choice is a hash of the seed and the inputs, so replies are repeatable, independent of the order
of calls and of threads, and there is no state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from agent.budget import Usage
from agent.items import PoolItem
from graphs.teacher import Diagnosis, Labels, Solution, Solutions, Written
from loop.tasks.world.checker import check, needed_skills
from loop.tasks.world.questions import parse, solve
from loop.tasks.world.skills import BY_NAME
from loop.tasks.world.world import chain, mixed

_REPEATS = 100


@dataclass(frozen=True)
class SymbolicTeacher:
    """A teacher for the demo's world (see `graphs.teacher.Teacher`), with rates of unreliability in [0, 1].

    `error_rate`: diagnoses that name a random catalog skill in place of the missing one. `abstain_rate`:
    labels and diagnoses withheld. `solve_error_rate`: solutions with a wrong result. `chain_share`: written
    questions that chain the skill with a common one.
    """

    error_rate: float = 0.0
    abstain_rate: float = 0.0
    solve_error_rate: float = 0.0
    chain_share: float = 0.2
    seed: int = 0
    name: str = "symbolic"
    prompt_version: str = "symbolic-1"

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        """The skills of the catalog that a question needs; empty for abstention or text of another world."""
        needed = tuple(dict.fromkeys(name for name in needed_skills(question) if name in skills))
        usage = _usage(f"{question} {' '.join(skills)}", " ".join(needed))
        return Labels(
            skills=() if self._happens(self.abstain_rate, "label", question) else needed, usage=usage
        )

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        """Check an answer line by line; the first wrong line names the missing skill. Abstains on text of
        another world."""
        usage = _usage(
            f"{question} {answer} {' '.join(needed)} {' '.join(skills)}", "verdict evidence missing"
        )
        if self._happens(self.abstain_rate, "diagnose", question, answer) or parse(question) is None:
            return Diagnosis(verdict="abstained", usage=usage)
        checked = check(question, answer)
        if checked.verdict == "correct" or checked.missing_skill is None:
            return Diagnosis(verdict="correct", usage=usage)
        missing = checked.missing_skill
        if skills and self._happens(self.error_rate, "error", question, answer):
            others = [name for name in skills if name != missing]
            missing = self._rng("other", question, answer).choice(others or [missing])
        return Diagnosis(
            verdict="incorrect", evidence=checked.wrong_text or "", missing=(missing,), usage=usage
        )

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        """Write up to `count` distinct questions for a skill from the pool split, none of them a reference's;
        without a skill, each with the skills of one of the references.

        Fewer come back where the skill's operands are exhausted (100 repeats in a row); none for a skill of
        another world.
        """
        known = {item.question for item in references}
        questions: dict[str, None] = {}
        rng = self._rng("write", skill, str(seed))
        repeats = 0
        like = [skills for item in references if (skills := needed_skills(item.question))]
        while len(questions) < count and repeats < _REPEATS and (skill in BY_NAME or (like and not skill)):
            problem = (
                mixed(rng, skill, "pool", self.chain_share) if skill else chain(rng, rng.choice(like), "pool")
            )
            old = problem is None or problem.question in known or problem.question in questions
            repeats = repeats + 1 if old else 0
            if problem is not None and not old:
                questions[problem.question] = None
        prompt = " ".join([skill, *(f"{item.question} {item.solution}" for item in references)])
        return Written(questions=tuple(questions), usage=_usage(prompt, " ".join(questions)))

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        """Solve a question `count` times; each time, by `solve_error_rate`, with a wrong result. Empty for
        text of another world."""
        links = parse(question)
        if links is None:
            return Solutions(solutions=(), usage=_usage(question, ""))
        text, answer = solve(links)
        solutions = tuple(self._solution(question, text, answer, f"{seed}:{index}") for index in range(count))
        return Solutions(
            solutions=solutions,
            usage=_usage(question, " ".join(solution.text.replace(";", " ") for solution in solutions)),
        )

    def rewrite(self, item: PoolItem, count: int, seed: int) -> Solutions:
        """A worked solution of this world has one form: the item's own, once."""
        own = Solution(text=item.solution, answer=item.answer)
        return Solutions(solutions=(own,), usage=_usage(item.question, item.solution))

    def _solution(self, question: str, text: str, answer: str, key: str) -> Solution:
        if not self._happens(self.solve_error_rate, "solve", question, key):
            return Solution(text=text, answer=answer)
        head = answer.split("/")[0]
        wrong = str(int(head) + self._rng("wrong", question, key).randint(1, 9)) + answer[len(head) :]
        return Solution(text=text.removesuffix(answer) + wrong, answer=wrong)

    def _rng(self, *inputs: str) -> Random:
        key = "\x1f".join((str(self.seed), *inputs)).encode("utf-8", "surrogatepass")
        return Random(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()))

    def _happens(self, rate: float, *inputs: str) -> bool:
        return rate > 0 and self._rng("chance", *inputs).random() < rate


def _usage(prompt: str, completion: str) -> Usage:
    return Usage(calls=1, prompt_tokens=len(prompt.split()), completion_tokens=len(completion.split()))
