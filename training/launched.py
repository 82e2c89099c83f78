"""What each process of a launched round runs: `python -m training.launched JOB` (`training.launch`)."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from accelerate.utils import broadcast_object_list

from serving.adapter_files import CorruptAdapter
from streams.files import write_text
from training.errors import TrainingError
from training.launch import FAILURE, JOBS, MARK, STOP, ChildFailure
from training.settings import SftSettings
from training.sft import train_begun
from training.trainer import StopTraining

FAILED = 1
ORPHANED = 3


def main() -> int:
    """Train the job in the file named; 0, or `FAILED` with the reason in `FAILURE`."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    text = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    settings = SftSettings.model_validate(text["settings"]).model_copy(update={"report_every": 1})
    job = JOBS.validate_python(text["job"])
    first = os.environ.get("RANK", "0") == "0"

    def report(step: int, total: int, loss: float) -> None:
        if first:
            sys.stdout.write(MARK + json.dumps([step, total, loss]) + "\n")
            sys.stdout.flush()
        if _asked_to_stop(job.out_dir):
            raise StopTraining

    try:
        train_begun(settings, job, report, fsdp=text["fsdp"])
    except StopTraining:
        return 0
    except (TrainingError, CorruptAdapter) as exc:
        failure = ChildFailure(error=type(exc).__name__, message=str(exc))
        write_text(job.out_dir / FAILURE, failure.model_dump_json())
        return FAILED
    return 0


def _asked_to_stop(out_dir: Path) -> bool:
    """Whether the worker stops the round; the first process looks, so that all of them end at one step."""
    asked = [(out_dir / STOP).exists()]
    broadcast_object_list(asked)
    return asked[0]


def _end_with_parent() -> None:
    """Standard input ends when the worker dies: nobody then waits for this round."""
    sys.stdin.buffer.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
