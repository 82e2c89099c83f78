"""The codec: round trips of arbitrary text, and a `DecodeError` (nothing else) for whatever cannot be
read."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.codec import MAX_BYTES, Codec, DecodeError, encode
from streams.events import Event, StudentOutput
from streams.log import Outgoing, Partition, Record
from streams.testing.synthetic import POISON, output, poison

TEXT = st.text(max_size=50)  # NUL and everything else that is Unicode
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too


def record(sent: Outgoing) -> Record:
    return Record(Partition(sent.topic, 0), 0, sent.key, sent.value, sent.headers)


@given(question=TEXT, answer=TEXT, session=TEXT, gold=st.none() | TEXT, seconds=st.integers(0, 4_000_000_000))
def test_what_is_encoded_is_decoded(
    question: str, answer: str, session: str, gold: str | None, seconds: int
) -> None:
    event = output(1).model_copy(
        update={
            "question": question,
            "answer": answer,
            "session": session,
            "gold": gold,
            "occurred_at": datetime.fromtimestamp(seconds, UTC),
        }
    )
    assert Codec().decode(record(encode(event))) == event


@given(
    body=st.dictionaries(ANY_TEXT, ANY_TEXT),
    field=st.sampled_from(sorted(StudentOutput.model_fields)),
    text=ANY_TEXT,
)
def test_no_text_in_a_body_breaks_decoding(body: dict[str, str], field: str, text: str) -> None:
    sent = encode(output(2))
    value = json.dumps({**json.loads(sent.value), **body, field: text}).encode()
    try:
        event = Codec().decode(record(sent)._replace(value=value))
    except DecodeError as exc:
        assert exc.reason
    else:
        assert encode(event)  # what was read can be written again


@given(value=st.binary(max_size=200))
def test_no_bytes_break_decoding(value: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec().decode(record(encode(output(3)))._replace(value=value))


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5000,
        b"null",
        b"",
        '{"event_id": 1}'.encode("utf-16"),
        b'{"schema_version": true}',
        b'{"schema_version": null}',
        b'{"schema_version": []}',
    ],
)
def test_odd_json_is_refused(value: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec().decode(record(encode(output(3)))._replace(value=value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("occurred_at", "0001-01-01T00:00:00+05:00"),
        ("occurred_at", "2026-01-01T00:00:00"),
        ("student_version", 2**31),
        ("student_version", 0),
        ("student", "a\x00b"),
        ("event_id", ""),
        ("unknown_field", 1),
        ("answer", "\ud800"),
    ],
)
def test_values_that_the_store_cannot_take_are_refused_here(field: str, value: Any) -> None:
    sent = encode(output(3))
    changed = json.dumps({**json.loads(sent.value), field: value}).encode()
    with pytest.raises(DecodeError) as caught:
        Codec().decode(record(sent)._replace(value=changed))
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize("kind", [kind for kind in POISON if kind != "handler"])
def test_each_kind_of_poison_has_its_reason(kind: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Codec().decode(record(poison(kind, 1)))
    assert caught.value.reason == kind


def test_a_value_of_exactly_the_limit_is_read() -> None:
    sent = encode(output(3))
    padded = sent.value + b" " * (MAX_BYTES - len(sent.value))
    assert Codec().decode(record(sent)._replace(value=padded)) == output(3)


def test_text_that_is_not_unicode_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        encode(output(3).model_copy(update={"answer": "\ud800"}))


class Newer(Event):
    """A later version of an event type: `answer` became `text`."""

    TYPE: ClassVar[str] = StudentOutput.TYPE
    TOPIC: ClassVar[str] = StudentOutput.TOPIC
    VERSION: ClassVar[int] = 3

    schema_version: Literal[3] = 3  # type: ignore[assignment]
    text: str


def _to_two(body: dict[str, Any]) -> dict[str, Any]:
    keep = ("event_id", "occurred_at", "student")
    return {**{name: body[name] for name in keep}, "answer": body["answer"], "schema_version": 2}


def _to_three(body: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in body.items() if k != "answer"}, "text": body["answer"], "schema_version": 3}


def test_an_old_version_is_converted_step_by_step() -> None:
    codec = Codec([Newer], {(Newer.TYPE, 1): _to_two, (Newer.TYPE, 2): _to_three})
    old = output(4)
    found = codec.decode(record(encode(old)))
    assert isinstance(found, Newer)
    assert (found.event_id, found.text) == (old.event_id, old.answer)
    body = json.loads(encode(old).value)
    del body["schema_version"]  # written before there was a version: 1
    assert codec.decode(record(encode(old))._replace(value=json.dumps(body).encode())) == found
    assert codec.decode(record(encode(found))) == found


def test_a_missing_or_failing_conversion_is_a_dead_letter() -> None:
    for upcasts, reason in (
        ({}, "unknown-version"),
        ({(Newer.TYPE, 1): lambda body: body["nothing"]}, "invalid"),
    ):
        with pytest.raises(DecodeError) as caught:
            Codec([Newer], upcasts).decode(record(encode(output(4))))
        assert caught.value.reason == reason


def enveloped(event: Event, headers: bool, **changes: Any) -> Record:
    """The event in structured mode, as a producer that sets no headers writes it."""
    sent = encode(event)
    attributes = {
        name.removeprefix("ce_"): value.decode() for name, value in sent.headers if name.startswith("ce_")
    }
    envelope = {**attributes, "data": json.loads(sent.value), **changes}
    kept = {name: value for name, value in envelope.items() if value is not None}
    content_type = (("content-type", b"application/cloudevents+json; charset=UTF-8"),) if headers else ()
    return record(sent)._replace(value=json.dumps(kept).encode(), headers=content_type)


@given(question=TEXT, answer=TEXT, session=TEXT, gold=st.none() | TEXT, headers=st.booleans())
def test_structured_mode_gives_the_same_event(
    question: str, answer: str, session: str, gold: str | None, headers: bool
) -> None:
    update = {"question": question, "answer": answer, "session": session, "gold": gold}
    event = output(1).model_copy(update=update)
    assert Codec().decode(enveloped(event, headers)) == event


@given(
    changed=st.dictionaries(
        st.sampled_from(("specversion", "type", "id", "time", "data", "datacontenttype", "data_base64")),
        st.recursive(st.none() | st.booleans() | st.floats() | ANY_TEXT, st.lists, max_leaves=3),
    ),
    headers=st.booleans(),
)
def test_no_envelope_breaks_decoding(changed: dict[str, Any], headers: bool) -> None:
    try:
        event = Codec().decode(enveloped(output(2), headers, **changed))
    except DecodeError as exc:
        assert exc.reason
    else:
        assert encode(event)


def test_the_envelopes_id_and_time_stand_for_those_of_the_event() -> None:
    event = output(1)
    body = {k: v for k, v in json.loads(encode(event).value).items() if k not in ("event_id", "occurred_at")}
    assert Codec().decode(enveloped(event, True, data=body)) == event


def test_attributes_that_are_repeated_as_headers_do_not_hide_the_envelope() -> None:
    twice = enveloped(output(1), True)
    headers = (*encode(output(1)).headers[:-1], *twice.headers)
    assert Codec().decode(twice._replace(headers=headers)) == output(1)


@pytest.mark.parametrize(
    ("changes", "reason", "told"),
    [
        ({"specversion": "0.3"}, "invalid", "1.0 is read"),
        ({"type": "shop.order"}, "unknown-type", "shop.order"),
        ({"type": None}, "no-type", "specversion and type"),
        ({"data": None}, "invalid", "no data"),
        ({"data": {"student": "s"}}, "invalid", "student_version"),
    ],
)
def test_a_wrong_envelope_has_its_reason(changes: dict[str, Any], reason: str, told: str) -> None:
    with pytest.raises(DecodeError, match=told) as caught:
        Codec().decode(enveloped(output(1), True, **changes))
    assert caught.value.reason == reason


def test_a_batch_and_a_bare_body_are_refused() -> None:
    batch = enveloped(output(1), True)._replace(
        headers=(("content-type", b"application/cloudevents-batch+json"),)
    )
    bare = record(encode(output(1)))._replace(headers=())
    for refused, told in ((batch, "as a record of its own"), (bare, "ce_type header")):
        with pytest.raises(DecodeError, match=told):
            Codec().decode(refused)
