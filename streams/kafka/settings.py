"""How to reach a Kafka cluster: a frozen object, secrets masked. Knows no client library."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from agent.settings import Settings


class KafkaSettings(Settings):
    """Address, security, and the times within which Kafka must answer (seconds).

    `instance` makes consumers static members: a worker that restarts under the same name within
    `session_timeout_s` takes its partitions back without a rebalance (KIP-345). A poll that does not return
    within `watchdog_s` ends the process. `reader`: record batches are read by our own code ("fast"), which
    steps aside where the installed kafka-python has other internals, or by kafka-python ("client").
    """

    bootstrap_servers: str = Field(default="localhost:9092", min_length=1)
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    ssl_password: SecretStr | None = None
    reader: Literal["fast", "client"] = "fast"
    instance: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,200}$")
    start_timeout_s: float = Field(default=15.0, gt=0)
    request_timeout_s: float = Field(default=8.0, gt=0.6)
    delivery_timeout_s: float = Field(default=12.0, gt=0)
    session_timeout_s: float = Field(default=30.0, gt=0)
    max_poll_interval_s: float = Field(default=900.0, gt=0)
    watchdog_s: float = Field(default=120.0, gt=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.security_protocol.startswith("SASL") and not (self.sasl_username and self.sasl_password):
            raise ValueError(
                f"security_protocol {self.security_protocol} needs sasl_username and sasl_password"
            )
        if self.delivery_timeout_s <= self.request_timeout_s:
            raise ValueError(
                f"delivery_timeout_s ({self.delivery_timeout_s}) "
                f"must be above request_timeout_s ({self.request_timeout_s})"
            )
        return self

    @property
    def addresses(self) -> list[str]:
        """The bootstrap servers as a list."""
        return [part.strip() for part in self.bootstrap_servers.split(",") if part.strip()]

    def security(self) -> dict[str, object]:
        """The client library's security options; holds the secrets in clear, so do not log it."""
        options: dict[str, object] = {"security_protocol": self.security_protocol}
        if self.security_protocol.startswith("SASL") and self.sasl_password:
            options |= {"sasl_mechanism": self.sasl_mechanism, "sasl_plain_username": self.sasl_username}
            options["sasl_plain_password"] = self.sasl_password.get_secret_value()
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            if (path := getattr(self, name)) is not None:
                options[name] = str(path)
        if self.ssl_password:
            options["ssl_password"] = self.ssl_password.get_secret_value()
        return options
