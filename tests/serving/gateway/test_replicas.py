from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.gateway.balance import Balancer
from serving.http import HttpServer
from serving.routes import Replica, drained
from tests.serving.gateway.site import Heard, crowd, loaded, outputs, question, site, write_route

A, B = Replica(url="http://a"), Replica(url="http://b")


def test_the_replica_with_the_fewest_requests_is_asked() -> None:
    balancer = Balancer(1, 30)
    picked = [balancer.pick([A, B], "m", ()) for _ in range(2)]
    assert set(picked) == {A.url, B.url}  # equal ones take turns
    balancer.began(A.url)
    assert [balancer.pick([A, B], "m", ()) for _ in range(3)] == [B.url] * 3


def test_a_failing_replica_is_left_out_ever_longer_and_the_last_one_is_still_tried() -> None:
    now = [0.0]
    balancer = Balancer(1, 5, lambda: now[0])
    balancer.pick([A, B], "m", ())
    for pause in (1, 2, 4, 5):
        balancer.failed(A.url)
        now[0] += pause - 0.01
        assert {balancer.pick([A, B], "m", ()) for _ in range(4)} == {B.url}
        now[0] += 0.02
        assert {balancer.pick([A, B], "m", ()) for _ in range(4)} == {A.url, B.url}
    balancer.failed(A.url)
    balancer.failed(B.url)
    assert balancer.pick([A, B], "m", ()) is not None
    balancer.worked(A.url, "m")
    assert {balancer.pick([A, B], "m", ()) for _ in range(4)} == {A.url}


def test_a_lost_model_leaves_the_replica_to_the_others() -> None:
    balancer = Balancer(1, 5)
    balancer.pick([A, B], "m", ())
    balancer.lost(A.url, "m")
    assert {balancer.pick([A, B], "m", ()) for _ in range(4)} == {B.url}
    assert {balancer.pick([A, B], "other", ()) for _ in range(4)} == {A.url, B.url}


def test_no_request_fails_and_no_answer_is_mixed_over_swaps_under_load(tmp_path: Path) -> None:
    """32 users, half of them streaming, while the route changes four times and each version that is drained
    is unloaded."""
    replicas = [loaded(1, gap_s=0.002), loaded(1, gap_s=0.002)]
    heard: list[Heard] = []
    over = threading.Event()
    with site(tmp_path, *replicas) as running:

        def answers_of(version: int) -> None:
            while not any(f"student-v{version}" in answer.models for answer in heard[-64:]):
                time.sleep(0.05)

        def deploy() -> None:
            for serving, version in ((1, 2), (2, 3), (3, 2), (2, 4)):
                answers_of(serving)
                before = running.gateway.app.look().shares[0].model
                for replica in replicas:
                    replica.models.add(f"student-v{version}")
                revision = running.route(version)
                while not drained(tmp_path, revision, before):
                    time.sleep(0.05)
                for replica in replicas:
                    replica.models.remove(before)
            answers_of(4)
            over.set()

        deployer = threading.Thread(target=deploy)
        deployer.start()
        _, failed = asyncio.run(crowd(running.gateway.url, 32, over.is_set, heard=heard))
        deployer.join()
    assert not failed and len(heard) > 30
    assert all(answer.whole and len(answer.models) == 1 for answer in heard)
    assert {model for answer in heard for model in answer.models} == {f"student-v{n}" for n in range(1, 5)}
    assert all(answer.text.count(f"{model} says") == 4 for answer in heard for model in answer.models)
    answers = [(event.served.response_id, event) for event in outputs(tmp_path) if event.served]
    assert Counter(response_id for response_id, _ in answers) == Counter(each.response_id for each in heard)
    captured = dict(answers)
    for answer in heard:
        assert {f"student-v{captured[answer.response_id].student_version}"} == answer.models


def test_the_version_is_the_one_that_answered_not_the_one_that_was_asked_for(tmp_path: Path) -> None:
    replica = loaded(1, 2)
    with site(tmp_path, replica) as running:
        running.route(2)
        running.ask()
        running.route(1)
        running.ask()
        replica.says = "student-v2"
        running.ask()
        replica.says = "somebody-else"
        assert running.ask().status_code == 200
    assert [event.student_version for event in outputs(tmp_path)] == [2, 1, 2]
    assert running.gateway.capture is not None
    counts = running.gateway.capture.counts
    assert (counts["another version answered"], counts["unknown version"]) == (2, 1)


def test_canary_sessions_stay_with_their_version(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, 2)) as running:
        running.route(1, 2, weights=(0.5, 0.5))
        models = {
            user: {running.ask(user=user).json()["model"] for _ in range(3)} for user in map(str, range(12))
        }
    assert all(len(names) == 1 for names in models.values())
    assert set.union(*models.values()) == {"student-v1", "student-v2"}


