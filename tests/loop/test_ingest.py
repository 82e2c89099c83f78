"""Backfill: both shapes of lines, bad lines counted, resumed where it stopped, and no second effect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from loop.ingest import BadLine, Defaults, IngestError, NotOurs, ingest, preview, read_line
from streams.codec import MAX_BYTES, Codec
from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.events import StudentOutput
from streams.log import LogUnavailable
from streams.memory_log import MemoryLog
from streams.state.store import StateStore
from streams.testing.synthetic import diagnose, expected_buckets, output

DEFAULTS = Defaults("demo", 3, {"student-v*": "*"})
COMPLETION: dict[str, Any] = {
    "request": {
        "model": "student-v12",
        "user": "alice",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}],
    },
    "response": {
        "id": "chatcmpl-1",
        "created": 1_767_225_600,
        "model": "student-v12",
        "choices": [{"message": {"role": "assistant", "content": "4"}}],
    },
    "feedback": "up",
}


def lines(path: Path, *bodies: Any) -> Path:
    path.write_bytes(
        b"".join((body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n" for body in bodies)
    )
    return path


def ours(number: int) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(output(number).model_dump_json())
    return body


def in_log(log: MemoryLog) -> list[StudentOutput]:
    found = [Codec().decode(record) for record in log.read("student-outputs")]
    return sorted(
        (event for event in found if isinstance(event, StudentOutput)), key=lambda event: event.occurred_at
    )


def test_our_events_and_chat_completions_become_answers(tmp_path: Path) -> None:
    log = MemoryLog()
    short = {"occurred_at": "2026-02-01T00:00:00Z", "question": "1+1?", "answer": "2"}
    done = ingest(lines(tmp_path / "a.jsonl", ours(1), COMPLETION, short), log, tmp_path, DEFAULTS)
    assert (done.lines, done.events, done.bad) == (3, 3, 0)
    first, *_ = (event for event in in_log(log) if event.session == "alice")
    assert (first.question, first.answer, first.student, first.student_version, first.feedback) == (
        "2+2?",
        "4",
        "demo",
        12,
        "up",
    )
    assert first.occurred_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert output(1) in in_log(log)
    last = in_log(log)[-1]
    assert (last.student, last.student_version, last.answer) == ("demo", 3, "2")


def named(response: str | None, request: str | None = None) -> dict[str, Any]:
    body = json.loads(json.dumps(COMPLETION))
    body["response"] |= {"model": response, "id": f"{response}/{request}"}
    body["request"]["model"] = request
    return dict(body)


def test_a_model_that_is_not_ours_is_left_out_and_counted(tmp_path: Path) -> None:
    bodies = [
        named("gpt-4o"),
        named("gpt-4o"),
        named("demo"),
        named("demo-v7"),
        named(None),
        named(None, "demo-v8"),
        named("x", "demo-v8"),
        named("x", "y"),
    ]
    path, log = lines(tmp_path / "a.jsonl", *bodies, ours(1)), MemoryLog()
    told = preview(path, Defaults("demo", 3))
    done = ingest(path, log, tmp_path, Defaults("demo", 3))
    assert told == done and (done.lines, done.events, done.bad) == (9, 4, 0)
    left_out = {"gpt-4o": 2, "(no model named)": 1, "x": 1}
    assert done.left_out == left_out | {"x (asked for as demo-v8)": 1}, "a router's other model is not ours"
    assert done.taken == {
        ("demo", "demo", 3): 1,
        ("demo-v7", "demo", 7): 1,
        ("demo-v8", "demo", 8): 1,
        ("(our event)", "student-0", 2): 1,
    }
    assert sorted(event.student_version for event in in_log(log)) == [2, 3, 7, 8]


def test_the_mapping_says_which_version_a_model_is(tmp_path: Path) -> None:
    mapping: dict[str, Any] = {"ft:*:tutor": 4, "tutor/v*": "*", "": 5, "a.b": 6}
    defaults = Defaults("demo", 3, mapping)
    found = {"ft:gpt-4o:tutor": 4, "tutor/v12": 12, "": 5, "a.b": 6}
    assert {name: defaults.match(name) for name in found} == found
    for name in ("demo", "demo-v2", "axb", "tutor/v", "tutor/v0", "tutor/v1x"):
        with pytest.raises(NotOurs, match=name):
            defaults.match(name)
    path = lines(tmp_path / "a.jsonl", named("a.b"), named("other"))
    log = MemoryLog()
    assert ingest(path, log, tmp_path, defaults).events == 1
    assert ingest(path, log, tmp_path, defaults).lines == 0
    mended = Defaults("demo", 3, {"a.b": 6, "other": 7})
    assert ingest(path, log, tmp_path, mended).events == 2, "with another mapping the file is read again"


@pytest.mark.parametrize(
    ("answered", "asked", "version"),
    [("demo", "demo-v3", 3), ("demo-v2", "demo-v3", 2), ("demo-v2", "demo", 2), ("demo", "demo", 7)],
)
def test_the_name_that_says_a_version_counts_the_answers_before_the_requests(
    answered: str, asked: str, version: int
) -> None:
    """LiteLLM's proxy answers as the public name, and asks for the version's."""
    assert Defaults("demo", 7).match(answered, asked) == version


def test_every_choice_is_an_answer_and_parts_of_a_message_are_joined() -> None:
    body = json.loads(json.dumps(COMPLETION))
    body["request"]["messages"][1]["content"] = [
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    body["response"]["choices"].append({"message": {"content": "5"}})
    _, found = read_line(json.dumps(body).encode(), 1, DEFAULTS)
    assert [event.answer for event in found] == ["4", "5"]
    assert found[0].question == "a\nb"
    assert found[0].event_id != found[1].event_id
    assert found == read_line(json.dumps(body).encode(), 99, DEFAULTS)[1]  # the id is the completion's
    body["request"]["messages"][1]["content"].append({"type": "image_url", "image_url": "x"})
    with pytest.raises(BadLine, match="not text alone"):
        read_line(json.dumps(body).encode(), 1, DEFAULTS)


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[1]",
        (
            b'{"request": {"messages": [{"role": "user", "content": ["q"]}]}, "response": {"created": 1,'
            b' "choices": []}}'
        ),
        b"{}",
        b'{"response": 1}',
        b'{"request": {"messages": []}, "response": {"created": 1, "choices": []}}',
        (
            b'{"request": {"messages": [{"role": "user", "content": "q"}]}, "response": {"created": "x",'
            b' "choices": []}}'
        ),
        (
            b'{"request": {"messages": [{"role": "user", "content": "q"}]}, '
            b'"response": {"created": 1, "choices": [{"message": {"content": null}}]}}'
        ),
        (
            b'{"request": {"messages": [{"role": "user", "content": "q"}]}, '
            b'"response": {"created": 1, "model": "demo", "choices": []}}'
        ),
        b'{"occurred_at": "2026-01-01T00:00:00Z", "question": "q", "answer": "\\ud800"}',
        b'{"occurred_at": "2026-01-01T00:00:00Z", "question": "q", "answer": "a", "student_version": 0}',
        b'{"occurred_at": "2026-01-01T00:00:00Z", "question": "q", "answer": "a", "extra": 1}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_bad_lines_say_why(line: bytes) -> None:
    with pytest.raises(BadLine):
        read_line(line, 1, DEFAULTS)


def test_bad_lines_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    log = MemoryLog()
    bodies = [
        ours(1),
        b"oops",
        b"",
        b"   ",
        {**ours(2), "answer": "x" * MAX_BYTES},
        b"y" * (5 * MAX_BYTES),
        ours(3),
    ]
    done = ingest(lines(tmp_path / "a.jsonl", *bodies), log, tmp_path, DEFAULTS)
    assert (done.lines, done.events, done.bad) == (5, 2, 3)
    assert [reason.split(":")[0] for reason in done.reasons] == ["line 2", "line 5", "line 6"]
    assert in_log(log) == [output(1), output(3)]


def test_a_file_is_resumed_where_it_stopped_and_may_grow(tmp_path: Path) -> None:
    log = MemoryLog()
    path = lines(tmp_path / "a.jsonl", *(ours(n) for n in range(1200)))
    calls = 0

    def fail_later(at: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            log.unavailable = 1

    with pytest.raises(LogUnavailable):
        ingest(path, log, tmp_path, DEFAULTS, fail_later)
    done = ingest(path, log, tmp_path, DEFAULTS)
    assert (done.resumed_at, done.events) == (1000, 200)
    assert ingest(path, log, tmp_path, DEFAULTS).lines == 0
    with path.open("ab") as file:
        file.write(json.dumps(ours(1200)).encode() + b"\n")
    assert ingest(path, log, tmp_path, DEFAULTS).events == 1
    assert in_log(log) == [output(n) for n in range(1201)]


def test_the_same_file_twice_counts_once(tmp_path: Path) -> None:
    log = MemoryLog()
    bodies = [{key: value for key, value in ours(n).items() if key != "event_id"} for n in range(20)]
    path = lines(tmp_path / "a.jsonl", *bodies)
    for folder in ("one", "two"):  # another folder knows no position: everything is appended again
        ingest(path, log, tmp_path / folder, DEFAULTS)
    assert len(in_log(log)) == 40
    store = StateStore(f"sqlite:///{tmp_path}/state.db")

    def counts(events: Any) -> Effects:
        return Effects(buckets=diagnose(events).buckets)

    loop = ConsumeLoop(log, store, counts, ConsumeSettings("group", ("student-outputs",)))
    while loop.step():
        pass
    assert store.buckets() == expected_buckets(output(n) for n in range(20))
    store.close()


def test_another_file_under_the_same_name_begins_anew(tmp_path: Path) -> None:
    log = MemoryLog()
    ingest(lines(tmp_path / "a.jsonl", ours(1)), log, tmp_path, DEFAULTS)
    assert ingest(lines(tmp_path / "a.jsonl", ours(2), ours(3)), log, tmp_path, DEFAULTS).events == 2


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match=r"nothing\.jsonl"):
        ingest(tmp_path / "nothing.jsonl", MemoryLog(), tmp_path, DEFAULTS)


def test_progress_ends_at_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = lines(tmp_path / "a.jsonl", *(ours(n) for n in range(600)))
    ingest(path, MemoryLog(), tmp_path, DEFAULTS, lambda at, total: told.append((at, total)))
    assert told == sorted(told)
    assert told[-1] == (path.stat().st_size, path.stat().st_size)


def test_the_documented_lines_are_read() -> None:
    document = (Path(__file__).parents[2] / "docs" / "events.md").read_text()
    section = document.split("## From a file")[1]
    for block in re.findall(r"(?:^    .*\n)+", section, re.MULTILINE):
        _, (event,) = read_line(" ".join(block.split()).encode(), 0, Defaults("mathbot"))
        assert (event.question, event.answer) == ("What is 3 + 4?", "8")
