"""The shipper: a thread that takes captured events from the spool to the event log.

The order: read lines, append their events to the log, save the position. The log may be away for as long as
it likes. Events reach the log at least once and count once, by their ids. Spools of processes that are gone
are emptied first.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path

from pydantic import ValidationError

from serving.gateway.spool import (
    Mark,
    Spool,
    adopt,
    position,
    read_lines,
    save_position,
)
from streams.codec import encode
from streams.errors import StreamsError
from streams.events import Event, FeedbackGiven, StudentOutput
from streams.log import EventLog, RecordRefused

logger = logging.getLogger(__name__)

PAGE = 500
READ_AHEAD = 20_000
LOOK_S = 0.1
MAX_PAUSE_S = 5.0
REFUSED = "refused.jsonl"
_KINDS: dict[bytes, type[Event]] = {kind.TYPE.encode(): kind for kind in (StudentOutput, FeedbackGiven)}


@dataclass
class _Waiting:
    event: Event | None  # None: a line that says nothing more
    data: bytes
    after: Mark


class Shipping:
    """One spool on its way to the log. `wait_s` is how long an answer waits for its feedback."""

    def __init__(self, folder: Path, wait_s: float) -> None:
        self.folder, self._wait_s = folder, wait_s
        self._read = position(folder)
        self._waiting: list[_Waiting] = []
        self._answers: dict[str, _Waiting] = {}
        self.shipped = self.damaged = self.refused = 0

    def step(self, log: EventLog, hurry: bool = False) -> int:
        """Ship what is due, a page at most; returns the bytes of segments that were removed. `hurry` waits
        for no feedback. Raises what the log raises; then nothing is lost and the page is due again."""
        self._take_in()
        horizon = time.time() - (0.0 if hurry else self._wait_s)
        page = list(takewhile(lambda item: _due(item, horizon), islice(self._waiting, PAGE)))
        if not page:
            return 0
        self._append(log, page)
        del self._waiting[: len(page)]
        for item in page:
            if item.event is not None:
                self._answers.pop(item.event.event_id, None)
        return save_position(self.folder, page[-1].after)

    @property
    def behind(self) -> int:
        """Events that were read and are not in the log."""
        return len(self._waiting)

    @property
    def drained(self) -> bool:
        """Whether all that is on the disk is in the log, whatever the position's file says."""
        return not self._waiting and next(read_lines(self.folder, self._read), None) is None

    def _take_in(self) -> None:
        room = max(0, READ_AHEAD - len(self._waiting))
        for line in islice(read_lines(self.folder, self._read), room):
            self._read = line.after
            event = _event(line.data)
            if event is None and line.data:
                self.damaged += 1
                logger.warning("the spool %s has a damaged line", self.folder)
            item = _Waiting(event, line.data, line.after)
            if isinstance(event, StudentOutput):
                self._answers[event.event_id] = item
            elif isinstance(event, FeedbackGiven) and self._merge(event):
                item.event = None
            self._waiting.append(item)

    def _merge(self, given: FeedbackGiven) -> bool:
        """Let an answer that still waits have its feedback."""
        answer = self._answers.get(given.causation_id or "")
        if answer is None or answer.event is None:
            return False
        answer.event = answer.event.model_copy(update={"feedback": given.feedback})
        return True

    def _append(self, log: EventLog, page: Sequence[_Waiting]) -> None:
        events = [item.event for item in page if item.event is not None]
        if not events:
            return
        try:
            log.append([encode(event) for event in events])
        except (RecordRefused, ValueError):
            self._one_by_one(log, page)
        else:
            self.shipped += len(events)

    def ship(self, log: EventLog, lines: Sequence[bytes]) -> None:
        """Append lines that are on no disk."""
        self._append(log, [_Waiting(_event(line), line, Mark()) for line in lines])

    def _one_by_one(self, log: EventLog, page: Sequence[_Waiting]) -> None:
        """Find the event that the log never takes; it is kept in a file of its own."""
        for item in page:
            if item.event is None:
                continue
            try:
                log.append([encode(item.event)])
                self.shipped += 1
            except (RecordRefused, ValueError) as exc:
                self.refused += 1
                logger.error("the log refuses event %s: %s", item.event.event_id, exc)
                with (self.folder.parent / REFUSED).open("ab") as file:
                    file.write(item.data + b"\n")


