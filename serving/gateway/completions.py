"""Questions and answers in the bodies of OpenAI's chat and text completions.

The question is the last user message (`loop.ingest` reads logged completions by the same rule), or the prompt
of a text completion.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.items import JsonObject

CHAT = "/v1/chat/completions"


def text_of(content: object) -> str:
    """The text of a message, whole or in parts. Raises `TypeError` where there is none, or more than text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        if all(
            part.get("type") == "text" for part in content
        ):  # a question about an image is none without it
            return "\n".join(str(part["text"]) for part in content)
    raise TypeError("a message is not text alone")


def last_question(messages: Sequence[JsonObject]) -> str:
    """The last user message. Raises `StopIteration` where there is none."""
    return next(text_of(message["content"]) for message in reversed(messages) if message["role"] == "user")


def questions(path: str, body: JsonObject) -> tuple[str, ...]:
    """What is asked: one text, or one for each prompt of a list. Empty where there is no text to learn
    from (token ids, images alone)."""
    try:
        if path == CHAT:
            return (last_question(body["messages"]),)
        prompt = body["prompt"]
    except (KeyError, TypeError, AttributeError, StopIteration):
        return ()
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not all(isinstance(item, str) for item in prompts):
        return ()
    return tuple(prompts)


def prompt_count(body: JsonObject) -> int:
    """How many prompts a body has: a list of token ids is one."""
    prompt = body.get("prompt")
    several = isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt)
    return len(body["prompt"]) if several else 1


@dataclass
class Choice:
    """One answer so far."""

    text: str = ""
    finish_reason: str = ""
    tools: bool = False


@dataclass
class StudentReply:
    """What a replica has answered so far, whole or chunk by chunk. `models` are all the names it gave
    itself."""

    response_id: str = ""
    models: set[str] = field(default_factory=set)
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Mapping[str, object] = field(default_factory=dict)

    def take(self, body: JsonObject) -> None:
        """Read a completion or a chunk. What is not as it should be is passed over."""
        self.response_id = self.response_id or str(body.get("id") or "")
        if isinstance(body.get("model"), str):
            self.models.add(body["model"])
        if isinstance(body.get("usage"), dict):
            self.usage = body["usage"]
        choices = body.get("choices")
        for number, choice in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(choice, dict):
                self._choice(choice, number)

    def _choice(self, choice: JsonObject, number: int) -> None:
        index = choice.get("index", number)
        kept = self.choices.setdefault(index if isinstance(index, int) else number, Choice())
        part = choice.get("delta") or choice.get("message") or choice
        if isinstance(part, dict):
            text = part.get("content") if part is not choice else part.get("text")
            kept.text += text if isinstance(text, str) else ""
            kept.tools = kept.tools or bool(part.get("tool_calls") or part.get("function_call"))
        if choice.get("finish_reason"):
            kept.finish_reason = str(choice["finish_reason"])[:100]

    def tokens(self, name: str) -> int | None:
        """Prompt or completion tokens, where the replica counted them."""
        count = self.usage.get(name)
        return count if isinstance(count, int) and count >= 0 else None


def parse(data: bytes) -> JsonObject | None:
    """The JSON object in a reply, or None."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
