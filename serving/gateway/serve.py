"""The gateway as a whole: application, replicas, spool and shipper, opened and closed in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from serving.gateway.app import Gateway
from serving.gateway.capture import Capture
from serving.gateway.errors import Refusal
from serving.gateway.exchange import Desk
from serving.gateway.forward import Upstream
from serving.gateway.ship import Shipper
from serving.gateway.spool import Spool
from serving.http import HttpServer, run
from serving.routes import ACTIVITY, Activity, RouteFile, report, sweep
from serving.settings import GatewaySettings
from streams.log import EventLog

logger = logging.getLogger(__name__)

SPOOL = "spool"
BEAT_S = 0.5
SWEEP_BEATS = 600
GRACE_S = 30.0
MOST_FILES = 65_536
SWITCH_S = 0.0005
"""The shipper gives way to users after so long. Python's 5 ms are waited for at each call of a socket."""


def closing_s(settings: GatewaySettings) -> float:
    """How long a gateway may take to close, in seconds: the requests under way, then its spool."""
    return GRACE_S + settings.captured.drain_s


class GatewayServer:
    """Serves users from `folder`, in which the deployer writes the route table and the spool lies.

    `run` serves until SIGTERM or SIGINT; as a context manager it serves in a thread. In the end no new
    request is taken, those under way end, and the spool is shipped.
    """

    def __init__(self, settings: GatewaySettings, folder: Path, open_log: Callable[[], EventLog]) -> None:
        self._settings, self._folder = settings, folder
        self.name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._shipper: Shipper | None = None
        self.capture: Capture | None = None
        captured = settings.captured
        if settings.capture == "gateway":
            spool = Spool(captured.spool or folder / SPOOL, captured.spool_mib * 2**20, captured.queue)
            self.capture = Capture(captured, spool)
            self._shipper = Shipper(spool, open_log, captured.feedback_wait_s)
        self.desk = Desk(Upstream(settings), self.capture, settings.client_timeout_s, settings.slow_s)
        self.app = Gateway(settings, RouteFile(folder), self.desk)
        self._http = HttpServer(self.app, settings.host, settings.port, GRACE_S)
        self._thread: threading.Thread | None = None
        self._last: Activity | None = None

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        return self._http.url

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT. `ready` is called when these end it in the right order."""

        def stop(signum: int, frame: FrameType | None) -> None:
            self._http.ask_to_stop()

        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, stop)  # the server hands them on when it has ended, which must not end us
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # the usual 1,024 are few for connections
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MOST_FILES)), hard))
        sys.setswitchinterval(SWITCH_S)
        gc.collect()
        gc.freeze()  # else a full collection walks all modules: 40 to 50 ms in which nobody is answered
        ready()
        self._work()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._work, name="gateway", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.ask_to_stop()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        if self._shipper is not None:
            self._shipper.start()
        try:
            run(self._serve())
        finally:
            if self._shipper is not None:
                self._shipper.stop(self._settings.captured.drain_s)
            (self._folder / ACTIVITY / f"{self.name}.json").unlink(missing_ok=True)

    async def _serve(self) -> None:
        beat = asyncio.create_task(self._beat())
        try:
            await self._http.serve()
        finally:
            beat.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beat
            await self.desk.upstream.close()

    async def _beat(self) -> None:
        """Say every half second what goes on, for the deployer; remove now and then what others left."""
        for beat in itertools.count():
            try:
                await asyncio.to_thread(report, self._folder, self._activity())
                if beat % SWEEP_BEATS == 0:
                    await asyncio.to_thread(sweep, self._folder, self.name)
            except OSError as exc:
                logger.warning("the gateway's activity cannot be written: %s", exc)
            await asyncio.sleep(BEAT_S)

    def _activity(self) -> Activity:
        with contextlib.suppress(Refusal):
            self.app.look()
        return Activity(
            gateway=self.name,
            at=time.time(),
            revision=self.app.revision,
            in_flight={model: count for model, count in self.desk.in_flight.items() if count},
            requests=dict(self.desk.requests),
            failures=dict(self.desk.failures),
            slow=dict(self.desk.slow),
            captured=self._captured(),
        )

    def _captured(self) -> dict[str, int]:
        if self.capture is None or self._shipper is None:
            return {}
        return dict(self.capture.counts) | self._shipper.counts()
