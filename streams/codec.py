"""Events to bytes and back: JSON value, CloudEvents 1.0 attributes in headers (Kafka binary content mode).

What others write may also be in structured mode, for producers that set no headers: the value is the
envelope, and the event its `data` (docs/events.md). Source: CloudEvents 1.0.2, Kafka Protocol Binding,
sections 3.2 and 3.3, JSON Event Format. Decoding is ours and never a deserializer of
the client, since one that raises hangs kafka-python (docs/dependencies.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from agent.items import JsonObject
from streams.errors import StreamsError
from streams.events import EVENT_TYPES, Event
from streams.log import UNREADABLE, Outgoing, Record, first_header

MAX_BYTES = 1_048_576
SOURCE = "skillloop"
STRUCTURED = b"application/cloudevents"
Upcast = Callable[[JsonObject], JsonObject]


def encode(event: Event) -> Outgoing:
    """The record of an event, for its topic. Raises `ValueError` where a text is not Unicode (a lone
    surrogate)."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event.event_id,
        "ce_type": event.TYPE,
        "ce_source": f"{SOURCE}/{event.student}",
        "ce_time": event.occurred_at.isoformat().replace("+00:00", "Z"),
        "ce_dataschema": f"{event.TYPE}.v{event.VERSION}.json",
        "content-type": "application/json",
    }
    try:
        value = event.model_dump_json().encode()
    except PydanticSerializationError as exc:
        raise ValueError(f"event {event.event_id!r} cannot be written as JSON: {exc}") from exc
    return Outgoing(
        event.TOPIC, event.key.encode(), value, tuple((name, text.encode()) for name, text in headers.items())
    )


NO_TYPE = (
    "record has neither a ce_type header nor, in structured mode, an envelope with specversion and type"
    " (docs/events.md)"
)
Named = tuple[type[Event], Callable[[bytes], Event]]
"""An event type, and what makes one of JSON."""


class DecodeError(StreamsError):
    """A record that no version of this program can read. `reason` is a short class for metrics and
    dead-letter headers."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Codec:
    """Reads records of the given event types, converting older schema versions up step by step.

    `upcasts` maps (type, version as written) to the function that makes the next version's body of it.
    """

    def __init__(
        self,
        types: Sequence[type[Event]] = EVENT_TYPES,
        upcasts: Mapping[tuple[str, int], Upcast] | None = None,
    ) -> None:
        self._types = {
            kind.TYPE.encode(): (kind, kind.__pydantic_validator__.validate_json) for kind in types
        }
        self._upcasts = upcasts or {}

    def decode(self, record: Record) -> Event:
        """The event of a record. Raises `DecodeError` for anything it cannot be read from, and nothing
        else."""
        if len(record.value) > MAX_BYTES:
            raise DecodeError(
                "oversized", f"value has {len(record.value)} bytes, at most {MAX_BYTES} are accepted"
            )
        named = self._named(record)
        if named is None:
            return self._from_envelope(record)
        kind, validate = named
        try:
            event: Event = validate(record.value)  # the common case in one pass: JSON and model together
        except ValidationError:
            if _content_type(record).startswith(STRUCTURED):  # some writers repeat the attributes as headers
                return self._from_envelope(record)
            return self._decode_in_steps(kind, _object(record.value))
        if kind.VERSION > 1 and "schema_version" not in event.model_fields_set:
            return self._decode_in_steps(kind, _object(record.value))
        return event

    def _decode_in_steps(self, kind: type[Event], body: JsonObject) -> Event:
        """Find out what is wrong, or convert an older version. Ends in JSON again, which refuses text that is
        not Unicode."""
        version = body.get("schema_version", 1)
        if type(version) is not int or version != kind.VERSION:
            body = self._convert(kind, version, body)
        try:
            return kind.model_validate_json(json.dumps(body))
        except (ValueError, TypeError, RecursionError) as exc:
            raise DecodeError("invalid", f"{kind.TYPE}: {first_error(exc)}") from exc

    def _from_envelope(self, record: Record) -> Event:
        """The event of a record in structured mode. The envelope's `id` and `time` stand for `event_id` and
        `occurred_at` where the data has none."""
        declared = _content_type(record)
        if declared.startswith(STRUCTURED + b"-batch"):
            raise DecodeError("invalid", "a batch of events in one record; write each as a record of its own")
        try:
            envelope = _object(record.value)
        except DecodeError as exc:
            if declared.startswith(STRUCTURED):
                raise
            raise DecodeError("no-type", NO_TYPE) from exc
        structured = declared.startswith(STRUCTURED) or "specversion" in envelope
        if not structured or not isinstance(envelope.get("type"), str):
            raise DecodeError("no-type", NO_TYPE)
        if envelope.get("specversion") != "1.0":
            raise DecodeError("invalid", f"specversion {envelope.get('specversion')!r}; 1.0 is read")
        kind, _ = self._of_type(envelope["type"].encode(errors="replace"))
        data = envelope.get("data")
        if not isinstance(data, dict):
            raise DecodeError("invalid", f"{kind.TYPE}: the envelope has no data that is a JSON object")
        known = {"event_id": envelope.get("id"), "occurred_at": envelope.get("time")}
        return self._decode_in_steps(kind, {k: v for k, v in known.items() if v is not None} | data)

    def _named(self, record: Record) -> Named | None:
        """The event type that the headers name; None where they name none."""
        name = first_header(record.headers, "ce_type")
        if name is not None:
            return self._of_type(name)
        if (why := first_header(record.headers, UNREADABLE)) is not None:
            raise DecodeError("unreadable", why.decode(errors="replace"))
        return None

    def _of_type(self, name: bytes) -> Named:
        try:
            return self._types[name]
        except KeyError:
            known = ", ".join(sorted(key.decode() for key in self._types))
            raise DecodeError(
                "unknown-type", f"unknown event type {name.decode(errors='replace')!r}; known: {known}"
            ) from None

    def _convert(self, kind: type[Event], version: object, body: JsonObject) -> JsonObject:
        if type(version) is not int or not 1 <= version <= kind.VERSION:
            raise DecodeError(
                "unknown-version",
                f"{kind.TYPE} schema_version {version!r}; this program reads 1 to {kind.VERSION}",
            )
        for step in range(version, kind.VERSION):
            upcast = self._upcasts.get((kind.TYPE, step))
            if upcast is None:
                raise DecodeError(
                    "unknown-version", f"no up-conversion of {kind.TYPE} from schema_version {step}"
                )
            try:
                body = upcast(body)
            except Exception as exc:
                raise DecodeError(
                    "invalid", f"up-conversion of {kind.TYPE} from schema_version {step} failed: {exc!r}"
                ) from exc
        return body


def first_error(exc: Exception) -> str:
    """What is wrong with a value, in one line: the first field that a model refuses, and why."""
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    if not isinstance(exc, ValidationError):
        return str(exc)
    first = exc.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _content_type(record: Record) -> bytes:
    """The header of this name, in lower case; empty where there is none."""
    return next((value.lower() for name, value in record.headers if name.lower() == "content-type"), b"")


def _object(value: bytes) -> JsonObject:
    try:
        body = json.loads(value)
    except (ValueError, RecursionError) as exc:
        raise DecodeError("not-json", f"value is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise DecodeError("not-json", f"value is a JSON {type(body).__name__}, expected an object")
    return body


def json_schemas() -> dict[str, JsonObject]:
    """File name -> JSON Schema of every event type, as kept in docs/schemas."""
    return {f"{event.TYPE}.v{event.VERSION}.json": event.model_json_schema() for event in EVENT_TYPES}
