"""One vLLM server over HTTP: its models, its adapters, its answers.

What goes wrong is one of three: it does not answer now (`ServerAway`: another may), it does not know the
model (`ModelMissing`: it was started anew and has lost its adapters), or it refuses (`ServerRefused`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from agent.items import JsonObject
from serving.engine import EngineError, EngineUnavailable, Sampling

LOOK_TIMEOUT_S = 10.0
BUSY = (429, 502, 503, 504)


class ServerAway(EngineUnavailable):
    """A vLLM server cannot be reached, or says that it cannot answer now."""


class Sleepless(ServerAway):
    """A server that is to sleep now and then has not the routes for it: it cannot be told to, nor asked."""


class ServerRefused(EngineError):
    """A vLLM server refused a request; the message is its own."""


class ModelMissing(ServerRefused):
    """A vLLM server does not know a model."""


@dataclass(frozen=True)
class ServedModel:
    """A row of `/v1/models`. Adapters have a `parent`, the base has none; `root` is an adapter's folder as
    the server sees it; `context` is the base's longest text in tokens."""

    name: str
    root: str
    parent: str | None
    context: int | None


class VllmServer:
    """A client of one server at `url` (without `/v1`). Thread-safe. One that `sleeps` now and then is asked
    first whether it does: what it gets while it sleeps waits until it is woken."""

    def __init__(self, url: str, api_key: str = "", connections: int = 32, sleeps: bool = False) -> None:
        self.url = url
        self.sleeps = sleeps
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        # A proxy from the environment must not stand between us and servers on a private network.
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            limits=limits,
            trust_env=False,
        )

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def models(self) -> dict[str, ServedModel]:
        """What it serves now, by name."""
        body = self._json("GET", "/v1/models", None, LOOK_TIMEOUT_S)
        try:
            rows = [
                ServedModel(row["id"], row.get("root") or "", row.get("parent"), row.get("max_model_len"))
                for row in body["data"]
            ]
        except (KeyError, TypeError, AttributeError) as exc:
            raise ServerRefused(f"{self.url}/v1/models is not vLLM's list of models ({exc!r})") from exc
        return {model.name: model for model in rows}

    def load(self, name: str, path: str, timeout_s: float) -> None:
        """Load the adapter in `path` (as the server sees it) as `name`. Success proves nothing."""
        self._send("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, timeout_s)

    def unload(self, name: str) -> None:
        """Forget an adapter; answers under way are finished. Unknown ones are ignored."""
        try:
            self._send("/v1/unload_lora_adapter", {"lora_name": name}, LOOK_TIMEOUT_S)
        except ModelMissing:
            return

    def complete(self, model: str, prompt: str, sampling: Sampling, timeout_s: float) -> list[str]:
        """The answers to one prompt. Every parameter is sent: the defaults of vLLM are the base's
        `generation_config.json`, which may sample with a repetition penalty."""
        body = {
            "model": model,
            "prompt": prompt,
            "n": sampling.samples,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        reply = self._json("POST", "/v1/completions", body, timeout_s)
        try:
            choices = sorted(reply["choices"], key=lambda choice: int(choice["index"]))
            texts = [str(choice["text"]) for choice in choices]
        except (KeyError, TypeError, ValueError) as exc:
            raise ServerRefused(f"{self.url} sent a completion without choices ({exc!r})") from exc
        if len(texts) != sampling.samples or reply.get("model") != model:
            raise ServerRefused(
                f"{self.url} sent {len(texts)} answers of {reply.get('model')!r}, "
                f"asked for {sampling.samples} of {model!r}"
            )
        return texts

    def log_probabilities(
        self, model: str, text: Sequence[int], candidates: Sequence[int], timeout_s: float
    ) -> list[float]:
        """The log-probability of each candidate as the next token. `prompt_logprobs` must not be asked for:
        with an adapter, and anything else in the batch, they end vLLM 0.32's engine on CPU."""
        body = {
            "model": model, "prompt": list(text), "max_tokens": 1, "temperature": 0.0, "logprobs": 1,
            "logprob_token_ids": list(candidates), "return_tokens_as_token_ids": True,
        }  # fmt: skip
        reply = self._json("POST", "/v1/completions", body, timeout_s)
        try:
            scores = reply["choices"][0]["logprobs"]["top_logprobs"][0]
            return [float(scores[f"token_id:{token}"]) for token in candidates]
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise ServerRefused(f"{self.url} sent no log-probabilities ({exc!r}); vLLM 0.32 does") from exc

    def asleep(self) -> bool:
        """Whether it sleeps."""
        try:
            reply = self._reply("GET", "/is_sleeping", None, LOOK_TIMEOUT_S)
            return bool(reply.json()["is_sleeping"])
        except (ServerRefused, ValueError, KeyError, TypeError) as exc:
            how = "VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode"
            raise Sleepless(f"{self.url} cannot be put to sleep; start it with {how} ({exc})") from exc

    def sleep(self, timeout_s: float) -> None:
        """Finish what is under way, then leave the device's memory (the weights go to the host's)."""
        self._reply("POST", "/sleep?level=1&mode=wait", None, timeout_s)

    def wake(self, timeout_s: float) -> None:
        """Take the memory again and answer what has come in meanwhile."""
        self._reply("POST", "/wake_up", None, timeout_s)

    def _json(self, method: str, path: str, body: JsonObject | None, timeout_s: float) -> JsonObject:
        reply = self._request(method, path, body, timeout_s)
        try:
            value = reply.json()
        except ValueError as exc:
            raise ServerRefused(f"{self.url}{path} did not send JSON") from exc
        if not isinstance(value, dict):
            raise ServerRefused(f"{self.url}{path} did not send a JSON object")
        return value

    def _send(self, path: str, body: JsonObject, timeout_s: float) -> None:
        self._request("POST", path, body, timeout_s)

    def _request(self, method: str, path: str, body: JsonObject | None, timeout_s: float) -> httpx.Response:
        if self.sleeps and self.asleep():
            raise ServerAway(f"{self.url} sleeps while a round trains on its device")
        return self._reply(method, path, body, timeout_s)

    def _reply(self, method: str, path: str, body: JsonObject | None, timeout_s: float) -> httpx.Response:
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, LOOK_TIMEOUT_S))
        try:
            reply = self._client.request(method, path, json=body, timeout=timeout)
        except httpx.HTTPError as exc:
            raise ServerAway(f"{self.url} does not answer ({type(exc).__name__}: {exc})") from exc
        if reply.status_code == 200:
            return reply
        said = f"{self.url}{path} answered {reply.status_code}: {_message(reply)}"
        if reply.status_code == 404 and _error(reply).get("type") == "NotFoundError":
            raise ModelMissing(said)
        # An adapter that cannot be loaded is reported as 500, which says nothing of the server.
        if reply.status_code in BUSY or (reply.status_code >= 500 and "lora_adapter" not in path):
            raise ServerAway(said)
        raise ServerRefused(said)


def _error(reply: httpx.Response) -> JsonObject:
    try:
        error = reply.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def _message(reply: httpx.Response) -> str:
    text = str(_error(reply).get("message") or reply.text or "nothing")
    return " ".join(text.split())[:400]
