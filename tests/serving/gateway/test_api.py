from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.settings import CaptureSettings
from streams.events import FeedbackGiven
from tests.serving.gateway.site import Site, events, loaded, outputs, question, site


def test_an_answer_reaches_the_user_and_the_log(tmp_path: Path) -> None:
    replica = loaded(1)
    with site(tmp_path, replica) as running:
        response = running.ask(user="ann", temperature=0.5)
    body = response.json()
    assert response.status_code == 200 and body["model"] == "student-v1"
    assert replica.bodies[0] == question(user="ann", temperature=0.5) | {"model": "student-v1"}
    (event,) = outputs(tmp_path)
    assert (event.student, event.student_version, event.session) == ("demo", 1, "ann")
    assert (event.question, event.answer) == ("2 + 2?", body["choices"][0]["message"]["content"])
    assert event.served is not None and event.served.response_id == body["id"]
    assert (event.served.finish_reason, event.served.completion_tokens) == ("stop", 4)
    assert 0 < event.served.latency_s < 10


@pytest.mark.parametrize("wants_usage", [False, True])
def test_a_stream_is_passed_on_as_it_comes_and_captured_whole(tmp_path: Path, wants_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if wants_usage else {}
    with site(tmp_path) as running:
        response = running.ask(stream=True, **options)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n") and response.text.count("student-v1 says") == 4
    assert ('"usage"' in response.text) is wants_usage
    (event,) = outputs(tmp_path)
    assert event.answer == "".join(f"student-v1 says {number}. " for number in range(4))
    assert event.served is not None and event.served.completion_tokens == 4
    assert event.served.first_byte_s is not None and event.served.first_byte_s <= event.served.latency_s


def test_text_completions_and_several_turns(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "second"}]},
    ]
    with site(tmp_path) as running:
        assert running.ask(messages=turns).status_code == 200
        url = f"{running.gateway.url}/v1/completions"
        assert httpx.post(url, json={"model": "demo", "prompt": "third"}).status_code == 200
    assert [event.question for event in outputs(tmp_path)] == ["second", "third"]
    assert running.replicas[0].bodies[0]["messages"] == turns


