"""What only a real broker can show: errors at the start, logins, a broker that dies, and the whole way from
record to profile."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from pydantic import SecretStr, ValidationError

from streams import dead_letters
from streams.codec import encode
from streams.consume import ConsumeLoop, ConsumeSettings, Effects
from streams.continuity import Continuity, TopicChanged
from streams.kafka.settings import KafkaSettings
from streams.log import LogError, LogUnavailable, MemberFenced, Outgoing, TopicMissing
from streams.state.outbox import OutboxRelay
from streams.state.store import StateStore
from streams.testing.broker import KafkaServer, KafkaServerError
from streams.testing.synthetic import diagnose, expected_buckets, output, traffic
from streams.topics import TOPICS, TopicSpec
from tests.warm import run_warm

# kafka-python leaves sockets of failed connection attempts to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
OpenKafka = Callable[..., Any]
USER = {"security_protocol": "SASL_PLAINTEXT", "sasl_username": "loop", "start_timeout_s": 8}
REFUSED_S = 3  # the client tries again until its time is up, then says why it was refused


@pytest.mark.kafka
def test_a_broker_that_is_away_at_the_start_is_named_within_the_bound(open_kafka: OpenKafka) -> None:
    began = time.monotonic()
    with pytest.raises(LogUnavailable, match=r"localhost:1 .*log\.kafka\.bootstrap_servers"):
        open_kafka(bootstrap_servers="localhost:1", start_timeout_s=2)
    assert time.monotonic() - began < 10


@pytest.mark.kafka
def test_a_worker_says_where_it_connects_before_it_waits(tmp_path: Path) -> None:
    away = {
        "SKILLLOOP_LOG__KIND": "kafka",
        "SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS": "localhost:1",
        "SKILLLOOP_LOG__KAFKA__START_TIMEOUT_S": "2",
    }
    done = run_warm(
        Path(sys.executable).parent / "skillloop", "up", "--once", "--dir", tmp_path, environ=away
    )
    said = [json.loads(line)["message"] for line in done.stderr.splitlines() if line.startswith("{")]
    assert done.returncode == 1 and "connecting to Kafka at localhost:1, for 2 s at most" in said, done.stderr


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_the_right_password_is_let_in(
    kafka_server: KafkaServer, open_kafka: OpenKafka, mechanism: str
) -> None:
    log = open_kafka(
        bootstrap_servers=kafka_server.sasl_bootstrap,
        sasl_mechanism=mechanism,
        sasl_password=SecretStr("s3cret"),
        **USER,
    )
    with pytest.raises(TopicMissing):
        log.end_offsets("nowhere")


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told_and_not_shown(
    kafka_server: KafkaServer, open_kafka: OpenKafka, mechanism: str
) -> None:
    with pytest.raises(LogError, match=r"refused.*log\.kafka\.sasl_password") as caught:
        open_kafka(
            bootstrap_servers=kafka_server.sasl_bootstrap,
            sasl_mechanism=mechanism,
            sasl_password=SecretStr("wr0ng"),
            **USER | {"start_timeout_s": REFUSED_S},
        )
    assert "wr0ng" not in str(caught.value)


@pytest.mark.kafka
def test_an_encrypted_login_needs_a_certificate_that_is_trusted(
    kafka_server: KafkaServer, open_kafka: OpenKafka, certificate: Path
) -> None:
    known = {
        **USER,
        "bootstrap_servers": kafka_server.tls_bootstrap,
        "security_protocol": "SASL_SSL",
        "sasl_password": SecretStr("s3cret"),
    }
    log = open_kafka(**known, sasl_mechanism="SCRAM-SHA-512", ssl_cafile=certificate)
    with pytest.raises(TopicMissing):
        log.end_offsets("nowhere")
    with pytest.raises(LogError, match=r"certificate verify failed.*log\.kafka\.ssl_cafile"):
        open_kafka(**known | {"start_timeout_s": REFUSED_S}, sasl_mechanism="SCRAM-SHA-512")


@pytest.mark.kafka
def test_topics_are_created_once_with_their_settings(
    kafka_server: KafkaServer, open_kafka: OpenKafka
) -> None:
    log = open_kafka(bootstrap_servers=kafka_server.bootstrap)
    specs = [replace(spec, name=f"made.{spec.name}") for spec in TOPICS]
    assert sorted(log.create_topics(specs)) == sorted(spec.name for spec in specs)
    assert log.create_topics(specs) == []
    assert {spec.name: len(log.end_offsets(spec.name)) for spec in specs} == {
        spec.name: spec.partitions for spec in specs
    }


@pytest.mark.kafka
def test_a_record_larger_than_the_topic_takes_is_refused_and_the_next_one_passes(
    kafka_server: KafkaServer, open_kafka: OpenKafka
) -> None:
    log = open_kafka(bootstrap_servers=kafka_server.bootstrap)
    log.create_topics([TopicSpec("small", 1, -1, max_bytes=1000)])
    with pytest.raises(LogError, match=r"too large|TooLarge"):
        log.append([Outgoing("small", b"k", b"x" * 5000)])
    log.append([Outgoing("small", b"k", b"x")])
    assert [r.value for r in log.read("small")] == [b"x"]


@pytest.mark.kafka
def test_what_a_producer_took_back_is_not_read(kafka_server: KafkaServer, open_kafka: OpenKafka) -> None:
    log = open_kafka(bootstrap_servers=kafka_server.bootstrap)
    log.create_topics([TopicSpec("taken-back", 1, -1)])
    producer = KafkaProducer(
        bootstrap_servers=kafka_server.bootstrap, transactional_id="taken-back", compression_type="gzip"
    )
    producer.init_transactions()
    ends = {
        b"kept": producer.commit_transaction,
        b"taken back": producer.abort_transaction,
        b"last": producer.commit_transaction,
    }
    for value, end in ends.items():
        producer.begin_transaction()
        producer.send("taken-back", value)
        producer.flush()
        end()
    producer.close()
    assert [(r.offset, r.value) for r in log.read("taken-back")] == [(0, b"kept"), (4, b"last")]
    consumer = log.consumer("taken-back", ["taken-back"])
    found: list[bytes] = []
    deadline = time.monotonic() + 30
    while b"last" not in found and time.monotonic() < deadline:
        found += [r.value for r in consumer.poll(1, 0.5)]
    assert found + [r.value for r in consumer.poll(1, 0.5)] == [b"kept", b"last"]
    consumer.close()


@pytest.mark.kafka
def test_no_partition_stays_alone_when_a_worker_dies_while_giving_it_up(
    kafka_server: KafkaServer, open_kafka: OpenKafka
) -> None:
    """A static member that dies between the two steps of a cooperative rebalance comes back without the
    second one."""
    topic = TopicSpec("adopted", 4, -1)

    def join(name: str) -> Any:
        log = open_kafka(bootstrap_servers=kafka_server.bootstrap, instance=name, session_timeout_s=10)
        log.create_topics([topic])
        return log.consumer("adopters", [topic.name])

    def poll_until(members: list[Any], partitions: list[int]) -> list[int]:
        end = time.monotonic() + 60
        while (
            found := [len(member.assignment()) for member in members]
        ) != partitions and time.monotonic() < end:
            for member in members:
                member.poll(10, 0.1)
        return found

    dying = join("a")
    assert poll_until([dying], [4]) == [4]
    other = join("b")
    while len(dying.assignment()) == 4:  # until it has given two up; it never polls again
        other.poll(10, 0.01)
        dying.poll(10, 0.01)
    back = join("a")
    assert poll_until([back, other], [2, 2]) == [2, 2]
    for member in (dying, back, other):
        member.close()


@pytest.mark.kafka
def test_two_workers_under_one_name_are_told_apart(kafka_server: KafkaServer, open_kafka: OpenKafka) -> None:
    first, second = (
        open_kafka(bootstrap_servers=kafka_server.bootstrap, instance="same", session_timeout_s=6)
        for _ in range(2)
    )
    first.create_topics([TopicSpec("named", 2, -1)])
    first.append([Outgoing("named", str(n).encode(), b"x") for n in range(20)])
    one = first.consumer("named-group", ["named"])
    read = [record for _ in range(50) for record in one.poll(100, 0.1)]
    one.commit({record.partition: record.offset + 1 for record in read})
    two = second.consumer("named-group", ["named"])
    with pytest.raises(MemberFenced, match="instance name 'same'"):
        for _ in range(300):
            one.poll(1, 0.1)
            two.poll(1, 0.1)
    one.close()
    two.close()


@pytest.mark.kafka
def test_from_record_to_profile_with_a_broker_that_dies(
    tmp_path: Path, open_kafka: OpenKafka, kafka_free: KafkaServer
) -> None:
    """The broker is killed in the middle and comes back: nothing is lost, nothing counted twice."""
    sent = traffic(seed=11, events=400)
    times = {"request_timeout_s": 3, "delivery_timeout_s": 4, "session_timeout_s": 6}
    log = open_kafka(bootstrap_servers=kafka_free.bootstrap, **times)
    feeder = open_kafka(bootstrap_servers=kafka_free.bootstrap)
    feeder.create_topics([TopicSpec("student-outputs", 4, -1), TopicSpec("student-outputs.dlq", 1, -1)])
    feeder.append(sent.records)
    store = StateStore(f"sqlite:///{tmp_path}/state.db")

    def counts(events: Any) -> Effects:
        return replace(diagnose(events), outbox=())

    loop = ConsumeLoop(
        log, store, counts, ConsumeSettings("group", ("student-outputs",), max_records=50, backoff_s=0.1)
    )
    done = 0
    while done < 150:
        done += loop.step()
    kafka_free.kill()
    for _ in range(3):
        loop.step()
    with pytest.raises(LogUnavailable):
        log.append(sent.records[:1])
    kafka_free.start()
    deadline = time.monotonic() + 90
    while sum(store.offsets("group").values()) < len(sent.records) and time.monotonic() < deadline:
        loop.step()
    OutboxRelay(store, log).step()
    letters = [letter.letter_id for letter in dead_letters.read_all(log, "student-outputs")]
    assert store.buckets() == expected_buckets(sent.events)
    assert len(letters) == len(set(letters)) == sent.poisoned
    loop.close()
    store.close()


def test_settings_mask_secrets_and_must_be_complete() -> None:
    settings = KafkaSettings(
        security_protocol="SASL_SSL",
        sasl_username="u",
        sasl_password=SecretStr("hidden"),
        ssl_password=SecretStr("hidden"),
    )
    assert "hidden" not in repr(settings) + str(settings.model_dump())
    assert settings.security()["sasl_plain_password"] == "hidden"
    with pytest.raises(ValidationError, match="needs sasl_username"):
        KafkaSettings(security_protocol="SASL_SSL")
    with pytest.raises(ValidationError, match="must be above"):
        KafkaSettings(delivery_timeout_s=1, request_timeout_s=2)


def test_no_kafka_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(KafkaServerError, match=r"formatting|Java"):
        KafkaServer(home=tmp_path)


@pytest.mark.kafka
def test_a_broker_that_does_not_start_shows_its_output(kafka_server: KafkaServer, tmp_path: Path) -> None:
    assert kafka_server
    broken = KafkaServer(folder=tmp_path)
    (tmp_path / "server.properties").write_text("process.roles=nothing\n")
    with pytest.raises(KafkaServerError, match=r"did not start"):
        broken.start(30)


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_records_in_every_codec_are_read(kafka_server: KafkaServer, open_kafka: Any, codec: str) -> None:
    log = open_kafka(bootstrap_servers=kafka_server.bootstrap)
    topic = f"codec-{codec}"
    log.create_topics([TopicSpec(topic, 1, -1)])
    producer = KafkaProducer(bootstrap_servers=kafka_server.bootstrap, compression_type=codec, linger_ms=50)
    for number in range(20):
        producer.send(topic, b"value %d" % number)
    producer.close()
    assert [record.value for record in log.read(topic)] == [b"value %d" % number for number in range(20)]


@pytest.mark.kafka
@pytest.mark.parametrize("anew", [20, 200])
def test_a_topic_made_anew_has_another_identity_and_stops_its_reader(
    kafka_free: KafkaServer, open_kafka: Any, tmp_path: Path, anew: int
) -> None:
    """A reader that is at it counts nothing of the new one, though that is longer than the old one was."""
    store = StateStore(f"sqlite:///{tmp_path}/state.db")
    log = open_kafka(bootstrap_servers=kafka_free.bootstrap, session_timeout_s=6)
    specs = [TopicSpec("student-outputs", 2, -1), TopicSpec("student-outputs.dlq", 1, -1)]
    log.create_topics(specs)
    first = log.topic_id("student-outputs")
    log.append([encode(output(n)) for n in range(50)])
    consuming = ConsumeLoop(log, store, diagnose, ConsumeSettings("g", ("student-outputs",)))
    drain(consuming, 50)
    admin = KafkaAdminClient(bootstrap_servers=kafka_free.bootstrap)
    admin.delete_topics(["student-outputs"])
    for _ in range(5):
        consuming.step()
    other = open_kafka(bootstrap_servers=kafka_free.bootstrap)
    other.create_topics(specs)
    other.append([encode(output(100 + n)) for n in range(anew)])
    admin.close()
    assert log.topic_id("student-outputs") != first
    with pytest.raises(TopicChanged, match="skillloop topics adopt"):
        drain(consuming, 20)
    assert counted(store) == 50
    consuming.close()
    Continuity(log, store, "g").adopt("student-outputs")
    again = ConsumeLoop(log, store, diagnose, ConsumeSettings("g", ("student-outputs",)))
    drain(again, anew)
    again.close()
    assert counted(store) == 50 + anew


def counted(store: StateStore) -> int:
    return sum(counts[0] for key, counts in store.buckets().items() if key[2] == "*")


def drain(consuming: ConsumeLoop, count: int, within_s: float = 40.0) -> None:
    """Step until so many records have been processed."""
    deadline, done = time.monotonic() + within_s, 0
    while done < count:
        done += consuming.step()
        assert time.monotonic() < deadline, f"{done} of {count} records"
