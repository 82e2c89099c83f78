"""What docs/events.md shows, run as it stands there against a real broker."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer

from streams.codec import Codec
from streams.events import FeedbackGiven, StudentOutput
from streams.testing.broker import KafkaServer
from streams.topics import TOPICS
from tests.serving.gateway.site import events, outputs, site

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
    found = [Codec().decode(record) for record in log.read("student-outputs")]
    assert {(type(event), event.event_id) for event in found} == {
        (StudentOutput, f"chat-7/{number}") for number in (1, 2, 3)
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_documented_curl_gives_an_answer_and_its_feedback(tmp_path: Path) -> None:
    (script,) = re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(script.splitlines()) <= 10
    with site(tmp_path) as at:
        code = script.replace("mathbot", "demo")
        line = ["bash", "-euc", code]
        done = subprocess.run(
            line, env=os.environ | {"GATEWAY": at.gateway.url}, capture_output=True, text=True, check=True
        )
        assert "error" not in done.stdout.casefold(), done.stdout
        at.stop()
    (answer,) = outputs(tmp_path)
    given = {event.feedback for event in events(tmp_path, "feedback") if isinstance(event, FeedbackGiven)}
    assert answer.question == "What is 3 + 4?" and given | {answer.feedback} >= {"down"}
