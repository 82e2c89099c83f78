"""Commands about the event log: topics, backfill, dead letters. Everything heavy is imported inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loop.ingest import Ingested
    from streams.dead_letters import DeadLetter
    from streams.log import EventLog

topics_app = typer.Typer(
    no_args_is_help=True, help="The event log's topics: create the missing ones, or list them all."
)
dlq_app = typer.Typer(
    no_args_is_help=True,
    help="Dead letters, records that could not be processed: list them, show one, send them again.",
)

DirOption = Annotated[Path, typer.Option("--dir", envvar="SKILLLOOP_DIR", help="The run's directory.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="SKILLLOOP_CONFIG", help="TOML configuration. Default: the demo's."),
]
TopicOption = Annotated[
    str, typer.Option("--topic", help="The topic that the dead letters come from, without `.dlq`.")
]
DEFAULT_DIR = Path("runs/demo")
DEFAULT_TOPIC = "student-outputs"


def _open(directory: Path, config: Path | None) -> EventLog:
    """The configured log, without a member name: nothing here joins a consumer group."""
    from loop.backends import open_log, prepare
    from loop.cli.main import load_config

    return open_log(load_config(config), prepare(directory), instance=None)


def _find_log(directory: Path, config: Path | None) -> EventLog:
    """The configured log, for looking only."""
    from loop.backends import find_log
    from loop.cli.main import load_config

    return find_log(load_config(config), directory)


@topics_app.command("create")
def topics_create(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    replication: Annotated[
        int, typer.Option(min=1, help="Replicas of each partition (Kafka): 3 in production.")
    ] = 1,
) -> None:
    """Create the missing topics, with their partitions and retention. Existing ones are left alone."""
    from streams.local_log import LocalLog
    from streams.topics import TOPICS

    with _open(directory, config) as log:
        create = getattr(log, "create_topics", None)
        made = create(TOPICS, replication) if create else []
        where = (
            "made when the log is opened"
            if isinstance(log, LocalLog)
            else f"created: {', '.join(made) or 'none, all exist'}"
        )
    typer.echo(f"{len(TOPICS)} topics, {where}")


@topics_app.command("list")
def topics_list(directory: DirOption = DEFAULT_DIR, config: ConfigOption = None) -> None:
    """List all topics with their partitions, retention and number of records so far."""
    from streams.log import TopicMissing
    from streams.topics import DAY_MS, TOPICS

    with _find_log(directory, config) as log:
        for spec in TOPICS:
            try:
                ends = log.end_offsets(spec.name)
                state = f"{len(ends)} partitions, {sum(ends.values())} records so far"
            except TopicMissing:
                state = "missing: run `skillloop topics create`"
            kept = (
                "kept indefinitely" if spec.retention_ms < 0 else f"kept {spec.retention_ms // DAY_MS} days"
            )
            typer.echo(f"{spec.name:24} {state}, {kept}")


@topics_app.command("adopt")
def topics_adopt(
    topic: Annotated[str, typer.Argument(help="The topic that was recreated or has deleted unread records.")],
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
) -> None:
    """Accept that records are gone: read on from what the topic has now, and count the gap."""
    from loop.backends import find_store
    from loop.cli.main import load_config
    from streams.continuity import Continuity
    from streams.topics import MONITOR_GROUP

    with _find_log(directory, config) as log:
        store = find_store(load_config(config), directory)
        gaps = Continuity(log, store, MONITOR_GROUP).adopt(topic)
        store.close()
    for gap in gaps:
        where = f"{gap.partition.topic}[{gap.partition.number}]"
        typer.echo(f"{where}: was at {gap.had}, reads on from {gap.reads_on}")
    typer.echo(f"{topic} is taken as it is; {len(gaps)} of its partitions have a gap")


def ingest(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: StudentOutput events, or OpenAI chat completions ({request, response})."
        ),
    ],
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    version: Annotated[
        int, typer.Option(min=1, help="The student's version, for lines that do not give one.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show which lines would become whose answers.")
    ] = False,
) -> None:
    """Put answers from a file into the event log.

    Interrupted and started again, it resumes; a second run of the same file has no effect. Which model is
    which version of the student says the section `ingest.models`; other models' lines are left out. The exit
    code is 2 when there are bad lines, or nothing but left-out ones.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from loop.backends import prepare
    from loop.cli.main import load_config
    from loop.ingest import Defaults, check_readable, ingest, preview

    loaded = load_config(config)
    defaults = Defaults(loaded.student.name, version, loaded.ingest.models)
    if dry_run:
        _show_ingested(preview(file, defaults), "would be written")
        return
    check_readable(file)  # before the log is made
    name = TextColumn("{task.description}", markup=False)  # a file may be called anything
    with (
        _open(directory, config) as log,
        Progress(name, BarColumn(), DownloadColumn(), TimeRemainingColumn()) as bar,
    ):
        task = bar.add_task(file.name, total=None)
        done = ingest(
            file,
            log,
            prepare(directory),
            defaults,
            lambda at, total: bar.update(task, completed=at, total=total),
        )
    _show_ingested(done, "written")


