"""What the process says while it runs: log lines on a terminal, one JSON object a line elsewhere."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

OURS = ("agent", "graphs", "loop", "serving", "streams", "training")
FLOOD_S = 60.0
TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class LogFormat(StrEnum):
    """`auto` is text on a terminal and JSON elsewhere."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


def set_up_logging(
    level: str, log_format: LogFormat = LogFormat.TEXT, console: Console | None = None
) -> None:
    """Log to standard error: our own packages from `level` on, libraries from WARNING on. `console` is where
    a progress bar is drawn, so that lines appear above it. Raises `ValueError` for an unknown level."""
    handler = _handler(log_format, console)
    verbose = level == "DEBUG"
    if not verbose:
        handler.addFilter(FloodGate("kafka"))
        handler.addFilter(FloodGate("uvicorn", logging.WARNING))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel("INFO" if verbose else "WARNING")
    for name in OURS:
        logging.getLogger(name).setLevel(level)


def _handler(log_format: LogFormat, console: Console | None) -> logging.Handler:
    terminal = console if console is not None and console.is_terminal else None
    if log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and terminal is None):
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
    elif terminal is not None:
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        handler = RichHandler(console=terminal, show_path=False, highlighter=NullHighlighter())
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(TEXT))
    return handler


class JsonLines(logging.Formatter):
    """time, level, logger, message, then the record's `fields` and its exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class FloodGate(logging.Filter):
    """Lets one line of a library, of level `highest` at most, through in `FLOOD_S` seconds: kafka-python
    repeats itself several times a second while a broker is away, and our own line says what that means;
    uvicorn warns of every request that is not HTTP, of which a stranger may send many."""

    def __init__(self, library: str, highest: int = logging.CRITICAL) -> None:
        super().__init__()
        self._library, self._highest = library, highest
        self._open_at = float("-inf")
        self._held = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] != self._library or record.levelno > self._highest:
            return True
        now = time.monotonic()
        if now < self._open_at:
            self._held += 1
            return False
        held, self._held, self._open_at = self._held, 0, now + FLOOD_S
        told = f" ({held} lines held back)" if held else ""
        vars(record).update(msg=f"{record.getMessage()}{told}", args=())
        return True
