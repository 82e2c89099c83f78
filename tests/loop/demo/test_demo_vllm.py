"""The loop closed on a real vLLM: the demo's users are answered by it, and after a round by what the round
taught."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import httpx
import pytest

from loop.tasks.student import student_dir
from serving.routes import RouteFile
from tests.conftest import running_vllm
from tests.loop.conftest import HERE, Demo

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(2400)]


def test_a_round_changes_what_users_are_answered(tmp_path: Path, small_demo: type[Demo]) -> None:
    options = ["--served-model-name", "base", "--max-model-len", "512", "--enable-lora"]
    options += ["--max-lora-rank", "16", "--max-loras", "4", "--max-cpu-loras", "8"]
    environ = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    with running_vllm(student_dir("llama"), tmp_path, *options, environ=environ) as url:
        engine = (
            f'\n[engine]\nkind = "vllm"\n[engine.vllm]\nreplicas = ["{url}"]\nstore = "store"\n'
            'base_as_adapter = true\nprefix = "demo"\nreference_device = "cpu"\n'
        )
        config = tmp_path / "live.toml"
        config.write_text((HERE / "small.toml").read_text() + engine)
        demo = small_demo(tmp_path / "run", config)
        done = demo.run_cold()  # minutes on a busy machine, which a warm run does not wait
        assert done.returncode == 0, done.stderr
        state = demo.state()
        table = RouteFile(tmp_path / "run").read()
        models = {card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]}
    champion = state["champion"]
    assert champion > 1, state["rounds"]
    assert table is not None and [share.version for share in table.shares] == [champion]
    assert table.shares[0].model in models and state["route"][0] == champion
    outputs = [json.loads(event) for event in state["events"]["student-outputs"]]
    answered = Counter(output["student_version"] for output in outputs)
    assert answered[1] and answered[champion], answered
