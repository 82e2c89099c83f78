"""`skillloop demo`: users ask, the traffic drifts, the loop finds and teaches what is missing, and the
figures say how well."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loop.backends import open_log, prepare
from loop.config import Config, ConfigError
from loop.demo.display import Display
from loop.demo.report import Report, make_report
from loop.demo.stream import START, DemoStream
from loop.demo.timeline import draw_timeline
from loop.embedded import Embedded
from loop.wiring import open_services, set_up_student
from loop.workers.services import Ports
from streams.clock import HandClock
from streams.files import write_json

STAMP = "demo.json"
OWNER = "demo"
"""A directory's demo is one process: started again, it takes up its round without waiting for the lease."""


def run_demo(config: Config, root: Path, json_file: Path | None, console: Console) -> Report:
    """Run the demo in `root` to its end; a run that was killed resumes where it was.

    Raises `ConfigError` when `root` holds a run with other settings.
    """
    root = prepare(root)
    spent = _claim(root, config)
    started = time.monotonic()
    clock = HandClock(START)
    log = open_log(config, root)
    with Display(console, config.demo.questions) as display:
        services = open_services(config, root, Ports(clock=clock, listen=display, owner=OWNER))
        set_up_student(services)
        stream = DemoStream(services, log, clock)
        stream.wind()
        embedded = Embedded(services, log)
        display.answered(stream.position, stream.phase())
        embedded.settle()
        while stream.step():
            display.answered(stream.position, stream.phase())
            embedded.settle()
            _note_seconds(root, config, spent + time.monotonic() - started)
    console.print("the stream has ended; examining the first and the last student", style="dim")
    report = make_report(services, log)
    report.figures["seconds"] = round(spent + time.monotonic() - started, 1)
    picture = root / "timeline.png"
    draw_timeline(services, log, report.figures["skills_truly_missing"], picture)
    if json_file is not None:
        json_file.write_text(json.dumps(report.figures, indent=1) + "\n")
    _print(report, console, picture, root)
    log.close()
    return report


def _claim(root: Path, config: Config) -> float:
    """Tie the directory to these settings; the seconds that earlier attempts took."""
    stamp, settings = root / STAMP, config.model_dump(mode="json")
    if stamp.is_file():
        kept = json.loads(stamp.read_text())
        if kept["settings"] != settings:
            both = kept["settings"] | settings
            changed = [key for key in both if kept["settings"].get(key) != settings.get(key)]
            raise ConfigError(
                f"{root} holds a run with other settings ({', '.join(changed)} differ), chosen otherwise "
                "or those of another version of skillloop; use another --dir, or remove it to start afresh "
                "(`skillloop up` finishes a round that is under way)"
            )
        return float(kept["seconds"])
    _note_seconds(root, config, 0.0)
    return 0.0


def _note_seconds(root: Path, config: Config, seconds: float) -> None:
    write_json(root / STAMP, {"settings": config.model_dump(mode="json"), "seconds": seconds})


def _print(report: Report, console: Console, picture: Path, root: Path) -> None:
    figures = report.figures
    table = Table(
        title="Accuracy per skill on the exam (held out from training and from the gate), %",
        title_justify="left",
    )
    for name in ("skill", "", "before", "after", "change"):
        table.add_column(name, justify="left" if name in ("skill", "") else "right")
    for skill, group, before, after in report.rows:
        table.add_row(
            skill, group, f"{100 * before:.1f}", f"{100 * after:.1f}", f"{100 * (after - before):+.1f}"
        )
    table.add_section()
    for name in ("shifted", "missing", "original", "mastered", "ood"):
        before, after = figures[f"{name}_accuracy_before"], figures[f"{name}_accuracy_after"]
        if before is None:
            continue
        table.add_row(
            f"all {name}", "", f"{100 * before:.1f}", f"{100 * after:.1f}", f"{100 * (after - before):+.1f}"
        )
    console.print(table)
    for row in figures["rounds"]:
        outcome = "promoted" if row["promoted"] else "not promoted"
        console.print(
            f"round {row['id']}: {row['kind']} {', '.join(row['skills'])}; "
            f"{row['examples']} examples; {outcome}",
            highlight=False,
        )
    console.print(
        f"truly missing: {', '.join(figures['skills_truly_missing'])}; "
        f"found: {', '.join(figures['skills_found'])}; "
        f"precision {figures['precision']:.2f}, recall {figures['recall']:.2f}",
        highlight=False,
    )
    console.print(
        f"served on drifted traffic: {figures['served_accuracy_first']:.1%} at first, "
        f"{figures['served_accuracy_last']:.1%} at the end; "
        f"worst loss of a skill {100 * figures['worst_skill_loss']:.1f} points; "
        f"champion version {figures['champion_version']}; {figures['seconds']:.0f} s; "
        f"teacher {figures['teacher_calls']} calls, {figures['teacher_tokens']} tokens, "
        f"{figures['teacher_usd']:.2f} USD; {figures['train_tokens']} tokens trained",
        highlight=False,
    )
    console.print(f"timeline: {picture}", highlight=False, soft_wrap=True)
    console.print(
        f"MLflow:   {Path(sys.executable).with_name('mlflow')} ui"
        f" --backend-store-uri sqlite:///{root / 'mlflow.db'}",
        highlight=False,
        soft_wrap=True,
    )
