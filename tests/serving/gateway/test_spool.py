from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.items import JsonObject
from serving.gateway.ship import REFUSED, Shipper, Shipping
from serving.gateway.spool import POSITION, Spool, adopt, is_drained, position, read_lines, segments
from streams.events import Event, FeedbackGiven, StudentOutput
from streams.files import write_json
from streams.log import LogUnavailable
from streams.memory_log import MemoryLog
from streams.topics import TOPICS, TopicSpec

NOW = datetime.now(UTC)


def answer(number: int, at: datetime = NOW) -> StudentOutput:
    return StudentOutput(
        event_id=f"event-{number}",
        occurred_at=at,
        student="demo",
        student_version=1,
        question="?",
        answer=str(number),
    )


def line(event: Event) -> bytes:
    return event.TYPE.encode() + b" " + event.model_dump_json().encode()


def written(log: MemoryLog, topic: str = "student-outputs") -> list[bytes]:
    return [record.value for record in log.read(topic)]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, 2**20, 10)


def test_lines_are_read_from_the_position_and_a_torn_one_is_not(spool: Spool) -> None:
    for number in range(3):
        assert spool.append(b"line %d" % number)
    with segments(spool.folder)[0].open("ab") as file:
        file.write(b"torn")
    lines = list(read_lines(spool.folder, position(spool.folder)))
    assert [item.data for item in lines] == [b"line 0", b"line 1", b"line 2"]
    assert [item.data for item in read_lines(spool.folder, lines[1].after)] == [b"line 2"]


def test_a_full_spool_keeps_a_bounded_number_of_lines_in_memory(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 4000, 5)
    kept = [spool.append(b"x" * 999) for _ in range(12)]
    assert kept == [True] * 9 + [False] * 3 and (spool.in_memory, spool.lost) == (5, 3)
    assert not spool.flush()
    spool.shrink(3000)
    assert not spool.flush()
    spool.shrink(3000)
    assert spool.flush()
    assert len(list(read_lines(spool.folder, position(spool.folder)))) == 9


def test_whole_segments_are_removed_when_they_are_shipped(tmp_path: Path) -> None:
    spool, log = Spool(tmp_path, 4000, 5), MemoryLog()
    for number in range(8):
        spool.append(line(answer(number)))
    assert len(segments(spool.folder)) > 1
    assert Shipping(spool.folder, 0).step(log) > 0
    assert len(segments(spool.folder)) == 1 and is_drained(spool.folder)
    assert len(written(log)) == 8


def test_a_log_that_fails_is_tried_again_from_the_same_place(spool: Spool) -> None:
    log, shipping = MemoryLog(), Shipping(spool.folder, 0)
    for number in range(3):
        spool.append(line(answer(number)))
    log.unavailable = 1
    with pytest.raises(LogUnavailable):
        shipping.step(log)
    assert not is_drained(spool.folder)
    shipping.step(log)
    assert len(written(log)) == 3 and is_drained(spool.folder)
    Shipping(spool.folder, 0).step(log)
    assert len(written(log)) == 3


def test_an_event_that_the_log_never_takes_does_not_stop_the_others(spool: Spool) -> None:
    log = MemoryLog(
        (
            *(spec for spec in TOPICS if spec.name != "student-outputs"),
            TopicSpec("student-outputs", 1, -1, max_bytes=900),
        )
    )
    for event in (answer(1), answer(2).model_copy(update={"answer": "x" * 900}), answer(3)):
        spool.append(line(event))
    Shipping(spool.folder, 0).step(log)
    assert {value[13:20] for value in written(log)} == {b"event-1", b"event-3"}
    assert b"event-2" in (spool.folder.parent / REFUSED).read_bytes()


def test_damaged_lines_are_counted_and_passed_over(spool: Spool) -> None:
    log, shipping = MemoryLog(), Shipping(spool.folder, 0)
    for data in (b"nonsense", b"skillloop.student-output {", line(answer(1))):
        spool.append(data)
    shipping.step(log)
    assert (len(written(log)), shipping.damaged) == (1, 2)


