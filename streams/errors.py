"""The root of this package's errors."""

from __future__ import annotations

from agent.errors import SkillloopError


class StreamsError(SkillloopError):
    """Root of what events, log and state store raise."""
