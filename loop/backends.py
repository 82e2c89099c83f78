"""The back ends that every command needs, without a model library in sight: directory, state store, event
log."""

from __future__ import annotations

from pathlib import Path

from loop.config import Config, ConfigError
from streams.local_log import LocalLog
from streams.log import EventLog
from streams.state.store import StateStore


class UnusableDirectory(ConfigError):
    """The run's directory cannot be written."""


def prepare(root: Path) -> Path:
    """Make the run's directory. Raises `UnusableDirectory`."""
    probe = root / ".writable"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as exc:
        raise UnusableDirectory(f"cannot write to {root}: {exc}; choose another folder with --dir") from exc
    return root.resolve()


def open_store(config: Config, root: Path) -> StateStore:
    """The state store: the configured database, or a SQLite file in the run's directory."""
    return StateStore(config.store.url.get_secret_value() or f"sqlite:///{root / 'state.db'}")


def open_log(config: Config, root: Path, instance: str | None = "embedded") -> EventLog:
    """The event log: the configured cluster, or a SQLite file in the run's directory. `instance` names the
    group member."""
    if config.log.kind == "local":
        return LocalLog(root / "log.db", instance=instance)
    try:
        from streams.kafka.log import KafkaLog
    except ImportError as exc:
        raise ConfigError(
            "log.kind is 'kafka', but kafka-python is not installed; pip install 'skillloop[kafka]'"
        ) from exc
    return KafkaLog(
        config.log.kafka if instance is None else config.log.kafka.model_copy(update={"instance": instance})
    )
