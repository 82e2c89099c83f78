"""The root of this package's errors."""

from __future__ import annotations

from agent.errors import SkillloopError


class GraphsError(SkillloopError):
    """Root of what the graphs and their teachers raise."""
