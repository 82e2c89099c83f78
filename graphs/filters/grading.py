"""Is a final answer equal to the gold answer? math-verify decides, in a process of its own with a hard time
limit.

with MathGrader() as grade:
    GoldAnswer(grade)          # one of the difficulty filters of graphs.filters.assess
"""

from __future__ import annotations

import json
import logging
import select
import subprocess
import sys
import threading
from pathlib import Path

log = logging.getLogger(__name__)
MAX_ANSWER_CHARS = 20_000
START_S = 60.0


class MathGrader:
    """Grades answers to mathematics questions: `grade(question, gold, answer)`, for `GoldAnswer`. Safe for
    threads, one at a time.

    Right when the last boxed expression, else the stated answer, else the last expression equals `gold`.
    `None`, no opinion, when `gold` cannot be read, or comparing took more than `timeout_s` (its process is
    then replaced) or more memory than it may have. The end of a very long answer is read. The process starts
    with the first question and ends with `close`.
    """

    def __init__(self, timeout_s: int = 5) -> None:
        if timeout_s < 1:
            raise ValueError(f"timeout_s must be whole seconds and at least 1, got {timeout_s}")
        self.timeout_s = timeout_s
        self.timeouts = 0
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._asked = 0

    def __call__(self, question: str, gold: str, answer: str) -> bool | None:
        with self._lock:
            process = self._running()
            self._asked += 1
            asked = {
                "id": self._asked,
                "gold": gold,
                "answer": answer[-MAX_ANSWER_CHARS:],
                "timeout_s": self.timeout_s,
            }
            return self._ask(process, asked)

    def _ask(self, process: subprocess.Popen[str], asked: dict[str, object]) -> bool | None:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            # math-verify stops each of its steps after timeout_s by itself; where it cannot, the process is
            # killed.
            ready, _, _ = select.select(
                [process.stdout], [], [], self.timeout_s * 3 + (START_S if asked["id"] == 1 else 0)
            )
            reply = json.loads(process.stdout.readline()) if ready else None
        except (BrokenPipeError, json.JSONDecodeError):
            reply = None
        if reply is None or reply["id"] != asked["id"]:
            self.timeouts += 1
            log.warning("comparing an answer took too long or too much memory; it stays undecided")
            self._stop()
            return None
        right: bool | None = reply["right"]
        return right

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            command = [sys.executable, "-W", "ignore", "-m", "graphs.filters.math_worker"]
            root = Path(__file__).parents[2]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(
                command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)

    def close(self) -> None:
        """End the process; a later question starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> MathGrader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _close(pipe: object) -> None:
    try:
        pipe.close()  # type: ignore[attr-defined]
    except BrokenPipeError:  # what was left in its buffer has no reader
        log.debug("the grader's process was gone")
