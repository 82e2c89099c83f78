"""What the language-model teacher costs in calls and tokens, cold and from the cache, and how its throughput
grows with concurrency.

    python -m benchmarks.teacher --json out.json

Against the scripted server (`graphs.testing.server`) in a process of its own with 50 ms latency, so the
counts are those of the pipeline, not of a model: real completions are longer. Tokens are the server's count
(characters / 4). Diagnosis: distinct questions through the monitor graph with the teacher's verdict as the
only filter. Synthesis: a curation round with the paper's numbers (3 references, 2 questions per prompt, 3
solutions, 2 must agree). An accepted item is a question-solution pair of the data set. It is measured with
the loop's default, one pair per question and 60 % acceptance expected, and with the paper's, every agreeing
solution a pair. Ideal throughput: requests on the wire at once (`max_concurrency`) / latency. As in the loop,
two more threads than that call the teacher (`ChatSettings.threads`). A bare httpx client with a thread per
request on the wire, which posts one and the same prompt, shows what of the ideal is the server's and the
machine's.

The paper's count (arXiv 2510.10023, section 3; counted from its procedure, it reports none): one call per
diagnosis, the labels of the questions coming with the catalog; 1 + 2 x 3 = 7 calls per prompt for at most 6
pairs, so 7/6 per pair when everything agrees.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated

import httpx
import typer
from rich.console import Console
from rich.table import Table

from agent.budget import Price, Usage
from agent.catalog import SkillCatalog, SkillMap
from agent.decision import SkillTarget
from agent.items import PoolItem
from agent.plan import StrategySettings
from agent.replay import ReplaySettings
from agent.strategies import plan_targets
from graphs.chat.cache import SqliteReplies
from graphs.chat.meter import MeterReading
from graphs.chat.prompts import label
from graphs.chat.settings import ChatSettings
from graphs.chat.teacher import ChatTeacher
from graphs.curate.graph import build_curate, run_curation
from graphs.curate.plan import CurateContext, CurationPlan
from graphs.filters.assess import TeacherVerdict
from graphs.monitor.diagnose import MonitorContext
from graphs.monitor.graph import build_monitor, diagnose_outputs
from graphs.testing.server import teacher_process
from streams.events import StudentOutput

LATENCY_S, CONCURRENCY, TURNS = 0.05, 4, 3
PAPER_CALLS_PER_DIAGNOSIS, PAPER_CALLS_PER_PAIR = 1.0, 7 / 6
ALL_PAIRS = StrategySettings(acceptance=0.9, pairs_per_question=2.5)
SKILLS = ("addition", "counting", "division", "geometry", "maximum", "ordering", "percentages", "ratios")
CATALOG = SkillCatalog.of(*((name, "") for name in SKILLS))
ANSWER = (
    "First I look at the numbers.\n\nThen I add them up, carrying over the tens.\n\n"
    "So the answer is $\\boxed{12}$."
)


def connect(base_url: str, folder: Path, concurrency: int = CONCURRENCY) -> ChatTeacher:
    """A teacher with the cache of `folder`."""
    price = Price(prompt_usd_per_mtok=2.0, completion_usd_per_mtok=8.0)
    settings = ChatSettings(base_url=base_url, model="teacher", price=price, max_concurrency=concurrency)
    return ChatTeacher.connect(settings, SqliteReplies(folder / "replies.sqlite"))


def diagnoses(teacher: ChatTeacher, count: int) -> int:
    """Diagnose `count` outputs of distinct questions; how many were decided."""
    when = datetime(2026, 11, 1, tzinfo=UTC)
    fixed = {"occurred_at": when, "student": "s", "student_version": 1}
    outputs = [
        StudentOutput.model_validate(
            {"event_id": f"e{at}", "question": f"What is {at} + 7?", "answer": f"{ANSWER} ({at})", **fixed}
        )
        for at in range(count)
    ]
    context = MonitorContext(teacher, CATALOG, (TeacherVerdict(),))
    diagnoses = diagnose_outputs(build_monitor(), outputs, context, teacher.client.settings.threads)
    return sum(diagnosis.verdict in ("correct", "incorrect") for diagnosis in diagnoses)


def synthesis(
    teacher: ChatTeacher, pairs: int, seed: int, settings: StrategySettings = StrategySettings()
) -> int:
    """Curate a round of synthesized pairs; how many were accepted."""
    pool = [
        PoolItem(
            item_id=f"p{at}",
            question=f"Pool question {at}: {at} + 1?",
            solution="s",
            answer="1",
            skills=("addition",),
        )
        for at in range(50)
    ]
    target = SkillTarget(skill="addition", weight=1.0, examples=pairs, strategy="synthesize")
    skill_map = SkillMap((item.item_id, item.skills) for item in pool)
    data = plan_targets([target], skill_map, seed, settings=settings)
    plan = CurationPlan(seed=seed, data=data, strategy=settings, replay=ReplaySettings(share=0.0))
    context = CurateContext(teacher.for_round("r"), pool, [])
    made = run_curation(build_curate(), "r", plan, context, max_concurrency=teacher.client.settings.threads)
    return sum(made.report.accepted.values())


def throughput(base_url: str, folder: Path, at_once: int, seconds: float) -> float:
    """Calls per second with `at_once` requests on the wire, all cold, over about `seconds` (connections
    already open)."""
    with connect(base_url, folder, at_once) as teacher:
        return _rate(
            at_once, teacher.client.settings.threads, seconds, lambda text: teacher.label(text, SKILLS)
        )


def bare_throughput(base_url: str, at_once: int, seconds: float) -> float:
    """Calls per second of `at_once` threads that only post the same request with httpx and read the reply."""
    ask = label("What is 1 + 1?", SKILLS)
    schema = {
        "type": "json_schema",
        "json_schema": {"name": ask.purpose, "strict": True, "schema": ask.schema},
    }
    messages = [{"role": role, "content": text} for role, text in ask.messages]
    body = {"model": "teacher", "messages": messages, "max_tokens": 64, "response_format": schema}
    with httpx.Client() as client:
        return _rate(
            at_once, at_once, seconds, lambda _: client.post(f"{base_url}/chat/completions", json=body).json()
        )


def _rate(at_once: int, callers: int, seconds: float, call: Callable[[str], object]) -> float:
    """Calls per second of `callers` threads, each call with another text, after a warm-up."""
    with ThreadPoolExecutor(callers) as threads:
        for wave, count in (
            ("warm-up", at_once * 3),
            ("run", max(at_once, int(at_once * seconds / LATENCY_S))),
        ):
            begin = time.perf_counter()
            list(threads.map(call, [f"{wave} {at_once} {at}" for at in range(count)]))
            rate = count / (time.perf_counter() - begin)
    return rate


def server_calls(base_url: str) -> int:
    """Requests the server has had."""
    return sum(httpx.get(f"{base_url.removesuffix('/v1')}/calls").json().values())


def measure(base_url: str, folder: Path, work: Callable[[ChatTeacher], int]) -> tuple[int, MeterReading]:
    """What a piece of work accomplished, and what it cost by the meter, which must agree with the server."""
    before = server_calls(base_url)
    with connect(base_url, folder) as teacher:
        done = work(teacher)
        reading = teacher.client.meter.reading()
    if server_calls(base_url) - before != reading.usage.calls:
        raise RuntimeError(
            f"the meter says {reading.usage.calls} calls, the server {server_calls(base_url) - before}"
        )
    return done, reading


def tokens(usage: Usage) -> int:
    """All tokens of a usage."""
    return usage.prompt_tokens + usage.completion_tokens


def run(
    base_url: str, folder: Path, size: int, seconds: float, levels: list[int], console: Console
) -> dict[str, float]:
    """All measurements as one flat record."""
    works: dict[str, Callable[[ChatTeacher], int]] = {
        "diagnosis": lambda teacher: diagnoses(teacher, size),
        "accepted item": lambda teacher: synthesis(teacher, size, seed=1),
        "accepted item, all pairs": lambda teacher: synthesis(teacher, size, seed=2, settings=ALL_PAIRS),
    }
    record: dict[str, float] = {"cached_calls": 0}
    table = Table(
        "per", "calls", "paper's calls", "tokens", "US$ (2/8 per M)", "replay: calls", "replay: cached"
    )
    for name, work in works.items():
        done, cold = measure(base_url, folder, work)
        again, warm = measure(base_url, folder, work)
        if again != done:
            raise RuntimeError(f"{name}: {done} at first, {again} in the replay")
        key = name.replace(",", "").replace(" ", "_")
        record |= {
            f"calls_per_{key}": cold.usage.calls / done,
            f"tokens_per_{key}": tokens(cold.usage) / done,
        }
        record["cached_calls"] += warm.cached_calls
        cells = (
            cold.usage.calls / done,
            PAPER_CALLS_PER_DIAGNOSIS if name == "diagnosis" else PAPER_CALLS_PER_PAIR,
            tokens(cold.usage) / done,
            cold.usage.usd / done,
        )
        table.add_row(name, *(f"{cell:.4g}" for cell in cells), str(warm.usage.calls), str(warm.cached_calls))
    console.print(table)
    return record | {"throughput_ratio": scaling(base_url, folder, seconds, levels, console)}


def scaling(base_url: str, folder: Path, seconds: float, levels: list[int], console: Console) -> float:
    """Throughput over the ideal at `CONCURRENCY`, the median of `TURNS` runs; prints the others too."""
    table = Table(
        "on the wire",
        "calls/s",
        "ideal calls/s",
        "ratio",
        "bare httpx",
        title=f"throughput at {LATENCY_S * 1000:g} ms latency",
    )
    ratios: dict[int, float] = {}
    for count in levels:
        ideal = count / LATENCY_S
        rate = median(
            throughput(base_url, folder / f"{count}-{turn}", count, seconds) for turn in range(TURNS)
        )
        bare = median(bare_throughput(base_url, count, seconds) for _ in range(TURNS))
        ratios[count] = rate / ideal
        table.add_row(str(count), f"{rate:.1f}", f"{ideal:.0f}", f"{rate / ideal:.3f}", f"{bare / ideal:.3f}")
    console.print(table)
    return ratios[CONCURRENCY]


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write the figures here")] = None,
    size: Annotated[int, typer.Option(help="diagnoses, and pairs asked for")] = 60,
    seconds: Annotated[float, typer.Option(help="how long each concurrency is measured")] = 3.0,
) -> None:
    """Measure and print."""
    console = Console()
    gc.freeze()  # the collector has enough to do with the libraries loaded
    temporary: AbstractContextManager[str] = TemporaryDirectory()
    with (
        temporary as folder,
        teacher_process(
            "--port", "0", "--brain", "sensible", "--latency-ms", f"{LATENCY_S * 1000:g}"
        ) as base_url,
    ):
        record = run(base_url, Path(folder), size, seconds, sorted({1, CONCURRENCY, 8, 16}), console)
    keys = [key for key in record if key.startswith(("calls_per", "tokens_per"))]
    figures = {key: round(record[key], 4) for key in (*keys, "cached_calls", "throughput_ratio")}
    console.print(figures, f"throughput_ratio with {CONCURRENCY} requests on the wire")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
