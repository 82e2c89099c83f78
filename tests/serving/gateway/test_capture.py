from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serving.gateway.redact import REDACTORS
from serving.http import HttpServer
from serving.settings import CaptureSettings
from streams.consume import ConsumeLoop, ConsumeSettings
from streams.local_log import LocalLog
from streams.log import LogUnavailable, Outgoing
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose
from tests.serving.gateway.site import Heard, crowd, loaded, outputs, question, site, write_route

SKILLLOOP = Path(sys.executable).parent / "skillloop"


class Outage(LocalLog):
    """A log that is away from time to time; an append that fails may have written all the same."""

    away = threading.Event()
    writes_and_fails = False

    def append(self, records: Sequence[Outgoing]) -> None:
        if self.away.is_set():
            raise LogUnavailable("away, as ordered")
        super().append(records)
        if type(self).writes_and_fails:
            type(self).writes_and_fails = False
            raise LogUnavailable("written, but the acknowledgement was lost")


def same(folder: Path, heard: Sequence[Heard]) -> None:
    """Every answer that a user has is in the log, under one event id each."""
    ids = {event.served.response_id: event.event_id for event in outputs(folder) if event.served}
    assert {answer.response_id for answer in heard} <= set(ids)
    assert len(set(ids.values())) == len(ids)


def test_the_log_may_be_away_under_load(tmp_path: Path) -> None:
    over = threading.Event()

    def weather() -> None:
        for _ in range(2):
            time.sleep(0.3)
            Outage.away.set()
            time.sleep(0.7)
            Outage.writes_and_fails = True
            Outage.away.clear()
        time.sleep(0.3)
        over.set()

    with site(
        tmp_path, loaded(1, text="misses", chunks=1), open_log=lambda: Outage(tmp_path / "log.db")
    ) as running:
        threading.Thread(target=weather).start()
        heard, failed = asyncio.run(crowd(running.gateway.url, 16, over.is_set))
    assert not failed and len(heard) > 30
    same(tmp_path, heard)
    assert len(outputs(tmp_path)) > len(heard)  # some were written twice
    assert counted(tmp_path) == len(heard)


def counted(folder: Path) -> int:
    """Answers in the profile after the log was consumed."""
    store = StateStore(f"sqlite:///{folder / 'state.db'}")
    with LocalLog(folder / "log.db") as log:
        loop = ConsumeLoop(log, store, diagnose, ConsumeSettings("monitor", ("student-outputs",)))
        while loop.step():
            pass
        loop.close()
    count = sum(needed for (_, _, skill, _), (needed, _) in store.buckets().items() if skill == "*")
    store.close()
    return count


