"""How engines serve: settings alone, so that reading a configuration loads no model library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator

from agent.settings import Settings
from serving.routes import Url


class EngineSettings(Settings):
    """The in-process engine. `batch_size` rows at a time; `stage_tokens` new tokens between two packings;
    `device` None: CUDA when there is one."""

    batch_size: int = Field(default=256, gt=0)
    stage_tokens: int = Field(default=24, gt=0)
    device: str | None = None


class CaptureSettings(Settings):
    """What of the answers becomes events. `sample` is the part of the answers that is captured; `redact` the
    row of `serving.gateway.redact.REDACTORS` that texts go through before they touch the disk.

    An answer waits `feedback_wait_s` in the spool for its user's feedback, which then travels with it; what
    is said later is an event of its own. `remembered` answers can be given feedback. The spool is the folder
    `spool` (None: `spool` in the run's directory), which should be on a local disk. It takes `spool_mib`, and
    `queue` answers more in memory where the disk takes none.
    """

    sample: float = Field(default=1.0, gt=0, le=1)
    redact: str = "none"
    feedback_wait_s: float = Field(default=30.0, ge=0, le=3600)
    remembered: int = Field(default=100_000, gt=0)
    spool: Path | None = None
    spool_mib: int = Field(default=1024, ge=8)
    queue: int = Field(default=10_000, gt=0)
    drain_s: float = Field(default=10.0, ge=0, le=600)


class GatewaySettings(Settings):
    """How users reach the student. `capture` is who makes events of the answers: this gateway, or `external`:
    whoever the student is served by (docs/serving.md). Empty `api_keys` let everybody in.

    Bodies above `max_body_bytes` and requests above `max_in_flight` are refused; a user who takes longer than
    `client_timeout_s` to send or to read is cut off. One request may ask for `max_choices` answers, all its
    prompts together. An answer that takes longer than `slow_s` counts as
    slow, which a canary is judged by. A replica that fails is left out for `eject_s`, twice as long each time
    up to `max_eject_s`.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    capture: Literal["gateway", "external"] = "gateway"
    captured: CaptureSettings = CaptureSettings()
    api_keys: tuple[SecretStr, ...] = ()
    upstream_api_key: SecretStr = SecretStr("")
    session_header: str = Field(default="x-session-id", pattern=r"^[a-z0-9-]+$")
    max_body_bytes: int = Field(default=1_048_576, gt=0)
    max_in_flight: int = Field(default=512, gt=0)
    max_choices: int = Field(default=128, gt=0)
    client_timeout_s: float = Field(default=30.0, gt=0)
    slow_s: float = Field(default=10.0, gt=0)
    connect_timeout_s: float = Field(default=2.0, gt=0)
    upstream_timeout_s: float = Field(default=300.0, gt=0)
    eject_s: float = Field(default=1.0, gt=0)
    max_eject_s: float = Field(default=30.0, gt=0)


class VllmSettings(Settings):
    """vLLM servers of one base, and the folder through which they get adapters (docs/adapters.md).

    `replicas`: their addresses without `/v1`; each may be away at any time. `store`: where adapters are
    published; servers that see this folder elsewhere see it at `store_there`. `prefix` begins the adapters'
    names; students that share servers need one each. `model`: the base's name, "" for the one that a
    server says. `max_lora_rank`: what the servers were started with. `concurrency`: requests under way to
    each. `timeout_s`: for one answer, repetitions included; `load_timeout_s`: to load an adapter.

    `base_as_adapter`: the base is served as an adapter that changes nothing. vLLM on CPU needs it: in a batch
    with an adapter's requests, the base's are answered with the adapter's weights (vllm-project/vllm#48421).

    `tolerance`: how far log-probabilities may be from PEFT's on average, in nats. `reference_device`: where
    PEFT's are computed (None: CUDA when there is one and no `sleepers` need it). Every `reconcile_s` seconds
    the deploy worker looks whether the servers serve the champion.

    `sleepers`: the replicas on the device that rounds train on. They sleep meanwhile, after `sleep_timeout_s`
    for what is under way (docs/operations.md).
    """

    replicas: tuple[Url, ...] = ()
    store: Path | None = None
    store_there: str = ""
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "student"
    model: str = ""
    api_key: SecretStr = SecretStr("")
    max_lora_rank: int = Field(default=16, gt=0)
    concurrency: int = Field(default=32, gt=0)
    timeout_s: float = Field(default=300.0, gt=0)
    load_timeout_s: float = Field(default=120.0, gt=0)
    base_as_adapter: bool = False
    tolerance: float = Field(default=0.05, gt=0)
    reference_device: str | None = None
    reconcile_s: float = Field(default=15.0, gt=0)
    sleepers: tuple[Url, ...] = ()
    sleep_timeout_s: float = Field(default=300.0, gt=0)

    @model_validator(mode="after")
    def _sleepers_are_replicas(self) -> Self:
        unknown = sorted(set(self.sleepers) - set(self.replicas))
        if unknown:
            raise ValueError(f"engine.vllm.sleepers names {unknown}, which are none of engine.vllm.replicas")
        return self
