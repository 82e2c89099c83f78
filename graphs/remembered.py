"""A memory for teachers that have none of their own: any teacher with its replies in the reply cache, where a
language model's lie too. One that was killed is not asked twice for what it has said."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import TypeVar

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from agent.items import PoolItem
from graphs.chat.cache import ReplyCache
from graphs.chat.settings import ChatReply
from graphs.teacher import CatalogTeacher, Clusters, Diagnosis, Labels, SkillName, Solutions, Written

Reply = TypeVar("Reply", bound=BaseModel)
_STRIPES = 64


class RememberedTeacher:
    """Asks `teacher` once for one name, prompt version, method and arguments; equal calls under way wait for
    the first.

    A reply is kept before it is used; an error is not kept. Safe for threads, raises what the teacher raises.
    """

    def __init__(self, teacher: CatalogTeacher, replies: ReplyCache) -> None:
        self.name = teacher.name
        self.prompt_version = teacher.prompt_version
        self._teacher = teacher
        self._replies = replies
        self._locks = tuple(threading.Lock() for _ in range(_STRIPES))

    def label(self, question: str, skills: Sequence[str]) -> Labels:
        return self._kept(Labels, "label", question, skills)

    def diagnose(self, question: str, answer: str, needed: Sequence[str], skills: Sequence[str]) -> Diagnosis:
        return self._kept(Diagnosis, "diagnose", question, answer, needed, skills)

    def write(self, skill: str, references: Sequence[PoolItem], count: int, seed: int) -> Written:
        return self._kept(Written, "write", skill, references, count, seed)

    def solve(self, question: str, count: int, seed: int) -> Solutions:
        return self._kept(Solutions, "solve", question, count, seed)

    def name_skill(self, question: str) -> SkillName:
        return self._kept(SkillName, "name_skill", question)

    def cluster(self, names: Sequence[str], at_most: int) -> Clusters:
        return self._kept(Clusters, "cluster", names, at_most)

    def rewrite(self, item: PoolItem, count: int, seed: int) -> Solutions:
        return self._kept(Solutions, "rewrite", item, count, seed)

    def _kept(self, kind: type[Reply], method: str, *arguments: object) -> Reply:
        text = json.dumps([self.name, self.prompt_version, method, to_jsonable_python(arguments)])
        key = hashlib.sha256(text.encode()).hexdigest()
        with self._locks[int(key[:8], 16) % _STRIPES]:
            known = self._replies.get(key)
            if known is not None:
                return kind.model_validate_json(known.text)
            reply: Reply = getattr(self._teacher, method)(*arguments)
            self._replies.put(key, ChatReply(text=reply.model_dump_json(), purpose=method))
            return reply
