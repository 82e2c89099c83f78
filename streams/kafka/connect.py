"""Clients of a cluster: made within a limit of time, their errors turned into the port's."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from kafka import errors as kafka_errors

from streams.kafka import seams
from streams.kafka.settings import KafkaSettings
from streams.log import LogError, LogUnavailable, MemberFenced, RecordRefused, TopicMissing

_LIBRARY_LOGGER = logging.getLogger("kafka")
_LIBRARY_LOGGER.addHandler(logging.NullHandler())  # without any, lines that do not propagate are printed
_CLIENT_LOGGER = logging.getLogger("kafka.net.manager")
_TRANSIENT = (
    kafka_errors.RetriableError,
    kafka_errors.BrokerNotAvailableError,
    kafka_errors.CommitFailedError,
    kafka_errors.IllegalGenerationError,
    kafka_errors.RebalanceInProgressError,
    kafka_errors.UnknownMemberIdError,
    OSError,
)
_TOO_LARGE = (
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.RecordListTooLargeError,
    kafka_errors.InvalidRecordError,
)
_AUTH = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.AuthorizationError,
    kafka_errors.UnsupportedSaslMechanismError,
)


def common_options(settings: KafkaSettings) -> dict[str, object]:
    """What every client is given; holds secrets in clear."""
    return {
        "bootstrap_servers": settings.addresses,
        "client_id": f"skillloop-{settings.instance or 'worker'}",
        "request_timeout_ms": ms(settings.request_timeout_s),
        "reconnect_backoff_max_ms": 1000,
        "bootstrap_timeout_ms": ms(settings.start_timeout_s),
        **settings.security(),
    }


def connect(settings: KafkaSettings, kind: Any, **options: Any) -> Any:
    """A client of this kind. Raises `LogUnavailable`, or `LogError` for a refused login or encryption."""
    sasl = settings.security_protocol.startswith("SASL")
    with errors(settings, "connect"), _unheard(), _Refusals(sasl) as refusals:
        try:
            with seams.thrown_away() as network:
                return kind(**common_options(settings), **options, **network)
        except kafka_errors.KafkaError as exc:
            if refusals.last and isinstance(exc, kafka_errors.KafkaTimeoutError):
                raise refusals.last from exc  # it tried again and again, whatever the reason was
            raise


@contextmanager
def _unheard() -> Iterator[None]:
    """The client's own lines about a connection that fails are left out, unless someone debugs it: dozens,
    and the error that follows says the same."""
    _LIBRARY_LOGGER.propagate = _LIBRARY_LOGGER.isEnabledFor(logging.INFO)
    try:
        yield
    finally:
        _LIBRARY_LOGGER.propagate = True


@contextmanager
def errors(settings: KafkaSettings, what: str) -> Iterator[None]:
    """Turn the client's errors into the port's, with the address and the setting to look at."""
    servers = settings.bootstrap_servers
    try:
        yield
    except _AUTH as exc:
        raise LogError(
            f"Kafka at {servers} refused to {what}: {_text(exc)}; check log.kafka.sasl_username,"
            " log.kafka.sasl_password and ACLs"
        ) from exc
    except ssl.SSLError as exc:
        raise LogError(
            f"no encrypted connection to Kafka at {servers}: {exc}; check log.kafka.security_protocol and"
            " log.kafka.ssl_cafile"
        ) from exc
    except kafka_errors.FencedInstanceIdError as exc:
        name = settings.instance
        raise MemberFenced(
            f"another connection has the instance name {name!r}: give each worker its own, and start this"
            " one again"
        ) from exc
    except kafka_errors.UnknownTopicOrPartitionError as exc:
        raise TopicMissing(
            f"a topic is missing at {servers} ({_text(exc)}); `skillloop topics create` makes them all"
        ) from exc
    except _TOO_LARGE as exc:
        raise RecordRefused(
            f"Kafka at {servers} can never take a record of this {what}: {_text(exc)}"
        ) from exc
    except _TRANSIENT as exc:
        raise LogUnavailable(
            f"cannot {what}: no answer from Kafka at {servers} ({_text(exc)}); check"
            " log.kafka.bootstrap_servers"
        ) from exc
    except kafka_errors.KafkaError as exc:
        raise LogError(f"Kafka at {servers} failed to {what}: {_text(exc)}") from exc


class _Refusals(logging.Handler):
    """Keeps the last failure of login or encryption that the client met while connecting: it only logs it,
    and then reports a timeout.

    After a wrong password the broker closes the connection, and the client mostly sees that instead of the
    broker's answer.
    """

    def __init__(self, sasl: bool) -> None:
        super().__init__(logging.WARNING)
        self._sasl = sasl
        self.last: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, _AUTH):
                self.last = argument
            elif isinstance(argument, kafka_errors.KafkaConnectionError) and "[SSL: " in str(argument):
                self.last = ssl.SSLError(str(argument))
            elif (
                self._sasl
                and isinstance(argument, kafka_errors.KafkaConnectionError)
                and "socket disconnected" in str(argument)
            ):
                self.last = kafka_errors.SaslAuthenticationFailedError(
                    "the broker closed the connection during the login"
                )

    def __enter__(self) -> Self:
        _CLIENT_LOGGER.addHandler(self)
        return self

    def __exit__(self, *exc: object) -> None:
        _CLIENT_LOGGER.removeHandler(self)


def ms(seconds: float) -> int:
    """Whole milliseconds, as the client wants them."""
    return int(seconds * 1000)


def _text(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}".removesuffix(": ")
