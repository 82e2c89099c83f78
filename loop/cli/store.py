"""Commands about the state store. Everything heavy is imported inside."""

from __future__ import annotations

from typing import Annotated

import typer

from loop.cli.log import DEFAULT_DIR, ConfigOption, DirOption

store_app = typer.Typer(no_args_is_help=True, help="The state store: keep it from growing indefinitely.")


@store_app.command("compact")
def store_compact(
    directory: DirOption = DEFAULT_DIR,
    config: ConfigOption = None,
    keep_days: Annotated[
        int | None, typer.Option(min=30, help="Days to keep. Default: the setting store.keep_days.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Forget which events from before a window were counted, and old buckets of versions no longer served.

    From then on an event from before the window becomes a dead letter, `expired`: it cannot count twice.
    """
    from datetime import UTC, date, datetime

    from loop.backends import find_store
    from loop.cli.main import load_config
    from streams.state.compaction import compact

    loaded = load_config(config)
    today = datetime.now(UTC).toordinal()
    store = find_store(loaded, directory)
    try:
        window = loaded.store.keep_days if keep_days is None else keep_days
        result = compact(store, today - window, loaded.monitor.bucket_s, dry_run)
    finally:
        store.close()
    verb = "would forget" if dry_run else "forgot"
    typer.echo(
        f"{verb} {result.events} event ids and {result.buckets} buckets from before "
        f"{date.fromordinal(result.from_day)}; events from before then "
        f"{'would be' if dry_run else 'are'} refused from now on"
    )