@contextmanager
def process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`skillloop gateway` in a process of its own, and its address."""
    (folder / "gateway.toml").write_text("[gateway]\nport = 0\n[gateway.captured]\nfeedback_wait_s = 0\n")
    command = [str(SKILLLOOP), "gateway", "--dir", str(folder), "--config", str(folder / "gateway.toml")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    assert child.stdout is not None
    try:
        words = child.stdout.readline().split()
        yield child, next(word for word in words if word.startswith("http")).removesuffix("/v1;")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_gateway_acknowledged_before_it_was_killed_is_captured(
    tmp_path: Path, name: signal.Signals
) -> None:
    heard: list[Heard] = []
    with HttpServer(loaded(1), "127.0.0.1", 0) as replica:
        write_route(tmp_path, [replica.url], 1)
        with process(tmp_path) as (child, url):
            threading.Timer(1.0, child.send_signal, [name]).start()
            heard, _ = asyncio.run(crowd(url, 16, lambda: child.poll() is not None))
            assert child.wait() == (0 if name == signal.SIGTERM else -signal.SIGKILL)
        if name == signal.SIGKILL:  # the next one takes over what it left
            with process(tmp_path) as (child, url):
                child.terminate()
                assert child.wait() == 0
    assert len([answer for answer in heard if answer.whole]) > 20
    same(tmp_path, [answer for answer in heard if answer.whole])
    assert not list((tmp_path / "spool").glob("*/*.jsonl"))


def test_the_sampling_rate_is_kept_with_what_is_sampled(tmp_path: Path) -> None:
    with site(tmp_path, captured=CaptureSettings(feedback_wait_s=0, sample=0.5)) as running:
        for _ in range(40):
            running.ask()
    assert running.gateway.capture is not None
    counts = running.gateway.capture.counts
    assert counts["captured"] + counts["sampled out"] == 40 and 5 < counts["captured"] < 35
    kept = outputs(tmp_path)
    assert len(kept) == counts["captured"]
    assert {event.served.sampling_rate for event in kept if event.served} == {0.5}


def _breaks(text: str) -> str:
    raise RuntimeError(f"no idea what {text} is")


REDACTORS.add("breaks", _breaks)


@pytest.mark.parametrize(("redact", "kept"), [("patterns", 1), ("breaks", 0)])
def test_what_is_redacted_never_touches_the_disk(tmp_path: Path, redact: str, kept: int) -> None:
    captured = CaptureSettings(feedback_wait_s=0, redact=redact)
    with site(tmp_path, captured=captured) as running:
        turns = [{"role": "user", "content": "I am ann@example.com, 2 + 2?"}]
        assert running.ask(messages=turns, user="ann@example.com").status_code == 200
        disk = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"ann@example" not in disk
    assert [event.question for event in outputs(tmp_path)] == ["I am [email], 2 + 2?"] * kept
    assert running.gateway.capture is not None and running.gateway.capture.counts["error"] == 1 - kept


def test_a_redacted_session_has_one_name_over_restarts_and_is_nobodys(tmp_path: Path) -> None:
    """OpenAI's `user` is often an email address, and was kept as it is."""
    captured = CaptureSettings(feedback_wait_s=0, redact="patterns", spool=tmp_path / "own" / "spool")
    for _ in range(2):
        with site(tmp_path, captured=captured) as running:
            for user in ("ann@example.com", "bob@example.com"):
                running.ask(user=user)
    sessions = [answer.session for answer in outputs(tmp_path)]
    assert len(set(sessions)) == 2 and sessions[:2] == sessions[2:]
    assert not any("example" in session for session in sessions) and not (tmp_path / "spool").exists()


def test_a_long_text_is_redacted_and_holds_nobody_up(tmp_path: Path) -> None:
    """A million characters of this shape took 1.6 s, in which nobody else was answered."""
    text = ("a" * 64 + "@") * 6_000 + " ann@example.com " + "4111-" * 2_000
    with site(tmp_path, captured=CaptureSettings(feedback_wait_s=0, redact="patterns")) as running:
        took: list[float] = []
        asked = threading.Thread(target=running.ask, kwargs={"text": text})
        asked.start()
        while asked.is_alive():
            began = time.monotonic()
            running.ask()
            took.append(time.monotonic() - began)
    long = next(answer.question for answer in outputs(tmp_path) if len(answer.question) > 9)
    assert "[email]" in long and "ann@" not in long
    assert max(took) < 1.0


def test_who_captures_elsewhere_captures_nothing_here(tmp_path: Path) -> None:
    with site(tmp_path, capture="external") as running:
        assert running.ask().status_code == 200
    assert not (tmp_path / "spool").exists() and not (tmp_path / "log.db").exists()


def test_an_answer_too_long_for_an_event_is_counted_and_delivered(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, text="x" * 600_000)) as running:
        assert running.ask().status_code == 200
    assert running.gateway.capture is not None and running.gateway.capture.counts == {"oversized": 1}


def test_a_text_that_no_event_can_hold_is_counted_and_stays_out_of_the_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = json.dumps(question("my password is hunter2 \ud800"))
    with site(tmp_path) as running:
        response = httpx.post(f"{running.gateway.url}/v1/chat/completions", content=body, timeout=20)
    assert response.status_code == 200
    assert running.gateway.capture is not None and running.gateway.capture.counts == {"no event": 1}
    assert "an answer is no event: question" in caplog.text and "hunter2" not in caplog.text


def test_a_replica_that_repeats_its_ids_loses_no_answer(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, response_id="chatcmpl-1")) as running:
        for _ in range(3):
            running.ask()
    assert len({event.event_id for event in outputs(tmp_path)}) == 3
