"""Events to bytes and back: JSON value, CloudEvents 1.0 attributes in headers (Kafka binary content mode).

Source: CloudEvents 1.0.2, Kafka Protocol Binding, section 3.2. Decoding is ours and never a deserializer of
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
from streams.log import UNREADABLE, Outgoing, Record

MAX_BYTES = 1_048_576
SOURCE = "skillloop"
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
        kind, validate = self._kind(record)
        try:
            event: Event = validate(record.value)  # the common case in one pass: JSON and model together
        except ValidationError:
            return self._decode_in_steps(kind, record.value)
        if kind.VERSION > 1 and "schema_version" not in event.model_fields_set:
            return self._decode_in_steps(kind, record.value)
        return event

    def _decode_in_steps(self, kind: type[Event], value: bytes) -> Event:
        """Find out what is wrong, or convert an older version. Ends in JSON again, which refuses text that is
        not Unicode."""
        body = _body(value)
        version = body.get("schema_version", 1)
        if type(version) is not int or version != kind.VERSION:
            body = self._convert(kind, version, body)
        try:
            return kind.model_validate_json(json.dumps(body))
        except (ValueError, TypeError, RecursionError) as exc:
            raise DecodeError("invalid", f"{kind.TYPE}: {first_error(exc)}") from exc

    def _kind(self, record: Record) -> tuple[type[Event], Callable[[bytes], Event]]:
        for name, value in record.headers:
            if name == UNREADABLE:
                raise DecodeError("unreadable", value.decode(errors="replace"))
            if name == "ce_type":
                found = self._types.get(value)
                if found is None:
                    known = ", ".join(sorted(key.decode() for key in self._types))
                    raise DecodeError(
                        "unknown-type",
                        f"unknown event type {value.decode(errors='replace')!r}; known: {known}",
                    )
                return found
        raise DecodeError("no-type", "record has no ce_type header")

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


def _body(value: bytes) -> JsonObject:
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