def test_a_tool_call_is_passed_on_and_the_answer_after_it_captured(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    with site(tmp_path) as running:
        message = running.ask(tools=tools).json()["choices"][0]["message"]
        turns = [*question()["messages"], message, {"role": "tool", "tool_call_id": "call-1", "content": "4"}]
        assert running.ask(tools=tools, messages=turns).status_code == 200
    assert message["tool_calls"][0]["function"]["name"] == "look"
    assert [event.question for event in outputs(tmp_path)] == ["2 + 2?"]
    assert running.gateway.capture is not None and running.gateway.capture.counts["tool call"] == 1


def test_models_are_the_stable_name_alone(tmp_path: Path) -> None:
    with site(tmp_path) as running, httpx.Client(base_url=running.gateway.url) as client:
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["demo"]
        assert client.get("/v1/models/demo").json()["object"] == "model"
        assert client.get("/v1/models/student-v1").status_code == 404


def _error(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text and "File " not in response.text
    return response.status_code, error["code"]


@pytest.mark.parametrize(
    ("path", "content", "told"),
    [
        ("/v1/chat/completions", b'{"model": "gpt-4", "messages": []}', (404, "model_not_found")),
        ("/v1/chat/completions", b'{"messages": []}', (404, "model_not_found")),
        ("/v1/chat/completions", b'{"model": "student-v1", "messages": []}', (404, "model_not_found")),
        ("/v1/chat/completions", b'{"model": ', (400, "invalid_json")),
        ("/v1/chat/completions", b"[" * 50_000, (400, "invalid_json")),
        ("/v1/chat/completions", b"\xff\xfe", (400, "invalid_json")),
        ("/v1/chat/completions", b'["model"]', (400, "invalid_json")),
        ("/v1/chat/completions", b'{"model": "demo", "stream": "yes"}', (400, "invalid_value")),
        ("/v1/chat/completions", b"x" * 70_000, (413, "request_too_large")),
        ("/v1/chat/completions", b'{"model": "demo", "n": 129}', (400, "invalid_value")),
        (
            "/v1/completions",
            b'{"model": "demo", "prompt": ["a", "b"], "best_of": 65}',
            (400, "invalid_value"),
        ),
        (
            "/v1/completions",
            b'{"model": "demo", "prompt": [' + b"[1]," * 128 + b"[1]]}",
            (400, "invalid_value"),
        ),
        ("/v1/feedback", b'{"id": "chatcmpl-none", "feedback": "up"}', (404, "response_not_found")),
        ("/v1/feedback", b'{"id": "chatcmpl-none", "feedback": "fine"}', (400, "invalid_value")),
        ("/v1/feedback", b'{"id": 7, "feedback": "up"}', (400, "invalid_value")),
        ("/v1/load_lora_adapter", b"{}", (404, "not_found")),
        ("/v1/chat/completions/../load_lora_adapter", b"{}", (404, "not_found")),
        ("/v1/chat/completions/", b"{}", (404, "not_found")),
        ("/adapters", b"{}", (404, "not_found")),
        ("/v1/models", b"{}", (405, "method_not_allowed")),
    ],
)
def test_bad_requests_get_errors_as_openai_has_them(
    api: Site, path: str, content: bytes, told: tuple[int, str]
) -> None:
    assert _error(httpx.post(api.gateway.url + path, content=content)) == told
    assert not api.replicas[0].bodies


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with site(tmp_path_factory.mktemp("api"), max_body_bytes=65_536, client_timeout_s=0.3) as running:
        yield running


def _raw(port: int, data: bytes, wait: bool = True) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(data)
        received = b""
        while wait and (part := connection.recv(65536)):
            received += part
            if b"\r\n\r\n" in received and received.endswith(b"}"):
                break
        return received


CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (CHAT + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (CHAT + b"content-length: 2\r\ncontent-length: 4\r\n\r\n{}", b"400"),
        (CHAT + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", b"400"),
        (CHAT + b"content-length: +2\r\n\r\n{}", b"400"),
        (CHAT + b"x-a: b\nx-c : d\r\ncontent-length: 2\r\n\r\n{}", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (CHAT + b"content-length: 900000\r\n\r\n{}", b"413"),
        (CHAT + b"content-length: 100\r\n\r\n{", b"408"),
        (CHAT + b"transfer-encoding: chunked\r\n\r\n" + b"4000\r\n" + b"x" * 0x4000 + b"\r\n", b"408"),
    ],
)
def test_headers_that_smuggle_and_bodies_that_do_not_arrive(api: Site, data: bytes, status: bytes) -> None:
    received = _raw(int(api.gateway.url.rsplit(":", 1)[1]), data)
    assert received.split(b" ", 2)[1] == status and b'"error"' in received
    assert not api.replicas[0].bodies


CHUNKED = CHAT + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "begin",
    [CHAT + b"x-long: ", CHUNKED + b"1;x=", CHUNKED + b"1\r\nx\r\n0\r\nx-long: ", b"POST /", b"\r\n\r\n"],
    ids=["header", "chunk extension", "trailer", "path", "nothing"],
)
def test_what_is_no_body_has_an_end(api: Site, begin: bytes) -> None:
    with socket.create_connection(("127.0.0.1", int(api.gateway.url.rsplit(":", 1)[1])), 10) as connection:
        with pytest.raises(ConnectionError):
            connection.sendall(begin)
            for _ in range(2_000):
                connection.sendall((b"\r\n" if begin == b"\r\n\r\n" else b"x") * 10_000)
    assert not api.replicas[0].bodies


def test_a_trailer_is_no_header(tmp_path: Path) -> None:
    with site(tmp_path, api_keys=["right"]) as running:
        body = json.dumps(question()).encode()
        data = CHUNKED + b"%x\r\n%s\r\n0\r\nauthorization: Bearer right\r\n\r\n" % (len(body), body)
        assert b"401" in _raw(int(running.gateway.url.rsplit(":", 1)[1]), data)


def test_nonsense_behind_a_question_is_not_mixed_into_its_answer(tmp_path: Path) -> None:
    with site(tmp_path) as running:
        body = json.dumps(question()).encode()
        data = CHAT + b"content-length: %d\r\n\r\n%s" % (len(body), body)
        received = _raw(int(running.gateway.url.rsplit(":", 1)[1]), data + b"nonsense\r\n\r\n")
    assert received.count(b"HTTP/1.1") == 1


def test_a_chunked_body_is_limited_too(api: Site) -> None:
    response = httpx.post(f"{api.gateway.url}/v1/chat/completions", content=iter([b"x" * 40_000] * 2))
    assert _error(response) == (413, "request_too_large")


def test_headers_of_users_end_here(tmp_path: Path) -> None:
    with site(tmp_path) as running:
        headers = {
            "authorization": "Bearer mine",
            "x-request-id": "mine",
            "cookie": "a=b",
            "x-http-method": "DELETE",
        }
        url = f"{running.gateway.url}/v1/chat/completions"
        assert httpx.post(url, json=question(), headers=headers).status_code == 200
    (seen,) = running.replicas[0].headers
    assert not {b"authorization", b"cookie", b"x-http-method"} & {name for name, _ in seen}
    assert b"mine" not in b"".join(value for _, value in seen)


def test_a_stream_of_null_is_none(tmp_path: Path) -> None:
    with site(tmp_path) as running:
        response = running.ask(stream=None)
    assert response.json()["model"] == "student-v1" and len(outputs(tmp_path)) == 1


def test_keys_are_asked_for_where_there_are_some(tmp_path: Path) -> None:
    with site(tmp_path, api_keys=("right",), upstream_api_key="inner") as running:
        url = f"{running.gateway.url}/v1/chat/completions"
        values = ("", "Bearer wrong", "right", "Basic right", "Bearer", "Bearer right", "bearer right")
        statuses = [
            httpx.post(url, json=question(), headers={"authorization": value}).status_code for value in values
        ]
        statuses.append(httpx.post(url, json=question()).status_code)
    assert statuses == [401, 401, 401, 401, 401, 200, 200, 401]
    assert (b"authorization", b"Bearer inner") in running.replicas[0].headers[0]


def test_without_a_route_nothing_is_served(tmp_path: Path) -> None:
    with site(tmp_path, deployed=False) as running:
        assert _error(running.ask()) == (503, "no_route")
        running.route(1)
        assert running.ask().status_code == 200


def test_a_damaged_table_leaves_the_last_good_one(tmp_path: Path) -> None:
    with site(tmp_path) as running:
        assert running.ask().status_code == 200
        (tmp_path / "routes.json").write_text("{")
        assert running.ask().status_code == 200


def test_feedback_travels_with_an_answer_that_waits(tmp_path: Path) -> None:
    with site(tmp_path, captured=CaptureSettings(feedback_wait_s=60)) as running:
        response_id = running.ask().json()["id"]
        running.ask()
        body = {"id": response_id, "feedback": "down"}
        assert httpx.post(f"{running.gateway.url}/v1/feedback", json=body).json()["status"] == "recorded"
    assert [event.feedback for event in outputs(tmp_path)] == ["down", None]
    assert not events(tmp_path, "feedback")


def test_feedback_that_comes_later_is_an_event_of_its_own(tmp_path: Path) -> None:
    with site(tmp_path) as running:
        response_id = running.ask().json()["id"]
        while not (tmp_path / "log.db").exists() or not outputs(tmp_path):
            pass
        body = {"id": response_id, "feedback": "up"}
        assert httpx.post(f"{running.gateway.url}/v1/feedback", json=body).status_code == 200
    (given,), (answer,) = events(tmp_path, "feedback"), outputs(tmp_path)
    assert isinstance(given, FeedbackGiven) and given.feedback == "up"
    assert (given.causation_id, given.response_id) == (answer.event_id, response_id)


@pytest.mark.parametrize(
    ("path", "options", "param"),
    [
        ("/v1/chat/completions", {"prompt_logprobs": 0}, "prompt_logprobs"),
        ("/v1/completions", {"prompt_logprobs": 5}, "prompt_logprobs"),
        ("/v1/completions", {"echo": True, "logprobs": 0}, "echo"),
        ("/v1/chat/completions", {"echo": True, "logprobs": True}, "echo"),
    ],
)
def test_log_probabilities_of_the_prompt_reach_no_replica(
    tmp_path: Path, path: str, options: dict[str, Any], param: str
) -> None:
    body = {"model": "demo", "prompt": "2 + 2?", "messages": question()["messages"]}
    with site(tmp_path) as running:
        refused = httpx.post(running.gateway.url + path, json=body | options)
        harmless = {"prompt_logprobs": None, "echo": False, "logprobs": 1, "prompt": [1] * 200}
        assert httpx.post(f"{running.gateway.url}/v1/completions", json=body | harmless).status_code == 200
    error = refused.json()["error"]
    assert refused.status_code == 400 and (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert len(running.replicas[0].bodies) == 1


def test_slow_answers_are_counted_by_model(tmp_path: Path) -> None:
    with site(tmp_path, slow_s=1e-9) as running:
        running.ask()
    assert running.gateway.desk.slow == {"student-v1": 1}


@pytest.mark.parametrize(
    "host", [b"a/v1/load_lora_adapter?", b"a/sleep#", b"[::1]/v1/unload_lora_adapter?x="]
)
def test_the_host_header_leads_nowhere_else(tmp_path: Path, host: bytes) -> None:
    """With Starlette 1.0.0 a URL's path came from it, and with it the replicas' own routes."""
    body = json.dumps(question()).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: " + host + b"\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    with site(tmp_path) as running:
        _raw(int(running.gateway.url.rsplit(":", 1)[1]), head + body)
    assert set(running.replicas[0].paths) <= {"/v1/chat/completions"}


def test_feedback_counts_once_until_it_changes(tmp_path: Path) -> None:
    """6,000 posts for one answer were 6,000 records, and crowded answers out."""
    with site(tmp_path) as running:
        response_id = running.ask().json()["id"]
        while not (tmp_path / "log.db").exists() or not outputs(tmp_path):
            pass
        for feedback in ("up", "up", "down", "up", "up", *("down", "up") * 20):
            body = {"id": response_id, "feedback": feedback}
            assert httpx.post(f"{running.gateway.url}/v1/feedback", json=body).json()["status"] == "recorded"
    given = [event for event in events(tmp_path, "feedback") if isinstance(event, FeedbackGiven)]
    assert [event.feedback for event in given][:3] == ["up", "down", "up"] and len(given) == 10
    assert len({event.event_id for event in given}) == 10


def test_a_question_about_an_image_is_answered_and_not_captured(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "what is on it?"}, {"type": "image_url", "image_url": {"url": "x"}}]
    with site(tmp_path) as running:
        assert running.ask(messages=[{"role": "user", "content": parts}]).status_code == 200
        assert running.gateway.capture is not None and running.gateway.capture.counts == {"no text": 1}


def test_a_slow_upload_is_not_the_students_slowness(tmp_path: Path) -> None:
    body = json.dumps(question()).encode()

    def slowly() -> Iterator[bytes]:
        yield body[:10]
        time.sleep(2.5)
        yield body[10:]

    with site(tmp_path, slow_s=2) as running:
        assert httpx.post(f"{running.gateway.url}/v1/chat/completions", content=slowly()).status_code == 200
        assert not running.gateway.desk.slow["student-v1"]
    (answer,) = outputs(tmp_path)
    assert answer.served is not None and answer.served.latency_s is not None and answer.served.latency_s < 2


def test_a_connection_without_a_request_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them shut everybody out."""
    monkeypatch.setattr("serving.http.FIRST_REQUEST_S", 0.3)
    with site(tmp_path) as running:
        port = int(running.gateway.url.rsplit(":", 1)[1])
        for sent in (b"", b"POST /v1/chat"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(sent)
                assert connection.recv(1) == b""
        assert running.ask().status_code == 200
