"""The back ends that every command needs, without a model library in sight: directory, state store, event
log; the last two by `kind`. The other doors are in loop/doors.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from tempfile import TemporaryFile

from agent.table import Table
from loop.config import Config, ConfigError, LogSection, StoreSection
from loop.loading import open_kind
from streams.local_log import LocalLog
from streams.log import EventLog
from streams.state.store import NothingStored, StateStore


class UnusableDirectory(ConfigError):
    """A directory cannot be read or written."""


class NothingThere(ConfigError):
    """There is no run where a command was told to look, or to change one."""

    def __init__(self, what: str, root: Path, why: str = "") -> None:
        because = f" ({why})" if why else ""
        super().__init__(
            f"there is no {what} in {root}{because}; name a run's folder with --dir"
            f" (`skillloop up --dir {quote(str(root))}` begins one there)"
        )


def prepare(root: Path) -> Path:
    """Make the run's directory. Raises `UnusableDirectory`."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=root):  # a name of its own: workers that start together share the directory
            pass
    except OSError as exc:
        raise UnusableDirectory(f"cannot write to {root}: {exc}; choose another folder with --dir") from exc
    return root.resolve()


def _local_log(section: LogSection, root: Path, instance: str | None) -> EventLog:
    return LocalLog(root / "log.db", instance=instance)


def _kafka_log(section: LogSection, root: Path, instance: str | None) -> EventLog:
    from streams.kafka.log import KafkaLog

    named = {} if instance is None else {"instance": instance}
    return KafkaLog(section.kafka.model_copy(update=named))


def _sql_store(section: StoreSection, root: Path) -> StateStore:
    return StateStore(_address(section, root))


def _address(section: StoreSection, root: Path) -> str:
    return section.url.get_secret_value() or f"sqlite:///{root / 'state.db'}"


LOGS: Table[Callable[[LogSection, Path, str | None], EventLog]] = Table(
    "event log", {"local": _local_log, "kafka": _kafka_log}
)
STORES: Table[Callable[[StoreSection, Path], StateStore]] = Table("state store", {"sql": _sql_store})


def open_log(config: Config, root: Path, instance: str | None = "embedded") -> EventLog:
    """The configured event log. `instance` names the group member."""
    return open_kind(LOGS, config.log, config.log, root, instance)


def open_store(config: Config, root: Path) -> StateStore:
    """The configured state store."""
    return open_kind(STORES, config.store, config.store, root)


def _is_file(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except OSError as exc:
        raise UnusableDirectory(f"cannot look into {root}: {exc}; name a run's folder with --dir") from exc


def find_log(config: Config, root: Path) -> EventLog:
    """The configured event log for a command that only looks: makes nothing. Raises `NothingThere`."""
    if config.log.kind == "local" and not _is_file(root, "log.db"):
        raise NothingThere("event log", root)
    return open_log(config, root, None)


def find_store(config: Config, root: Path) -> StateStore:
    """The configured state store for a command that only looks: makes nothing. Raises `NothingThere`."""
    if config.store.kind != "sql":
        return open_store(config, root)
    _is_file(root, "state.db")
    try:
        return StateStore(_address(config.store, root), create=False)
    except NothingStored as exc:
        raise NothingThere("run", root, str(exc)) from exc


def close(opened: object) -> None:
    """Close what can be closed."""
    end = getattr(opened, "close", None)
    if callable(end):
        end()
