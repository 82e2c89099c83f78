from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.gateway.site import loaded, outputs, site

openai = pytest.importorskip("openai", reason="pip install 'skillloop[llm]'")


def test_the_official_client_asks_streams_and_gives_feedback(tmp_path: Path) -> None:
    """The example of docs/serving.md."""
    turns = [{"role": "user", "content": "What is 17 * 23?"}]
    with (
        site(tmp_path, loaded(1)) as running,
        openai.OpenAI(base_url=f"{running.gateway.url}/v1", api_key="none") as client,
    ):
        headers = {"x-session-id": "ann-1"}
        answer = client.chat.completions.create(model="demo", messages=turns, extra_headers=headers)
        chunks = list(client.chat.completions.create(model="demo", messages=turns, stream=True))
        client.post("/feedback", body={"id": answer.id, "feedback": "up"}, cast_to=object)
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.chat.completions.create(model="gpt-4", messages=turns)
        running.replicas[0].cut_at = 1
        with pytest.raises(openai.APIError, match="not complete"):
            list(client.chat.completions.create(model="demo", messages=turns, stream=True))
        assert [card.id for card in client.models.list()] == ["demo"]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).count("student-v1 says") == 4
    first, second = outputs(tmp_path)
    assert (first.session, first.question) == ("ann-1", "What is 17 * 23?")
    assert second.served is not None and second.served.response_id == chunks[0].id
