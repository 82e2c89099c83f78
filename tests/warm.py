"""Processes that start with the heavy libraries imported.

A fresh interpreter spends six seconds of processor time on torch, transformers, TRL and MLflow. A fork server
imports them once; each process it forks runs one script and is a process in every respect: it imports the
project's own modules itself, has its own environment and output, and can be killed.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

LIBRARIES = [
    "datasketch",
    "langchain_openai",
    "langgraph.checkpoint.sqlite",
    "langgraph.graph",
    "matplotlib.pyplot",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "peft",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.sft_trainer",
    "typer",
]
# Read by the libraries when they are imported; the command line sets the same.
ENVIRONMENT = {
    "LANGGRAPH_STRICT_MSGPACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(LIBRARIES)


def run_warm(
    script: Path, *arguments: object, environ: dict[str, str] | None = None, timeout_s: float = 1400.0
) -> subprocess.CompletedProcess[str]:
    """Run `script` with `arguments` in a process of its own, as `subprocess.run` would; `environ` is added to
    this process's environment.

    Raises `TimeoutError` after killing the process when it takes longer than `timeout_s`.
    """
    command = [str(script), *map(str, arguments)]
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _processes.Process(target=_become, args=(command, os.environ | (environ or {}), out, err))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{command} took longer than {timeout_s:.0f} s: {err.read_text()[-2000:]}")
        done = subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())
        process.close()
    return done


def _become(command: list[str], environ: dict[str, str], out: Path, err: Path) -> None:
    """Turn this process into one that was started with `command`."""
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
