"""What the hospital sets about forwarding: the tables [cloud.*] and [privacy] of the configuration file.

Secrets are never in the file: it names the files or systemd credentials that hold them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A table of the configuration file: an unknown key is an error, and nothing changes it later."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Kafka(Section):
    """The brokers that records are forwarded to."""

    bootstrap: str = Field(min_length=1)
    security: Literal["plaintext", "tls", "mtls", "sasl_tls", "sasl_plaintext"] = "mtls"
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    sasl_username: str = ""
    sasl_password: str = ""  # credential:NAME or file:PATH, never the password itself
    topic_prefix: str = Field(default="bedside", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    exactly_once: bool = True  # transactions; where the cluster refuses them, at least once, and status says so
    options: dict[str, str | int | bool] = {}  # passed through to librdkafka

    @model_validator(mode="after")
    def _complete(self) -> Kafka:
        if self.security == "mtls" and not (self.ca and self.certificate and self.private_key):
            raise ValueError('security "mtls" needs ca, certificate and private_key (paths of PEM files)')
        if self.security in ("tls", "sasl_tls") and not self.ca:
            raise ValueError(f'security "{self.security}" needs ca (path of a PEM file)')
        if self.security.startswith("sasl"):
            if not (self.sasl_username and self.sasl_password):
                raise ValueError(f'security "{self.security}" needs sasl_username and sasl_password')
            if not self.sasl_password.startswith(("credential:", "file:")):
                raise ValueError("sasl_password names a secret: write credential:NAME or file:PATH")
        return self


class AlertManager(Section):
    """A hospital alert manager that gets alarms as HL7 ORU^R40 (IHE PCD-04) over MLLP."""

    link: str = Field(pattern=r"^mllp://[^/?#]+:\d{1,5}$")  # mllp://host:port
    application: str = "BEDSIDE-EDGE"  # MSH-3
    facility: str = ""  # MSH-4
    receiver: str = ""  # MSH-5
    receiver_facility: str = ""  # MSH-6
    reply_s: float = Field(default=10.0, gt=0, le=120)  # for the acknowledgement of one message
    technical: bool = False  # whether technical alarms are sent too


class Encoding(Section):
    """How records are written for Kafka, MQTT and REST."""

    format: Literal["json", "avro"] = "json"
    registry: str = Field(default="", pattern=r"^(https?://[^\s]+)?$")  # avro: the schema registry
    registry_ca: Path | None = None  # PEM file; none: the system's authorities
    registry_username: str = ""
    registry_password: str = ""  # credential:NAME or file:PATH, never the password itself
    register_schemas: bool = True  # false: they must be there already, and are only looked up

    @model_validator(mode="after")
    def _complete(self) -> Encoding:
        if self.format == "avro" and not self.registry:
            raise ValueError('format "avro" needs registry, the address of a schema registry')
        if "@" in self.registry:
            raise ValueError("registry holds a name or password: use registry_username and registry_password")
        if bool(self.registry_username) != bool(self.registry_password):
            raise ValueError("registry_username and registry_password belong together")
        if self.registry_password and not self.registry_password.startswith(("credential:", "file:")):
            raise ValueError("registry_password names a secret: write credential:NAME or file:PATH")
        return self


class Privacy(Section):
    """What becomes of patients' identifiers when records leave the gateway."""

    identifiers: Literal["pseudonym", "none", "clear"] = "pseudonym"
    key: str = ""  # credential:NAME or file:PATH of the site keys; without it `pseudonym` leaves identifiers out

    @field_validator("key")
    @classmethod
    def _provider(cls, value: str) -> str:
        provider, _, rest = value.partition(":")
        if value and (provider not in ("credential", "file") or not rest):
            raise ValueError("write credential:NAME for a systemd credential or file:PATH for a file of mode 0400")
        return value


class Mqtt(Section):
    """An MQTT 5 broker that records are published to."""

    broker: str = Field(pattern=r"^[^/?#\s]+:\d{1,5}$")  # host:port
    security: Literal["plaintext", "tls", "mtls"] = "tls"
    ca: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    username: str = ""
    password: str = ""  # credential:NAME or file:PATH, never the password itself
    topic_prefix: str = Field(default="bedside", pattern=r"^[A-Za-z0-9._-][A-Za-z0-9._/-]{0,199}$")
    keepalive_s: int = Field(default=30, ge=5, le=3600)
    session_expiry_s: int = Field(default=3600, ge=0, le=0xFFFFFFFF)  # MQTT's own range
    will_delay_s: int = Field(default=10, ge=0, le=3600)
    window: int = Field(default=100, ge=1, le=65535)  # messages under way at most; a broker may allow fewer
    bed_window: int = Field(default=16, ge=1, le=65535)  # of one bed, in the data stream

    @model_validator(mode="after")
    def _complete(self) -> Mqtt:
        if self.security == "mtls" and not (self.ca and self.certificate and self.private_key):
            raise ValueError('security "mtls" needs ca, certificate and private_key (paths of PEM files)')
        if self.security == "tls" and not self.ca:
            raise ValueError('security "tls" needs ca (path of a PEM file)')
        if self.password and not self.username:
            raise ValueError("password needs username")
        if self.password and not self.password.startswith(("credential:", "file:")):
            raise ValueError("password names a secret: write credential:NAME or file:PATH")
        return self


class Rest(Section):
    """A Confluent REST Proxy (v3) that records are produced through."""

    url: str = Field(pattern=r"^https?://[^?#\s]+$")  # of the proxy, without /v3
    cluster: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    ca: Path | None = None  # none: the system's authorities
    certificate: Path | None = None
    private_key: Path | None = None
    token_url: str = Field(default="", pattern=r"^(https?://[^#\s]+)?$")
    client_id: str = ""
    client_secret: str = ""  # credential:NAME or file:PATH, never the secret itself
    scope: str = ""
    topic_prefix: str = Field(default="bedside", pattern=r"^[A-Za-z0-9._-]{1,200}$")
    batch_records: int = Field(default=500, ge=1, le=10_000)
    batch_kb: int = Field(default=512, ge=16, le=16_384)
    timeout_s: float = Field(default=30.0, gt=0, le=300)

    @model_validator(mode="after")
    def _complete(self) -> Rest:
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("certificate and private_key belong together")
        if self.token_url and not (self.client_id and self.client_secret):
            raise ValueError("token_url needs client_id and client_secret")
        if (self.client_id or self.client_secret or self.scope) and not self.token_url:
            raise ValueError("client_id, client_secret and scope need token_url")
        if self.client_secret and not self.client_secret.startswith(("credential:", "file:")):
            raise ValueError("client_secret names a secret: write credential:NAME or file:PATH")
        return self


class Cloud(Section):
    """Where cloud-sync forwards to."""

    encoding: Encoding = Encoding()
    kafka: Kafka | None = None
    alert_manager: AlertManager | None = None
    mqtt: Mqtt | None = None
    rest: Rest | None = None
