from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from rich.console import Console

from agent.errors import SkillloopError
from loop.config import Config, ConfigError, load
from loop.gateway import gateway_beside, open_gateway
from serving.gateway.serve import GatewayServer
from serving.settings import CaptureSettings, GatewaySettings

QUIET = Console(quiet=True)


@pytest.mark.parametrize("settings", [None, GatewaySettings(port=0, capture="external")])
def test_up_serves_no_users_unless_it_is_told_to(tmp_path: Path, settings: GatewaySettings | None) -> None:
    with gateway_beside(Config(gateway=settings), tmp_path, QUIET) as beside:
        assert beside is None


def test_up_serves_users_where_the_gateway_is_configured(tmp_path: Path) -> None:
    config = Config(gateway=GatewaySettings(port=0))
    with gateway_beside(config, tmp_path, QUIET) as beside:
        assert isinstance(beside, GatewayServer)
        response = httpx.get(f"{beside.url}/v1/models")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_route")


def test_a_taken_port_and_an_unknown_redactor_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    with gateway_beside(Config(gateway=GatewaySettings(port=0)), tmp_path, QUIET) as beside:
        assert isinstance(beside, GatewayServer)
        taken = int(beside.url.rsplit(":", 1)[1])
        with pytest.raises(SkillloopError, match=r"choose another gateway\.port"):
            open_gateway(Config(gateway=GatewaySettings(port=taken)), tmp_path)
    settings = GatewaySettings(port=0, captured=CaptureSettings(redact="pattern"))
    with pytest.raises(SkillloopError, match="did you mean 'patterns'"):
        open_gateway(Config(gateway=settings), tmp_path)


def test_the_section_is_checked_and_its_keys_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[gateway]\nmax_in_flights = 3\n")
    with pytest.raises(ConfigError, match="did you mean 'max_in_flight'"):
        load(path)
    path.write_text("[gateway]\napi_keys = ['hidden']\n[gateway.captured]\nsample = 0.5\n")
    config = load(path)
    assert config.gateway is not None and config.gateway.captured.sample == 0.5
    assert "hidden" not in repr(config)
    path.write_text("[gateway.captured]\nsample = 0\n")
    with pytest.raises(ConfigError, match="sample"):
        load(path)
