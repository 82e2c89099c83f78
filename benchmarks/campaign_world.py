"""The small world of `benchmarks.campaign`: six of the skills of benchmarks/hundred_world.py, and a teacher
behind HTTP that knows them, and lies when told to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.chance import rank
from agent.items import JsonObject
from benchmarks.hundred_world import SKILLS as ALL
from benchmarks.hundred_world import Questions, chance, needed, right_answer
from graphs.testing.brain import ChatRequest, SensibleBrain

SKILLS = ALL[:6]
_SKILL = re.compile(r"practise one skill: (\w+)")


@dataclass(frozen=True)
class WorldBrain(SensibleBrain):
    """What the teacher says. `lies`: the share of diagnoses that name another skill, and of solutions that
    end in another result."""

    lies: float = 0.0

    def _lies(self, request: ChatRequest) -> bool:
        return chance("lies", *request.data.values(), str(request.seed)) < self.lies

    def _label(self, request: ChatRequest) -> JsonObject:
        listed = request.listed("skills")
        return {"skills": [skill for skill in needed(request.data.get("question", "")) if skill in listed]}

    def _diagnose(self, request: ChatRequest) -> JsonObject:
        lines = request.data.get("answer", "").splitlines()
        slips = [line for line in lines if line.endswith(": slip")]
        if not slips:
            return {"verdict": "correct", "evidence": "", "missing": []}
        listed, missing = request.listed("missing"), [line.partition(":")[0] for line in slips]
        if self._lies(request):
            missing = listed[rank(0, *request.data.values()) % len(listed) :][:1]
        return {"verdict": "incorrect", "evidence": slips[0], "missing": missing}

    def _write(self, request: ChatRequest) -> JsonObject:
        skill = _SKILL.search(request.system)
        drawn = Questions(rank(request.seed, *request.data.values()), "write", SKILLS)
        count = request.number("Write", 2)
        return {"questions": [drawn.draw(skill[1] if skill else None) for _ in range(count)]}

    def _solve(self, request: ChatRequest) -> JsonObject:
        question = request.data.get("question", "")
        asked = f"{question} lie {request.seed}" if self._lies(request) else question
        return {"steps": [f"Way {request.seed}: look it up."], "answer": right_answer(asked)}
