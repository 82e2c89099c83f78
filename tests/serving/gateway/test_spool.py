from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.gateway.ship import REFUSED, Shipping
from serving.gateway.spool import Spool, adopt, is_drained, position, read_lines, segments
from streams.events import Event, FeedbackGiven, StudentOutput
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
    assert kept == [True] * 4 + [False] * 8 and spool.lost == 3
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
    assert [spool.append(b"x") for _ in range(4)] == [False] * 4 and spool.lost == 2