def _due(item: _Waiting, horizon: float) -> bool:
    return item.event is None or item.event.occurred_at.timestamp() <= horizon


def _event(data: bytes) -> Event | None:
    kind, _, body = data.partition(b" ")
    try:
        return _KINDS[kind].model_validate_json(body)
    except (KeyError, ValidationError):
        return None


class Shipper:
    """Ships a process's own spool, and those it adopts, in a thread. `open_log` is called in that thread, and
    again after a failure."""

    def __init__(self, spool: Spool, open_log: Callable[[], EventLog], wait_s: float) -> None:
        self._spool, self._open_log = spool, open_log
        self._own = Shipping(spool.folder, wait_s)
        self._adopted: list[tuple[Shipping, int]] = []
        self._log: EventLog | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-shipper", daemon=True)
        self._pause_s = LOOK_S

    def start(self) -> None:
        """Begin."""
        for folder, lock in adopt(self._spool.folder.parent):
            self._adopted.append((Shipping(folder, 0.0), lock))
        self._thread.start()

    def stop(self, drain_s: float) -> None:
        """Ship what there is, for `drain_s` seconds at most; the rest stays in the spool for the next
        gateway that starts, but for what its disk does not take."""
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + drain_s
        while self._step(hurry=True) or not self._drained():
            if time.monotonic() > deadline:
                logger.warning(
                    "the event log did not take everything; the rest stays in %s", self._spool.folder
                )
                break
            if self._log is None:
                time.sleep(min(LOOK_S, drain_s))
        if not self._spool.flush():
            logger.error("neither event log nor disk took them: %d events are lost", self._spool.give_up())
        for _, lock in self._adopted:
            os.close(lock)
        self._close_log()
        self._spool.close()

    def counts(self) -> dict[str, int]:
        """Events of this process in the log, waiting (read or in memory), damaged, refused by the log, and
        lost for want of room; and how often its spool was removed."""
        own, spool = self._own, self._spool
        return {
            "in the log": own.shipped,
            "waiting": own.behind + spool.in_memory,
            "damaged": own.damaged,
            "refused": own.refused,
            "lost": spool.lost,
            "spool removed": spool.removed,
        }

    def _drained(self) -> bool:
        return self._spool.flush() and self._own.drained

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            self._spool.flush()
            while self._step() and not self._stop.is_set():
                pass

    def _step(self, hurry: bool = False) -> bool:
        """Whether something was shipped. A failure of the log is waited for, ever longer."""
        try:
            if self._log is None:
                self._log = self._open_log()
            before = self._own.shipped
            self._spool.shrink(self._own.step(self._log, hurry))
            if self._spool.in_memory and self._own.drained:
                self._spool.from_memory(PAGE, partial(self._own.ship, self._log))
            busy = self._step_adopted()
            self._pause_s = LOOK_S
            return busy or self._own.shipped > before
        except (StreamsError, OSError) as exc:
            logger.warning("captured answers wait in %s: %s", self._spool.folder, exc)
        except Exception:
            logger.exception("captured answers wait in %s", self._spool.folder)
        self._pause_s = min(MAX_PAUSE_S, 2 * self._pause_s)
        self._close_log()
        return False

    def _step_adopted(self) -> bool:
        """Whether something of other spools was shipped. One that cannot be read stays as it is."""
        assert self._log is not None
        for shipping, lock in list(self._adopted):
            before = shipping.shipped
            try:
                shipping.step(self._log, hurry=True)
                if shipping.shipped > before:
                    return True
                if not shipping.drained:
                    continue
                shutil.rmtree(shipping.folder, ignore_errors=True)
            except OSError as exc:
                logger.error("the spool %s cannot be read and stays as it is: %s", shipping.folder, exc)
            os.close(lock)
            self._adopted.remove((shipping, lock))
        return False

    def _close_log(self) -> None:
        log, self._log = self._log, None
        if log is not None:
            try:
                log.close()
            except Exception:
                logger.exception("the event log could not be closed")