def test_an_answer_waits_for_its_feedback_and_no_longer(spool: Spool) -> None:
    log, shipping = MemoryLog(), Shipping(spool.folder, 3600)
    spool.append(line(answer(1, NOW - timedelta(hours=2))))
    spool.append(line(answer(2)))
    for number, feedback in ((1, "down"), (2, "up"), (9, "up")):
        given = FeedbackGiven(
            event_id=f"given-{number}",
            occurred_at=NOW,
            student="demo",
            causation_id=f"event-{number}",
            student_version=1,
            response_id="r",
            feedback="up" if feedback == "up" else "down",
        )
        spool.append(line(given))
    shipping.step(log)
    assert [b'"down"' in value for value in written(log)] == [True]
    shipping.step(log, hurry=True)
    assert [b'"up"' in value for value in written(log)] == [False, True]
    assert [b"event-9" in value for value in written(log, "feedback")] == [True]


def test_a_spool_is_adopted_when_its_process_is_gone(tmp_path: Path, spool: Spool) -> None:
    spool.append(line(answer(1)))
    assert not list(adopt(tmp_path))
    spool.close()
    ((folder, _),) = list(adopt(tmp_path))
    assert folder == spool.folder


def test_an_empty_spool_leaves_nothing_behind(tmp_path: Path, spool: Spool) -> None:
    spool.close()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_does_not_stop_the_gateway(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    spool = Spool(tmp_path / "spool", 2**20, 2)
    assert [spool.append(b"x") for _ in range(4)] == [True] * 2 + [False] * 2 and spool.lost == 2


class NoRoom:
    """A disk that takes nothing while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._write = os.write
        monkeypatch.setattr("serving.gateway.spool.os.write", self._or_not)
        monkeypatch.setattr("serving.gateway.spool.write_json", self._position)

    def _or_not(self, file: int, data: bytes) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, "no room")
        return self._write(file, data)

    def _position(self, path: Path, value: JsonObject) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no room")
        write_json(path, value)


def test_a_full_disk_makes_room_by_what_is_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position was written first, which a full disk refuses: nothing was ever removed."""
    disk, spool, log = NoRoom(monkeypatch), Spool(tmp_path, 4000, 5), MemoryLog()
    for number in range(8):
        spool.append(line(answer(number)))
    disk.full = True
    shipping = Shipping(spool.folder, 0)
    assert shipping.step(log) > 0 and len(segments(spool.folder)) == 1
    assert shipping.step(log) == 0 and len(written(log)) == 8


@pytest.mark.parametrize("log_is_there", [True, False])
def test_what_a_full_disk_refuses_is_shipped_from_memory_or_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_is_there: bool
) -> None:
    """At SIGTERM 263 of 950 acknowledged answers were gone, and `lost` said 0."""
    disk, spool, log = NoRoom(monkeypatch), Spool(tmp_path, 2**20, 100), MemoryLog()
    shipper = Shipper(spool, lambda: log, 3600)
    assert spool.append(line(answer(0)))
    disk.full, log.unavailable = True, 0 if log_is_there else 10**9
    for number in range(1, 6):
        assert spool.append(line(answer(number)))
    assert shipper.counts()["waiting"] == 5
    shipper.start()
    shipper.stop(0.5)
    log.unavailable = 0
    assert len(written(log)) == (6 if log_is_there else 0)
    assert shipper.counts()["lost"] == (0 if log_is_there else 5)


@pytest.mark.parametrize("text", ['{"segment": null}', '{"segment": 1e999, "offset": 0}', "[]", "{"])
def test_a_damaged_position_is_the_beginning(spool: Spool, text: str) -> None:
    spool.append(b"a")
    (spool.folder / POSITION).write_text(text)
    assert position(spool.folder) == (1, 0) and not is_drained(spool.folder)


def test_a_spool_that_cannot_be_read_stops_no_other(tmp_path: Path) -> None:
    left, log = Spool(tmp_path, 2**20, 10), MemoryLog()
    (segments(left.folder)[0]).unlink()
    (left.folder / "00000001.jsonl").mkdir()
    left.close()
    own = Spool(tmp_path, 2**20, 10)
    own.append(line(answer(1)))
    shipper = Shipper(own, lambda: log, 0)
    shipper.start()
    shipper.stop(5)
    assert len(written(log)) == 1 and left.folder.is_dir()


def test_a_spool_that_somebody_removes_is_made_anew(spool: Spool) -> None:
    """What was written to the removed file was lost without a word."""
    spool.append(b"before")
    shutil.rmtree(spool.folder)
    assert spool.flush() and spool.removed == 1
    spool.append(b"after")
    assert [item.data for item in read_lines(spool.folder, position(spool.folder))] == [b"after"]
