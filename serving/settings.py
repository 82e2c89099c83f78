"""How engines serve: settings alone, so that reading a configuration loads no model library."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from agent.settings import Settings
from serving.routes import Url


class EngineSettings(Settings):
    """The in-process engine. `batch_size` rows at a time; `stage_tokens` new tokens between two packings;
    `device` None: CUDA when there is one."""

    batch_size: int = Field(default=256, gt=0)
    stage_tokens: int = Field(default=24, gt=0)
    device: str | None = None


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
    PEFT's are computed (None: CUDA when there is one). Every `reconcile_s` seconds the deploy worker looks
    whether the servers serve the champion.
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
