"""The root of every error that a user can act on; each package has its own root below it.

    SkillloopError
      AgentError, StreamsError, EngineError (serving), TrainingError, GraphsError, LoopError

Their messages say what happened, with values, and what to do; the command line prints them without a
traceback. Errors of libraries are wrapped once, where they enter, with `from exc`.
"""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(\w://[^/@:\s]*:)\S*@")


class SkillloopError(Exception):
    """An error whose message says what to do."""


class AgentError(SkillloopError):
    """Root of what the decisions raise: budgets, catalogs, strategies."""


def masked(text: object) -> str:
    """The text without the passwords of the addresses in it.

    >>> masked("no answer from postgresql://loop:p@ss@db/mlflow")
    'no answer from postgresql://loop:***@db/mlflow'
    """
    return _PASSWORD.sub(r"\1***@", str(text))