def _show_ingested(done: Ingested, written: str) -> None:
    """The table of models, the bad lines, the sum. Exits with 2 when there are bad lines, or none was
    taken."""
    rows = [
        (model, f"{student!r} version {version}", f"{count} answers")
        for (model, student, version), count in sorted(done.taken.items())
    ]
    rows += [(model, "left out", f"{count} lines") for model, count in done.left_out.most_common()]
    for model, becomes, count in rows:
        typer.echo(f"{_printable(model):32} {becomes:28} {count}")
    for reason in done.reasons:
        typer.echo(_printable(reason), err=True)
    if done.unfinished:
        typer.echo("the last line has no end yet: it waits for the next run", err=True)
    began = f" after line {done.resumed_at}" if done.resumed_at else ""
    left_out = sum(done.left_out.values())
    typer.echo(
        f"{done.lines} lines{began}: {done.events} answers {written} to the log, {done.bad} bad lines,"
        f" {left_out} left out"
    )
    if left_out and not done.events:
        typer.echo("no line is of our student: [ingest.models] says which models are", err=True)
    if done.bad or (left_out and not done.events):
        raise typer.Exit(2)


def _letters(log: EventLog, topic: str) -> Iterator[DeadLetter]:
    from streams.dead_letters import latest

    return iter(latest(log, topic).values())


@dlq_app.command("list")
def dlq_list(
    directory: DirOption = DEFAULT_DIR, config: ConfigOption = None, topic: TopicOption = DEFAULT_TOPIC
) -> None:
    """List dead letters: id (topic/partition/offset of the original, @ and which topic of its name), size,
    reason and message."""
    with _find_log(directory, config) as log:
        count = 0
        for letter in _letters(log, topic):
            count += 1
            typer.echo(
                f"{letter.letter_id}  {len(letter.position.value)} bytes  {letter.reason}: "
                f"{_printable(letter.message[:160])}"
            )
    typer.echo(f"{count} dead letters of {topic}")


def _find(log: EventLog, topic: str, letter_id: str) -> DeadLetter:
    for letter in _letters(log, topic):
        if letter.letter_id == letter_id:
            return letter
    raise typer.BadParameter(f"no dead letter {letter_id} of {topic}; `skillloop dlq list` shows them")


@dlq_app.command("show")
def dlq_show(
    letter_id: str,
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    topic: TopicOption = DEFAULT_TOPIC,
) -> None:
    """Show one dead letter: reason, number of attempts, headers, key and value."""
    with _find_log(directory, config) as log:
        letter = _find(log, topic, letter_id)
    record = letter.position
    typer.echo(
        f"{letter.letter_id}: {letter.reason} after {letter.attempts} attempts: {_printable(letter.message)}"
    )
    typer.echo(f"key: {record.key!r}")
    for name, value in record.headers:
        typer.echo(f"{_printable(name)}: {_printable(value.decode(errors='replace'))}")
    text = record.value[:4000].decode(errors="replace")
    typer.echo("\n".join(_printable(line) for line in text.split("\n")))


@dlq_app.command("redrive")
def dlq_redrive(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    topic: TopicOption = DEFAULT_TOPIC,
    letter_id: Annotated[
        str | None, typer.Option("--id", help="Only this dead letter. Default: all of them.")
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Only dead letters with this reason, for example `failed`.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also letters that were sent again before.")] = False,
) -> None:
    """Send dead letters to their topic again, once the cause has been removed: each once, unless forced.

    An event that has been counted in the meantime is not counted again.
    """
    from loop.backends import find_store
    from loop.cli.main import load_config
    from streams.dead_letters import redrive
    from streams.state.outbox import OutboxRelay
    from streams.state.redrives import send_again

    with _find_log(directory, config) as log:
        letters = [_find(log, topic, letter_id)] if letter_id else list(_letters(log, topic))
        chosen = [letter for letter in letters if reason in (None, letter.reason)]
        whole = {letter.letter_id: redrive(letter) for letter in chosen if not letter.cut_from}
        store = find_store(load_config(config), directory)
        sent = send_again(store, whole, force)
        OutboxRelay(store, log).step()
        store.close()
    typer.echo(
        f"{sent} dead letters sent again to {topic}, {len(whole) - sent} were sent before (--force sends them"
        f" again), {len(chosen) - len(whole)} truncated ones left"
    )


def _printable(text: str) -> str:
    """Text from outside as a part of one line, without what a terminal would obey."""
    return "".join(char if char.isprintable() else "�" for char in text)
