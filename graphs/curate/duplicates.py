"""When two questions count as the same: for removing repeats from a data set and for keeping held-out
questions out of it.

Exact: equal after normalising case, space and prose punctuation. Near: Jaccard similarity of the word
shingles at least `threshold` *and* the same multiset of numbers. Questions of one template differ in nothing
but their numbers ("add 3 and 5", "add 3 and 6"): to word shingles alone they look like copies, and a filter
without the second condition throws a synthetic set of arithmetic questions away. Operators and brackets are
tokens too: "3 + 5" is not "3 - 5".

MinHash (Broder 1997; datasketch) proposes candidates, set generously; the exact Jaccard similarity decides.
So the result can miss a pair (rarely, near the threshold) but never names a false one. Numbers written as
words are words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from datasketch import MinHash, MinHashLSH

from graphs.curate.settings import DuplicateSettings
from streams.files import text_sha256

_TOKEN = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[^\w\s]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
Same = Literal["exact", "near"]
_FEW = 64  # so many are compared one by one: faster than hashing, and misses nothing
_PROSE = frozenset(".,;:!?'\"`$\u2018\u2019\u201c\u201d\u2026")


@dataclass(frozen=True)
class SameQuestion:
    """What counts as the same question. `numbers_matter=False` also joins questions that differ in their
    numbers only.

    Raises `ValueError` for a threshold outside (0, 1] or a shingle below one word.
    """

    threshold: float = 0.7
    shingle: int = 3
    numbers_matter: bool = True
    permutations: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or self.shingle < 1:
            raise ValueError(
                f"threshold {self.threshold} must be in (0, 1] and shingle {self.shingle} at least 1 word"
            )


def tokens(question: str) -> tuple[str, ...]:
    """Words, numbers and operators in lower case.

    >>> tokens("What is  1,000 + 2?")
    ('what', 'is', '1000', '+', '2')
    """
    folded = unicodedata.normalize("NFKC", question).casefold()
    return tuple(token for token in _TOKEN.findall(_THOUSANDS.sub("", folded)) if token not in _PROSE)


def question_key(question: str) -> str:
    """A hash of a question's tokens: the same for exact repeats, everywhere and always.

    >>> question_key("Add 3 and 5.") == question_key("add  3 and 5") != question_key("add 3 and 6")
    True
    """
    return text_sha256(*tokens(question))


def shingles(words: tuple[str, ...], size: int) -> frozenset[str]:
    """The runs of `size` neighbouring tokens; a shorter text is one shingle."""
    if not words:
        return frozenset()
    return frozenset(" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Common part of two sets.

    >>> jaccard(frozenset("ab"), frozenset("bc"))
    0.3333333333333333
    """
    return len(one & other) / len(one | other) if one or other else 1.0


class _Bucket:
    """Shingle sets among which near duplicates are sought: one by one while few, through MinHash candidates
    when many."""

    def __init__(self, rule: SameQuestion) -> None:
        self._rule = rule
        self._members: list[frozenset[str]] = []
        self._lsh: MinHashLSH | None = None
        self._hashed = 0

    def add(self, member: frozenset[str]) -> None:
        self._members.append(member)

    def holds(self, text: frozenset[str]) -> bool:
        return any(jaccard(text, member) >= self._rule.threshold for member in self._candidates(text))

    def _candidates(self, text: frozenset[str]) -> list[frozenset[str]]:
        if len(self._members) <= _FEW:
            return self._members
        if self._lsh is None:
            # Half the threshold and weights against false negatives: candidates are cheap, each is checked
            # exactly.
            self._lsh = MinHashLSH(
                threshold=self._rule.threshold / 2, num_perm=self._rule.permutations, weights=(0.1, 0.9)
            )
        for key in range(self._hashed, len(self._members)):
            self._lsh.insert(key, self._minhash(self._members[key]), check_duplication=False)
        self._hashed = len(self._members)
        return [self._members[key] for key in self._lsh.query(self._minhash(text))]

    def _minhash(self, text: frozenset[str]) -> MinHash:
        signature = MinHash(num_perm=self._rule.permutations, seed=1)
        signature.update_batch([shingle.encode() for shingle in sorted(text)])
        return signature


class QuestionIndex:
    """A growing set of questions that can be asked whether it already holds one.

    >>> index = QuestionIndex(SameQuestion(), ["Add 3 and 5."])
    >>> index.find("add  3 and 5"), index.find("add 3 and 6")
    ('exact', None)
    """

    def __init__(self, rule: SameQuestion, questions: Iterable[str] = ()) -> None:
        self._rule = rule
        self._exact: set[tuple[str, ...]] = set()
        self._buckets: dict[tuple[str, ...], _Bucket] = {}
        for question in questions:
            self.add(question)

    def add(self, question: str) -> None:
        """Take a question in; one that is already there exactly changes nothing."""
        words = tokens(question)
        if words in self._exact:
            return
        self._exact.add(words)
        if words:
            self._buckets.setdefault(self._bucket(words), _Bucket(self._rule)).add(
                shingles(words, self._rule.shingle)
            )

    def find(self, question: str) -> Same | None:
        """`"exact"` or `"near"` when the index holds this question, else `None`."""
        words = tokens(question)
        if words in self._exact:
            return "exact"
        bucket = self._buckets.get(self._bucket(words))
        return "near" if words and bucket and bucket.holds(shingles(words, self._rule.shingle)) else None

    def _bucket(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(word for word in words if word[0].isdigit())) if self._rule.numbers_matter else ()


def repeats(settings: DuplicateSettings, questions: Iterable[str] = ()) -> QuestionIndex:
    """An index in which a question is found when it repeats one of `questions`."""
    return QuestionIndex(SameQuestion(settings.duplicate, numbers_matter=settings.numbers_matter), questions)


def untouchable(settings: DuplicateSettings, questions: Iterable[str]) -> QuestionIndex:
    """An index in which a question is found when it is contaminated by one of `questions`."""
    return QuestionIndex(
        SameQuestion(settings.contamination, numbers_matter=settings.numbers_matter), questions
    )
