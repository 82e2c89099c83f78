"""What docs/events.md shows, run as it stands there against a real broker."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from streams.codec import Codec
from streams.events import StudentOutput
from streams.testing.broker import KafkaServer
from streams.topics import TOPICS

DOCUMENT = (Path(__file__).parents[3] / "docs" / "events.md").read_text()


@pytest.mark.kafka
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_every_documented_way_to_write_an_answer_gives_an_event(
    kafka_server: KafkaServer, open_kafka: Callable[..., Any]
) -> None:
    pytest.importorskip("confluent_kafka", reason="pip install confluent-kafka")
    log = open_kafka(bootstrap_servers=kafka_server.bootstrap)
    log.create_topics(TOPICS)
    producers = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(producers) == 2 and all(len(code.strip().splitlines()) <= 10 for code in producers)
    for code in producers:
        exec(code, {"SERVERS": kafka_server.bootstrap})
    envelope = re.search(r'^( +\{"specversion".*?\}\})$', DOCUMENT, re.DOTALL | re.MULTILINE)
    assert envelope
    producer = KafkaProducer(bootstrap_servers=kafka_server.bootstrap)
    producer.send("student-outputs", textwrap.dedent(envelope[1]).encode()).get(timeout=30)
    producer.close()
    events = [Codec().decode(record) for record in log.read("student-outputs")]
    assert {(type(event), event.event_id) for event in events} == {
        (StudentOutput, f"chat-7/{number}") for number in (1, 2, 3)
    }
