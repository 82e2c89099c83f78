"""The workers of `benchmarks.campaign`: the command line in forked processes, so that heavy libraries are
imported once, each with a wall clock of its own that can be set.

libfaketime breaks `time.sleep` of Python 3.11 (a sleep until a moment of the monotonic clock ends with
EINVAL), so the clock is set inside the process: `time.time` and `streams.clock.SystemClock`.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import forkserver
from pathlib import Path

from benchmarks.hundred_crew import Crew
from streams.clock import SystemClock

REMEDIES = re.compile(r"skillloop topics adopt (\S+?)`|start it again")
"""What a worker must say that ends by itself: what to do."""
PRELOAD = (
    "benchmarks.hundred_world",
    "langgraph.checkpoint.sqlite",
    "langgraph.graph",
    "loop.cli.look",
    "loop.cli.main",
    "loop.cli.told",
    "loop.run",
    "loop.tasks.files",
    "loop.wiring",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "psycopg",
    "streams.kafka.log",
    "training.registry",
)
LIBRARIES = {  # read when they are imported; the command line sets the same
    "LANGGRAPH_STRICT_MSGPACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
CLOCK = "CAMPAIGN_CLOCK"
"""A variable with the file that says how far off a worker's wall clock is."""
_processes = multiprocessing.get_context("forkserver")


def start_forking() -> None:
    """Start the server that workers are forked from."""
    os.environ.update(LIBRARIES)
    _processes.set_forkserver_preload(list(PRELOAD))
    forkserver.ensure_running()


def follow(clock: Path) -> None:
    """Let this process's wall clock be off by the seconds that stand in a file."""
    real, read_at, offset = time.time, 0.0, 0.0

    def now() -> float:
        nonlocal read_at, offset
        if time.monotonic() > read_at + 0.2:
            read_at = time.monotonic()
            with contextlib.suppress(OSError, ValueError):
                offset = float(clock.read_text())
        return real() + offset

    time.time = now
    SystemClock.now = lambda self: datetime.fromtimestamp(now(), UTC)  # type: ignore[method-assign]


def keep_group_log(path: Path) -> None:
    """Keep what the client tells of its consumer group, beside the worker's log."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logger = logging.getLogger("kafka.coordinator")
    logger.setLevel("DEBUG")
    logger.addHandler(handler)
    logger.propagate = False


def _become(words: Sequence[str], environ: Mapping[str, str], out: Path) -> None:
    """Turn this process into `skillloop` with these words."""
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environ)
    if "monitor" in words:
        keep_group_log(out.with_suffix(".group"))
    if CLOCK in environ:
        follow(Path(environ[CLOCK]))
    sys.argv = ["skillloop", *words]
    from loop.cli.main import main  # noqa: PLC0415  (preloaded in the fork server only)

    main()


class Forked:
    """A forked command with what `Crew` uses of `subprocess.Popen`."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], out: Path) -> None:
        self._process = _processes.Process(target=_become, args=(words, dict(environ), out))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, what: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, what)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("skillloop", timeout or 0.0)
        return self._process.exitcode


@dataclass(frozen=True)
class Death:
    """A worker that ended by itself, and the last that it said."""

    name: str
    code: int
    said: str

    @property
    def remedy(self) -> str:
        """What it says to do; empty where it says nothing."""
        match = REMEDIES.search(self.said)
        return match[0] if match else ""


@dataclass
class CampaignCrew(Crew):
    """Does what a person would: where a worker says what to do, that is done, and it is started again."""

    killed: set[int] = field(default_factory=set)
    deaths: list[Death] = field(default_factory=list)

    def _start(self, name: str) -> None:
        own = {"SKILLLOOP_LOG__KAFKA__INSTANCE": name} if name.startswith("monitor") else {}
        own[CLOCK] = str(self._clock(name))
        self.set_clock(name, 0.0)
        words = [str(word) for word in self._command("worker", name.partition("-")[0])[1:]]
        process = Forked(words, self._environment() | own, self.log_file(name))
        self._processes[name] = process  # type: ignore[assignment]
        self._pids[process.pid] = name

    def _clock(self, name: str) -> Path:
        return self.root / "workers" / f"{name}.clock"

    def set_clock(self, name: str, seconds: float) -> None:
        """Set a worker's wall clock forward, or back."""
        self._clock(name).write_text(f"{seconds}\n")

    def names(self) -> list[str]:
        """The workers that run."""
        return [name for name, process in self._processes.items() if process.poll() is None]

    def pid(self, name: str) -> int:
        """A worker's process."""
        return self._processes[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL, as a host that dies does."""
        self.killed.add(self._processes[name].pid)
        self.signal(name, signal.SIGKILL)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        out = self.root / f"command-{time.monotonic_ns()}.log"
        arguments = [str(word) for word in self._command(*words)[1:]]
        code = Forked(arguments, self._environment(), out).wait(120.0)
        return subprocess.CompletedProcess(arguments, code, out.read_text(errors="replace"), "")

    def tend(self) -> None:
        """Start again what has ended, after what it asks for has been done."""
        for name, process in list(self._processes.items()):
            if process.poll() is None or name in self._died:
                continue
            self._died[name] = time.monotonic()
            if process.pid not in self.killed:
                said = self.log_file(name).read_text(errors="replace")[-4000:]
                self.deaths.append(Death(name, process.returncode or 0, said))
                self._obey(self.deaths[-1])
        for name, when in list(self._died.items()):
            if time.monotonic() > when + 1.0:
                del self._died[name]
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self._start(name)

    def _obey(self, death: Death) -> None:
        match = REMEDIES.search(death.said)
        if match and match[1]:
            self.command("topics", "adopt", match[1])
