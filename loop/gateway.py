"""The gateway of a run: its settings, the run's directory and the configured event log."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console

from loop.backends import open_log, prepare
from loop.config import Config
from serving.gateway.serve import GatewayServer, closing_s
from serving.settings import GatewaySettings


def open_gateway(config: Config, root: Path) -> GatewayServer:
    """The gateway, listening but not yet serving. Route table and spool are in the run's directory."""
    settings = config.gateway or GatewaySettings()
    return GatewayServer(settings, root, partial(open_log, config, root, None))


def run_gateway(config: Config, root: Path, console: Console) -> None:
    """Serve users until SIGTERM or SIGINT."""
    server = open_gateway(config, prepare(root))
    server.run(lambda: console.print(_told(config, server), highlight=False))


def drain_s(config: Config) -> float:
    """How long `gateway_beside` may take to close: its users' requests and its spool, in seconds."""
    settings = _beside(config)
    return closing_s(settings) if settings else 0.0


def _beside(config: Config) -> GatewaySettings | None:
    settings = config.gateway
    return settings if settings and settings.capture == "gateway" else None


def gateway_beside(config: Config, root: Path, console: Console) -> AbstractContextManager[object]:
    """The gateway in a thread where `[gateway]` is configured and captures; else nothing."""
    if _beside(config) is None:
        return nullcontext()
    server = open_gateway(config, root)
    console.print(_told(config, server), highlight=False)
    return server


def _told(config: Config, server: GatewayServer) -> str:
    return f"model {config.student.name!r} is served at {server.url}/v1; stop with Ctrl-C"
