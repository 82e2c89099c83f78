"""The workers of `benchmarks.hundred`: two of each kind as processes of the installed command, started again
when they die."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

KINDS = ("deploy", "monitor", "curate", "train")
OF_EACH = 2
RESTART_S, STOP_S = 1.0, 120.0
SKILLLOOP = Path(sys.executable).parent / "skillloop"
ROOT = Path(__file__).parents[1]


@dataclass
class Crew:
    """Starts the workers when it is entered; a worker that was killed is started again, as a supervisor
    would. One that ends by itself is an error."""

    config: Path
    root: Path
    environ: Mapping[str, str]
    restarts: dict[str, int] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _pids: dict[int, str] = field(default_factory=dict)
    _died: dict[str, float] = field(default_factory=dict)
    _peak_mib: dict[str, int] = field(default_factory=dict)
    _cpu_s: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        (self.root / "workers").mkdir(exist_ok=True)
        for kind in KINDS:
            for number in range(OF_EACH):
                self._start(f"{kind}-{number}")
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _start(self, name: str) -> None:
        kind = name.partition("-")[0]
        own = {"SKILLLOOP_LOG__KAFKA__INSTANCE": name} if kind == "monitor" else {}
        with self.log_file(name).open("ab") as out:
            self._processes[name] = process = subprocess.Popen(
                self._command("worker", kind), stdout=out, stderr=out, env=self._environment() | own
            )
        self._pids[process.pid] = name

    def log_file(self, name: str) -> Path:
        """What a worker logs, over all its lives."""
        return self.root / "workers" / f"{name}.log"

    def _command(self, *words: str) -> list[str | Path]:
        return [SKILLLOOP, *words, "--config", self.config, "--dir", self.root]

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
        quiet = {"OMP_NUM_THREADS": "1", "SKILLLOOP_LOG_LEVEL": "INFO", "PYTHONPATH": path}
        return {**os.environ, **quiet, **self.environ}

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Another command on the same run. Raises `SystemExit` when it fails."""
        done = subprocess.run(
            self._command(*words), env=self._environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"skillloop {' '.join(words)} failed: {done.stdout}{done.stderr}")
        return done

    def tend(self) -> None:
        """Note what the workers cost, and start those again that were killed."""
        for name, process in self._processes.items():
            if process.poll() is None:
                self._measure(name, process.pid)
                continue
            if process.returncode != -signal.SIGKILL:
                tail = self.log_file(name).read_text(errors="replace")[-3000:]
                raise SystemExit(f"worker {name} ended by itself with {process.returncode}:\n{tail}")
            self._died.setdefault(name, time.monotonic())
        for name, when in list(self._died.items()):
            if time.monotonic() > when + RESTART_S:
                del self._died[name]
                self.restarts[name] = self.restarts.get(name, 0) + 1
                self._start(name)

    def _measure(self, name: str, pid: int) -> None:
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return
        mib = pages * resource.getpagesize() >> 20
        self._peak_mib[name] = max(mib, self._peak_mib.get(name, 0))
        self._cpu_s[name] = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")

    def costs(self) -> dict[str, dict[str, float]]:
        """Most memory and processor time of each worker (of its last life)."""
        return {
            name: {"peak_mib": self._peak_mib[name], "cpu_s": round(self._cpu_s[name], 1)}
            for name in sorted(self._peak_mib)
        }

    def of_owner(self, owner: str) -> str | None:
        """The worker that has a lease under this name (host:pid:token), if it still lives."""
        name = self._pids.get(int(owner.split(":")[-2]))
        return name if name is not None and self._processes[name].poll() is None else None

    def signal(self, name: str, what: signal.Signals) -> None:
        """Send a signal to a worker."""
        self._processes[name].send_signal(what)

    def stop(self) -> None:
        """Let all workers finish what they are at."""
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for name, process in self._processes.items():
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self.restarts[f"{name} (did not stop)"] = 1
        self._processes.clear()