def test_another_replica_answers_where_one_is_broken_or_has_lost_the_model(tmp_path: Path) -> None:
    broken, lost, well = loaded(1, statuses=[500, 503, 0] * 9), loaded(7), loaded(1)
    with site(tmp_path, broken, lost, well, eject_s=0.01, max_eject_s=0.01) as running:
        dead = socket.create_server(("127.0.0.1", 0))
        port = dead.getsockname()[1]
        dead.close()
        write_route(tmp_path, [*running.urls, f"http://127.0.0.1:{port}"], 1)
        assert {running.ask(stream=number % 2 == 0).status_code for number in range(12)} == {200}
    assert broken.bodies and lost.bodies and well.ended == 12
    assert len(outputs(tmp_path)) == 12


def test_where_no_replica_answers_the_error_says_so_and_tells_no_details(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, statuses=[500]), loaded(1, statuses=[503])) as running:
        response = running.ask()
        assert response.status_code == 502 and response.json()["error"]["code"] == "upstream_error"
        assert "secret detail" not in response.text
        assert running.ask().status_code == 200
        assert running.gateway.desk.failures == {"student-v1": 1}


def test_a_request_that_the_student_refuses_is_told_to_its_user(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, statuses=[400])) as running:
        response = running.ask()
        assert response.status_code == 400 and "secret detail" in response.text
    assert not outputs(tmp_path)


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (422, {"detail": [{"msg": "n is too large"}]}, (422, "invalid_request", "n is too large")),
        (400, {"object": "error", "message": "too long"}, (400, "invalid_request", "too long")),
        (302, {}, (502, "upstream_error", "status 302")),
    ],
)
def test_errors_in_other_words_reach_the_user_in_openais(
    tmp_path: Path, status: int, body: dict[str, Any], told: tuple[int, str, str]
) -> None:
    with site(tmp_path, loaded(1, statuses=[status], instead=body)) as running:
        response = running.ask()
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == told[:2] and told[2] in error["message"]


@pytest.mark.parametrize("choices", [5, {"a": 1}, "x", None, [[]]])
def test_choices_of_another_shape_are_passed_on_and_not_captured(tmp_path: Path, choices: object) -> None:
    body = {"id": "r1", "model": "student-v1", "choices": choices}
    with site(tmp_path, loaded(1, instead=body)) as running:
        response = running.ask()
    assert (response.status_code, response.json()) == (200, body)
    assert not (tmp_path / "log.db").exists() or not outputs(tmp_path)


def test_a_replica_that_does_not_answer_in_time(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, latency_s=5), upstream_timeout_s=0.2) as running:
        assert running.ask().json()["error"]["code"] == "upstream_timeout"


def test_a_stream_that_is_cut_ends_in_an_error_and_is_not_captured(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, cut_at=2)) as running:
        response = running.ask(stream=True)
        assert "stream_cut" in response.text and "[DONE]" not in response.text
        assert response.text.count("student-v1 says") == 2
        assert running.gateway.desk.failures == {"student-v1": 1}
    assert not outputs(tmp_path)


def test_a_user_who_leaves_ends_the_replicas_work(tmp_path: Path) -> None:
    replica = loaded(1, chunks=1000, gap_s=0.01)
    with site(tmp_path, replica) as running:
        url = f"{running.gateway.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=question(stream=True)) as response:
            next(response.iter_bytes())
        deadline = time.monotonic() + 10
        while not replica.broken_off and time.monotonic() < deadline:
            time.sleep(0.02)
        assert replica.broken_off == 1
        assert running.gateway.desk.left == {"user left": 1}
        assert not +running.gateway.desk.in_flight
    assert not outputs(tmp_path)


def test_a_user_who_does_not_read_is_cut_off(tmp_path: Path) -> None:
    replica = loaded(1, chunks=3000, text="x" * 20_000)
    with site(tmp_path, replica, client_timeout_s=0.3) as running:
        host, port = "127.0.0.1", int(running.gateway.url.rsplit(":", 1)[1])
        data = b'{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "?"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {len(data)}\r\n\r\n"
        with socket.create_connection((host, port)) as connection:
            connection.sendall(head.encode() + data)
            deadline = time.monotonic() + 10
            while not running.gateway.desk.left and time.monotonic() < deadline:
                time.sleep(0.02)
            assert running.gateway.desk.left == {"user too slow": 1}
            assert running.ask(stream=False).status_code == 200


def test_more_requests_than_allowed_are_turned_away(tmp_path: Path) -> None:
    with site(tmp_path, loaded(1, latency_s=2.0), max_in_flight=2) as running:
        asking = [threading.Thread(target=running.ask) for _ in range(2)]
        for thread in asking:
            thread.start()
        time.sleep(0.8)
        response = running.ask()
        for thread in asking:
            thread.join()
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"


def test_a_connection_that_a_replica_closed_meanwhile_is_no_failure(tmp_path: Path) -> None:
    replica = loaded(1)
    with site(tmp_path, replica) as running, HttpServer(replica, "127.0.0.1", 0) as first:
        write_route(tmp_path, [first.url], 1)
        assert running.ask().status_code == 200
        port = first.port
        first.stop()
        with HttpServer(replica, "127.0.0.1", port):
            assert running.ask().status_code == 200
