"""The root of this package's errors."""

from __future__ import annotations

from agent.errors import SkillloopError


class LoopError(SkillloopError):
    """Root of what configuration, wiring and workers raise."""
