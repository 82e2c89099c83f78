"""Training rounds in child processes: device memory is free afterwards, a crash of the trainer is not one of
the worker, and several devices share a round.

The children run `training.launched` under torchrun, which `accelerate launch` calls as well, or under a
command of the user's (`LaunchSettings.command`). On their standard output progress comes as JSON behind
`MARK`; everything else goes to `launch.log` in the round's directory. Their standard input is a pipe from
this process: when this process dies the pipe ends, and so do they. A round that is stopped (`StopTraining`)
is asked to by the file `STOP`: the children save a checkpoint after their present step and end. A launcher
that is killed with this process (systemd's default) or a step that outlives the worker costs the steps since
the last checkpoint, `save_every` at most.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

import training.errors
from agent.items import Frozen
from serving.adapter_files import CorruptAdapter
from streams.files import read_json, write_text
from training.errors import TrainingError
from training.loading import memory_plan, require_positions
from training.settings import LaunchSettings, SftSettings
from training.sft import begin, checked, finished_result
from training.trainer import Progress, StopTraining, TrainedAdapter, TrainingJob, unwatched

MARK = "skillloop-progress "
JOB = "launch.json"
FAILURE = "launch-failed.json"
STOP = "launch-stop"
LOG = "launch.log"
GRACE_S = 5.0  # between asking the children to end and killing them
SHOWN_LINES = 15
JOBS = TypeAdapter(TrainingJob)


class ChildFailure(Frozen):
    """What stopped the children, when they could say it: a class of `training.errors` or `CorruptAdapter`."""

    error: str
    message: str


@dataclass(frozen=True)
class LaunchTrainer:
    """The `training.trainer.Trainer` that runs `training.sft` in `launch.processes` processes."""

    settings: SftSettings
    launch: LaunchSettings

    def check(self, base_dir: Path, max_length: int, batch_size: int) -> str:
        """See `training.sft.SftTrainer.check`; the devices are taken to be like this process's own."""
        require_positions(base_dir, max_length)
        count = self.launch.processes
        shards = count if self.launch.fsdp else 1
        chosen = memory_plan(self.settings, base_dir, max_length, batch_size, count, shards)
        return f"{count} processes, {checked(self.settings, chosen)}"

    def train(self, job: TrainingJob, on_progress: Progress = unwatched) -> TrainedAdapter:
        """See `training.trainer.Trainer.train`. Raises `TrainingError` with the end of the children's output
        when they die without saying why."""
        done = begin(job, self.settings)
        if done is not None:
            return done
        for name in (FAILURE, STOP):
            (job.out_dir / name).unlink(missing_ok=True)
        absolute = {"base_dir": job.base_dir.resolve(), "out_dir": job.out_dir.resolve()}
        text = {
            "settings": self.settings.model_dump(mode="json"),
            "fsdp": self.launch.fsdp,
            "job": JOBS.dump_python(replace(job, right=None), mode="json")
            | {key: str(path) for key, path in absolute.items()},
        }
        write_text(job.out_dir / JOB, json.dumps(text))
        tail = _attend(self._command(job.out_dir / JOB), job.out_dir, on_progress)
        result = finished_result(job.out_dir)
        if result is None:
            raise _reason(job.out_dir, tail)
        return result

    def _command(self, job_file: Path) -> list[str]:
        processes = f"--nproc-per-node={self.launch.processes}"
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", processes)
        return [*(self.launch.command or torchrun), "-m", "training.launched", str(job_file.resolve())]


def _attend(command: list[str], out_dir: Path, on_progress: Progress) -> list[str]:
    """Run the children to their end and report their progress; the last lines of their other output. Raises
    `StopTraining` when they have ended because progress raised it."""
    tail: deque[str] = deque(maxlen=SHOWN_LINES)
    stopped: StopTraining | None = None
    with _children(command) as children, (out_dir / LOG).open("a", encoding="utf-8") as log:
        assert children.stdout is not None
        for line in children.stdout:
            if not line.startswith(MARK):
                log.write(line)
                log.flush()
                tail.append(line.rstrip())
            elif stopped is None:
                step, total, loss = json.loads(line.removeprefix(MARK))
                try:
                    on_progress(step, total, loss)
                except StopTraining as exc:
                    stopped = exc
                    (out_dir / STOP).touch()
        children.wait()
    if stopped is not None:
        raise stopped
    return list(tail)


@contextmanager
def _children(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The running children; all of them are dead afterwards."""
    try:
        children = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except OSError as exc:
        raise TrainingError(f"cannot start {command[0]}: {exc}; check [train.launch] command") from exc
    try:
        yield children
    finally:
        _end(children)


def _end(children: subprocess.Popen[str]) -> None:
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(children.pid, stop)
        except ProcessLookupError:
            break
        try:
            children.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    children.wait()
    for pipe in (children.stdin, children.stdout):
        if pipe is not None:
            pipe.close()


def _reason(out_dir: Path, tail: list[str]) -> Exception:
    failure = read_json(out_dir / FAILURE)
    if failure is None:
        said = "\n".join(tail) or "(nothing)"
        return TrainingError(f"the trainer's processes died; the end of {out_dir / LOG}:\n{said}")
    known = ChildFailure.model_validate(failure)
    if known.error == CorruptAdapter.__name__:
        return CorruptAdapter(known.message)
    kind = getattr(training.errors, known.error, TrainingError)
    return kind(known.message)
