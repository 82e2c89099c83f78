"""What the gateway adds to a real vLLM's answers, and how long a new version takes to its first user.

    make vllm-env && python -m benchmarks.gateway_vllm --json gateway_vllm.json

vLLM serves the demo's student on this machine's processor. Clients ask it for 16 tokens, directly and through
`skillloop gateway`, in turns (see benchmarks/gateway.py). The swap is what follows the gate without a canary:
publish, load, prove, lead users, until the new version's first answer has come through the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from benchmarks.gateway import CLIENTS, lead, load, process
from loop.demo.live import VLLM, VLLM_ENVIRON, free_port, running, wait_for
from loop.tasks.student import base_dir
from serving.settings import VllmSettings
from serving.vllm_engine import VllmEngine

PATH = "/v1/completions"
ASKED: dict[str, Any] = {"prompt": "17 * 23", "max_tokens": 16, "min_tokens": 16, "temperature": 0}


def adapter(base: Path, folder: Path) -> Path:
    """An adapter that changes something."""
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def swap(url: str, folder: Path, engine: VllmEngine, version: int, files: Path) -> dict[str, float]:
    """Seconds from the gate's word: until the version is proved, and until it has answered a user."""
    began = time.perf_counter()
    engine.load(version, files)
    proved = time.perf_counter()
    name = lead(folder, engine, version)
    while httpx.post(url + PATH, json={"model": "demo"} | ASKED, timeout=60).json()["model"] != name:
        pass
    return {"proved_s": proved - began, "answered_s": time.perf_counter() - began}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All loads and rounds, then the swaps."""
    base, port = base_dir("builtin:llama"), free_port()
    server = f"http://127.0.0.1:{port}"
    serve: list[str | Path] = [options.vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", base]
    (folder / "gateway.toml").write_text("[gateway]\nport = 0\n[gateway.captured]\nfeedback_wait_s = 0\n")
    with running("vllm", [*serve, "--port", str(port), *VLLM], VLLM_ENVIRON, folder):
        wait_for(server, "vllm", folder)
        settings = VllmSettings(
            replicas=(server,), store=folder / "store", base_as_adapter=True, reference_device="cpu"
        )
        engine = VllmEngine(settings, base)
        engine.load(1, None)
        ways = {"direct": (server, lead(folder, engine, 1))}
        command = (str(Path(sys.executable).parent / "skillloop"), "gateway", "--dir", str(folder))
        with process(*command, "--config", str(folder / "gateway.toml")) as url:
            ways["gateway"] = (url, "demo")
            rounds: dict[tuple[str, bool, int], list[dict[str, float]]] = {}
            for number in range(options.rounds):
                for stream in (False, True):
                    for clients in CLIENTS:
                        for way, (address, model) in ways.items():
                            row = asyncio.run(
                                load(address, model, clients, stream, options.seconds, PATH, ASKED)
                            )
                            rounds.setdefault((way, stream, clients), []).append(row)
                print(f"round {number + 1} of {options.rounds} done", flush=True)
            files = [adapter(base, folder / f"adapter-{number}") for number in range(options.rounds)]
            swaps = [swap(url, folder, engine, 2 + number, path) for number, path in enumerate(files)]
        engine.close()
    return report(rounds, swaps)


def report(
    rounds: Mapping[tuple[str, bool, int], list[dict[str, float]]], swaps: list[dict[str, float]]
) -> dict[str, Any]:
    """Print the table; the figures for `--json`."""
    table = Table("stream", "clients", "direct p50 ms", "added p50", "direct p99", "added p99", "failed")
    rows = []
    for stream, clients in [key[1:] for key in rounds if key[0] == "direct"]:
        direct, through = rounds["direct", stream, clients], rounds["gateway", stream, clients]
        figures: dict[str, float] = {"stream": stream, "clients": clients}
        for name in ("p50_ms", "p99_ms"):
            figures[f"direct_{name}"] = straight = median(row[name] for row in direct)
            figures[f"added_{name}"] = median(row[name] for row in through) - straight
        figures["failed"] = sum(row["failed"] for row in (*direct, *through))
        rows.append(figures)
        cells = (f"{value:.2f}" if isinstance(value, float) else str(value) for value in figures.values())
        table.add_row(*cells)
    Console().print(table)
    swapped = {name: round(median(each[name] for each in swaps), 2) for name in swaps[0]}
    print(f"swap, median of {len(swaps)}: {swapped}")
    return {"rows": rows, "swap": swapped}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm/bin/python"), help="vLLM's Python")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = measure(options, Path(tempfile.mkdtemp(prefix="skillloop-gateway-vllm-")))
    if options.json:
        options.json.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
