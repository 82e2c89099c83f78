"""docs/kubernetes is valid by Kubernetes' schemas, and its processes and settings are this program's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from loop.cli.main import app
from loop.config import load
from loop.shipped import CONFIGS
from serving.gateway.serve import closing_s
from serving.settings import GatewaySettings

ROOT = Path(__file__).parents[1]
ITEMS: list[dict[str, Any]] = yaml.safe_load((ROOT / "docs/kubernetes/skillloop.yaml").read_text())["items"]


def pods() -> dict[str, dict[str, Any]]:
    """The pod of each job and deployment, by its name."""
    return {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]
        for item in ITEMS
        if item["kind"] in ("Job", "Deployment")
    }


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item['kind']} {item['metadata']['name']}")
def test_every_object_is_valid(item: dict[str, Any]) -> None:
    pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate(
        item, "1.33", strict=True
    )


def test_the_processes_are_this_programs() -> None:
    commands = {name: pod["containers"][0]["command"] for name, pod in pods().items()}
    assert {tuple(command[:3]) for command in commands.values()} == {
        ("skillloop", "topics", "create"),
        *(("skillloop", "worker", kind) for kind in ("monitor", "curate", "train", "deploy")),
        ("skillloop", "gateway"),
        ("skillloop", "metrics", "--host"),
    }
    for _, *words in commands.values():
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0, words


def test_the_settings_are_this_programs() -> None:
    (settings,) = (item["data"] for item in ITEMS if item["kind"] == "ConfigMap")
    config = load(CONFIGS / "online.toml", settings)
    assert (config.engine.kind, config.log.kind) == ("vllm", "kafka")
    assert config.engine.vllm.store == Path("/adapters") and len(config.engine.vllm.replicas) == 2
    assert config.gateway is not None and config.gateway.port == 8080


def test_gateways_have_time_for_their_users_and_share_the_deploy_workers_folder() -> None:
    gateway, deploy = pods()["skillloop-gateway"], pods()["skillloop-deploy"]
    assert gateway["terminationGracePeriodSeconds"] > closing_s(GatewaySettings()) + 5
    at = {mount["mountPath"]: mount for mount in gateway["containers"][0]["volumeMounts"]}
    assert at["/run/skillloop"] in deploy["containers"][0]["volumeMounts"]
    assert {"name": at["/spool"]["name"], "emptyDir": {}} in gateway["volumes"], "a network's disk may hang"
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods().values())
