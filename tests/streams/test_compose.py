"""compose.yaml is valid, its broker has the settings that the native one is tested with, and its workers find
their configuration, data, database and registry."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
import yaml

from loop.cli.init import Template, write_template
from loop.config import load
from loop.shipped import ROOT
from streams.testing.broker import SHARED_PROPERTIES

FILE = Path(__file__).parents[2] / "compose.yaml"


WORKERS = ("monitor", "curate", "train", "deploy")
PASSWORD = "p@ss/w:o#r d%2F$"
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


class Unset(Exception):
    """A variable that must be set is not; docker compose prints this text and stops."""


def interpolated(value: Any, environ: Mapping[str, str]) -> Any:
    """A value as docker compose reads it: `${NAME}`, `${NAME:-default}`, `${NAME:?error}`."""

    def one(match: re.Match[str]) -> str:
        name, how, text = match.groups()
        if environ.get(name):
            return environ[name]
        if how == "?":
            raise Unset(text)
        return text or ""

    if isinstance(value, dict):
        return {key: interpolated(inner, environ) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, environ) for inner in value]
    return _VARIABLE.sub(one, value) if isinstance(value, str) else value


def services(**environ: str) -> dict[str, Any]:
    """Variables without a value are those of .env or the shell, and not there where neither sets them."""
    found: dict[str, Any] = interpolated(yaml.safe_load(FILE.read_text()), environ)["services"]
    for service in found.values():
        given = service.get("environment", {}).items()
        service["environment"] = {
            name: environ.get(name) if value is None else value
            for name, value in given
            if value is not None or name in environ
        }
    return found


def env_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_compose_is_valid() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(FILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compose() -> list[str]:
    """Compose itself, which needs no engine to read a file."""
    own = FILE.parent / ".venv-compose" / "docker-compose"
    if own.exists():
        return [str(own)]
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], check=False).returncode
    ):
        return ["docker", "compose"]
    pytest.skip("no Compose: make compose-parser")


def read_by(
    compose: list[str], folder: Path, password: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """What Compose makes of the files that `skillloop init` wrote, the password set as .env says."""
    lines = (ROOT / "configs/compose/settings.env").read_text()
    (folder / ".env").write_text(lines.replace("POSTGRES_PASSWORD=", f"POSTGRES_PASSWORD={password}"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SKILLLOOP_")}
    command = [*compose, "--project-directory", str(folder), "config", "--format", "json"]
    return subprocess.run(command, env=kept | environ, capture_output=True, text=True, check=False)


def test_compose_itself_reads_what_init_writes(compose: list[str], tmp_path: Path) -> None:
    write_template(tmp_path, Template.COMPOSE)
    refused = read_by(compose, tmp_path, "")
    assert refused.returncode and "set a password" in refused.stderr
    for environ in ({}, {"COMPOSE_PROFILES": "gpu", "SKILLLOOP_ENGINE": "vllm"}):
        done = read_by(compose, tmp_path, f"'{PASSWORD}'", **environ)
        assert done.returncode == 0 and not done.stderr, done.stderr
        found = json.loads(done.stdout.replace("$$", "$"))["services"]
        wanted = services(POSTGRES_PASSWORD=PASSWORD, **environ)
        profile = environ.get("COMPOSE_PROFILES")
        assert set(found) == {n for n, s in wanted.items() if s.get("profiles", [profile]) == [profile]}
        for name, service in found.items():
            set_here = {key: value for key, value in wanted[name].get("environment", {}).items() if value}
            assert set_here.items() <= service.get("environment", {}).items(), name
            assert service.get("command") == wanted[name].get("command"), name
            assert set(service.get("depends_on", {})) == set(wanted[name].get("depends_on", {})), name


def test_the_composed_broker_is_set_as_the_tested_one() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    composed = services["kafka"]["environment"]
    as_environment = {
        "KAFKA_" + name.upper().replace(".", "_"): value for name, value in SHARED_PROPERTIES.items()
    }
    assert {name: composed.get(name) for name in as_environment} == as_environment
    assert "healthcheck" in services["kafka"]


def test_every_worker_is_there() -> None:
    services = yaml.safe_load(FILE.read_text())["services"]
    for kind in WORKERS:
        assert services[kind]["command"] == ["skillloop", "worker", kind]


def test_without_a_password_nothing_starts() -> None:
    with pytest.raises(Unset, match="set a password"):
        services(POSTGRES_PASSWORD="")


def test_every_service_has_a_health_check_and_every_dependency_is_waited_for() -> None:
    composed = services(POSTGRES_PASSWORD=PASSWORD)
    jobs = {name for name, service in composed.items() if service["restart"] == "no"}
    assert jobs == {"topics"} and composed["topics"]["healthcheck"] == {"disable": True}
    for name, service in composed.items():
        assert name in jobs or service["healthcheck"]["test"], name
        for other, wanted in service.get("depends_on", {}).items():
            finished = "service_completed_successfully" if other in jobs else "service_healthy"
            assert wanted == {"condition": finished}, (name, other)


def test_workers_find_configuration_data_and_servers(tmp_path: Path) -> None:
    """The folder of `skillloop init` is mounted; settings in the environment are those of the loop."""
    write_template(tmp_path, Template.COMPOSE)
    composed = services(**env_file(tmp_path / ".env") | {"POSTGRES_PASSWORD": PASSWORD})
    for name in (*WORKERS, "topics"):
        worker = composed[name]
        mounts = dict(volume.split(":")[:2][::-1] for volume in worker["volumes"])
        assert mounts == {"/config": ".", "/runs": "runs", "/adapters": "adapters"}
        environ = worker["environment"]
        assert environ["SKILLLOOP_DIR"] == "/runs"
        inside = Path(environ["SKILLLOOP_CONFIG"]).relative_to("/config")
        config = load(tmp_path / inside, environ)
        assert config.log.kafka.bootstrap_servers.split(":")[0] in composed
        assert (config.task.pool or Path()).is_relative_to(tmp_path)
        assert config.teacher.chat is not None and "host.docker.internal" in config.teacher.chat.base_url
        url = sa.make_url(config.store.url.get_secret_value())
        assert url.host in composed and url.password is None and environ["PGPASSWORD"] == PASSWORD
    assert composed["postgres"]["environment"]["POSTGRES_PASSWORD"] == PASSWORD


def test_the_files_teacher_is_asked_where_the_environment_names_none(tmp_path: Path) -> None:
    write_template(tmp_path, Template.COMPOSE)
    environ = services(POSTGRES_PASSWORD=PASSWORD)["curate"]["environment"]
    chat = load(tmp_path / "skillloop.toml", environ).teacher.chat
    assert chat is not None and "127.0.0.1" in chat.base_url
    own = services(POSTGRES_PASSWORD=PASSWORD, SKILLLOOP_TEACHER__CHAT__API_KEY="k")["curate"]["environment"]
    chat = load(tmp_path / "skillloop.toml", own).teacher.chat
    assert chat is not None and chat.api_key.get_secret_value() == "k"


def test_on_a_gpu_users_reach_the_student_through_the_gateway(tmp_path: Path) -> None:
    """Both are left out without the profile; workers find the servers, servers find student and adapters."""
    write_template(tmp_path, Template.COMPOSE)
    composed = services(POSTGRES_PASSWORD=PASSWORD, SKILLLOOP_ENGINE="vllm")
    assert {name for name, service in composed.items() if "profiles" in service} == {"gateway", "vllm"}
    vllm, gateway = composed["vllm"], composed["gateway"]
    environ = gateway["environment"]
    config = load(tmp_path / "skillloop.toml", environ)
    assert config.engine.kind == "vllm" and config.gateway is not None and config.canary.enabled
    assert [urlsplit(url).hostname for url in config.engine.vllm.replicas] == ["vllm"]
    base = Path(vllm["command"][vllm["command"].index("--model") + 1]).relative_to("/config")
    assert tmp_path / base == config.student.base
    assert vllm["environment"] == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} and "ports" not in vllm
    assert f"adapters:{config.engine.vllm.store}:ro" in vllm["volumes"]
    rank = vllm["command"][vllm["command"].index("--max-lora-rank") + 1]
    assert int(rank) == config.engine.vllm.max_lora_rank
    assert gateway["ports"] == [f"127.0.0.1:{config.gateway.port}:{config.gateway.port}"]


@pytest.mark.postgres
def test_mlflow_has_a_database_of_its_own(postgres_uri: str) -> None:
    """The one that the composed PostgreSQL makes, opened by the address that the composed MLflow is given."""
    composed = yaml.safe_load(FILE.read_text())
    with psycopg.connect(postgres_uri.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(composed["configs"]["databases"]["content"])
    command = services(POSTGRES_PASSWORD="x")["mlflow"]["command"]
    wanted = sa.make_url(command[command.index("--backend-store-uri") + 1])
    server = sa.make_url(postgres_uri)
    address = server.set(drivername=wanted.drivername, database=wanted.database)
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "db", "upgrade", address.render_as_string(hide_password=False)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    engine = sa.create_engine(address)
    assert sa.inspect(engine).has_table("registered_models")
    engine.dispose()


def test_mlflow_is_reached_by_every_name_that_it_is_published_under() -> None:
    command = services(POSTGRES_PASSWORD="x")["mlflow"]["command"]
    allowed = command[command.index("--allowed-hosts") + 1].split(",")
    assert allowed == ["mlflow:5000", "localhost:5000", "127.0.0.1:5000"]


def test_the_image_has_what_the_services_call() -> None:
    lines = (FILE.parent / "configs" / "compose" / "Dockerfile").read_text().splitlines()
    (install,) = (line for line in lines if "[kafka,llm,postgres]" in line)
    assert "--constraint /tmp/constraints.txt" in install, "the versions that were tested together"
    assert any(line.startswith("RUN useradd") and "/runs /mlflow" in line for line in lines)


@pytest.mark.postgres
def test_a_password_with_any_character_opens_the_store(postgres_uri: str) -> None:
    """As composed: the address has no password, the environment has it."""
    role = "composed"
    with psycopg.connect(postgres_uri.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(
            psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(psycopg.sql.Identifier(role), PASSWORD)
        )
        connection.execute(f"CREATE DATABASE {role} OWNER {role}")
        shown = connection.execute("SHOW hba_file").fetchone()
        assert shown is not None
        hba = Path(shown[0])
        hba.write_text(f"local all {role} scram-sha-256\n" + hba.read_text())
        connection.execute("SELECT pg_reload_conf()")
    server = sa.make_url(postgres_uri)
    url = sa.URL.create(server.drivername, role, database=role, query=server.query).render_as_string()
    code = "import sys; from streams.state.store import StateStore; StateStore(sys.argv[1]).close()"
    for password, opens in ((PASSWORD, True), ("wrong", False)):
        done = subprocess.run(
            [sys.executable, "-c", code, url],
            cwd=FILE.parent,
            env=os.environ | {"PGPASSWORD": password},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) == opens, done.stderr
