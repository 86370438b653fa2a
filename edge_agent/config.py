"""What the hospital sets: one TOML file, checked whole before anything starts.

An unknown key is an error. Every error names file, line and key, and says what to do. Secrets are never in this file:
it names the files or systemd credentials that hold them. Every key is documented in docs/configuration.md.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from edge_agent.config_cloud import Cloud, Privacy, Section

Key = tuple[str | int, ...]

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG


class ConfigError(Exception):
    """A configuration that cannot be used; `str` is what the person reads: file, line, key, reason, what to do."""

    def __init__(self, path: Path, line: int | None, key: str, reason: str, remedy: str = "") -> None:
        self.path, self.line, self.key, self.reason, self.remedy = path, line, key, reason, remedy
        where = f"{path}:{line}" if line is not None else str(path)
        text = f"{where}: {key}: {reason}" if key else f"{where}: {reason}"
        super().__init__(f"{text}\n  {remedy}" if remedy else text)


class Gateway(Section):
    """Who this gateway is and where it keeps its files."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    data_dir: Path
    presets: tuple[Path, ...] = ()  # site presets, beside the built-in ones; relative to the configuration file


class Control(Section):
    """The Unix socket of operators' commands, and who may do what through it."""

    socket: Path = Path("/run/edge-agent/control.sock")
    nurse_group: str = ""  # members may acknowledge and pause; root and the agent's own user may do everything
    biomed_group: str = ""  # members may also admit, discharge, reset and run self-tests


class Bed(Section):
    """One bed: its name, its alarm preset and the label under which HL7 senders know it."""

    id: str = Field(pattern=r"^[^\x00-\x1f]{1,64}$")
    preset: str = "adult"
    location: str = ""  # matches HL7 PV1-3; empty components are wildcards
    latching: bool | None = None  # overrides the preset's default for physiological alarms


class Source(Section):
    """One device or one network of devices: a driver and the link it is reached by."""

    driver: str
    link: str
    bed: str = ""  # the bed of everything from this source; empty: told apart by location
    name: str = ""
    options: dict[str, Any] = Field(default_factory=dict)  # keywords of the driver
    capture: Path | None = None  # everything received is also written to this file
    silence_s: float | None = Field(default=None, gt=0, le=3600)  # overrides the driver's freshness deadline


class Annunciator(Section):
    """One output for alarm signals."""

    kind: Literal["gpio", "sound", "record", "console"]
    bed: str = ""  # signals of this bed only; empty: the highest of all beds
    chip: str = ""  # gpio: label of the chip, never its number
    buzzer: int | str | None = None  # gpio: line offset or line name
    red: int | str | None = None
    yellow: int | str | None = None
    cyan: int | str | None = None
    active_low: bool = False
    loopback: int | str | None = None  # gpio: input wired back from the buzzer, to notice an open or stuck output
    heartbeat: int | str | None = None  # gpio: output that toggles while the agent lives, for an external monostable
    device: str = "default"  # sound: ALSA device, as `aplay -L` lists it
    sounds: Path | None = None  # sound: folder with high.wav, medium.wav, low.wav of the hospital's own
    volume: int = Field(default=70, ge=1, le=100)  # sound: per cent, room for escalation left above
    path: Path | None = None  # record: file that gets one JSON line for every output edge

    @model_validator(mode="after")
    def _complete(self) -> Annunciator:
        if self.kind == "gpio" and not self.chip:
            raise ValueError("a gpio annunciator needs `chip`, the label that gpiodetect shows in brackets")
        if self.kind == "gpio" and all(line is None for line in (self.buzzer, self.red, self.yellow, self.cyan)):
            raise ValueError("a gpio annunciator needs at least one of buzzer, red, yellow, cyan")
        if self.loopback is not None and self.buzzer is None:
            raise ValueError("`loopback` is read back from `buzzer`: name its line too")
        lines = [self.buzzer, self.red, self.yellow, self.cyan, self.loopback, self.heartbeat]
        named = [line for line in lines if line is not None]
        if len(named) != len(set(named)):
            raise ValueError("one line stands for two things: give each its own")
        if self.kind == "record" and self.path is None:
            raise ValueError("a record annunciator needs `path`")
        return self


class Button(Section):
    """A push button on a GPIO line: a short press acknowledges, a long press pauses audio or ends the pause."""

    chip: str = Field(min_length=1)  # label of the chip, never its number
    line: int | str  # offset or name
    bed: str = ""  # the bed it acts on; empty: all beds
    active_low: bool = True  # pressed connects the line to ground; the pull-up of the chip is switched on
    debounce_ms: int = Field(default=20, ge=1, le=200)
    long_press_s: float = Field(default=2.0, ge=0.5, le=10)


class Alarms(Section):
    """Alarm behaviour that the responsible organisation sets for all beds."""

    audio_pause_s: int = Field(default=120, ge=1, le=180)
    alarm_pause_s: int = Field(default=120, ge=1, le=180)
    audio_off: bool = False  # whether AUDIO OFF, which does not end by itself, may be chosen at all
    alarm_off: bool = False  # likewise ALARM OFF
    reminder_s: int = Field(default=60, ge=10, le=600)  # between reminders of something paused, off or acknowledged
    escalate_s: int = Field(default=30, ge=0, le=300)  # sound nobody has answered gets louder after it; 0: never
    central_link_s: int = Field(default=60, ge=5, le=3600)  # without the central link before that is a technical alarm
    self_test: bool = True  # whether the outputs show every lamp and sound every priority at start
    log_mb: int = Field(default=256, ge=1)  # of the alarm log; beyond it the oldest entries go


class Scores(Section):
    """The bedside scores."""

    entry_h: float = Field(default=4.0, ge=0.25, le=24)  # how long consciousness and oxygen count that were entered


class Model(Section):
    """The risk model; without this table there is none."""

    bundle: Path | None = None  # folder of a signed bundle; none: the newest that comes with the package
    trusted: tuple[Path, ...] = ()  # public keys (PEM) whose bundles are trusted beside those of the package
    engine: Literal["", "litert", "tflite-runtime"] = ""  # which runtime is preferred
    score: str = Field(default="sepsis_risk", pattern=r"^[a-z][a-z0-9_]{0,63}$")  # the name that presets know it by
    shadow: bool = False  # scores are recorded and raise no alarm
    every_s: float = Field(default=60.0, ge=1, le=3600)
    deadline_s: float = Field(default=5.0, ge=0.1, le=60)  # for one answer; beyond it the model is at fault


class Metrics(Section):
    """The port for Prometheus; without `listen` there is none."""

    listen: str = ""  # address:port, of this machine's loopback
    allow_remote: bool = False  # whether another address than the loopback's may be named

    @property
    def address(self) -> tuple[str, int]:
        """Address and port to listen on."""
        host, _, port = self.listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        return "127.0.0.1" if host == "localhost" else host, int(port)

    @model_validator(mode="after")
    def _complete(self) -> Metrics:
        if not self.listen:
            return self
        try:
            host, port = self.address
            address = ipaddress.ip_address(host)
        except ValueError as error:
            raise ValueError('write an address and a port, for example "127.0.0.1:9464" or "[::1]:9464"') from error
        if not 0 <= port <= 65535:
            raise ValueError(f"{port} is no port, a port is 1 to 65535")
        if not address.is_loopback and not self.allow_remote:
            raise ValueError(
                f"{host} can be reached from the network, and this port asks nobody who he is: write 127.0.0.1 and let"
                " a proxy with certificates pass it on, or set allow_remote = true where a firewall guards it"
            )
        return self


class Buffer(Section):
    """Size and rhythm of the sealed buffer."""

    quota_mb: int = Field(default=2048, ge=1)
    max_age_h: float = Field(default=168.0, gt=0)
    commit_ms: int = Field(default=250, ge=1, le=5000)
    pending_mb: int = Field(default=32, ge=1)  # in memory, while the disk does not answer
    key: str = "credential:edge-agent.kek"  # credential:NAME (systemd), file:PATH (mode 0400) or tpm:PATH (sealed)

    @field_validator("key")
    @classmethod
    def _provider(cls, value: str) -> str:
        provider, _, rest = value.partition(":")
        if provider not in ("credential", "file", "tpm") or not rest:
            raise ValueError(
                "write credential:NAME for a systemd credential, file:PATH for a key file of mode 0400,"
                " or tpm:PATH for one that the board's TPM has sealed"
            )
        return value


class Config(Section):
    """The whole file."""

    gateway: Gateway
    control: Control = Control()
    bed: tuple[Bed, ...] = Field(min_length=1)
    source: tuple[Source, ...] = ()
    annunciator: tuple[Annunciator, ...] = ()
    button: tuple[Button, ...] = ()
    alarms: Alarms = Alarms()
    scores: Scores = Scores()
    model: Model | None = None
    metrics: Metrics = Metrics()
    buffer: Buffer = Buffer()
    privacy: Privacy = Privacy()
    cloud: Cloud = Cloud()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A valid configuration with the place of every key, for errors that are found later in the check."""

    config: Config
    path: Path
    lines: dict[Key, int]

    def error(self, key: Key, reason: str, remedy: str = "") -> ConfigError:
        """A ConfigError at `key`, or at the nearest table around it that the file states."""
        return ConfigError(self.path, nearest_line(self.lines, key), dotted(key), reason, remedy)

    @property
    def buffer_key(self) -> str:
        """The specification of the buffer's key, a relative path of a key file resolved."""
        provider, _, rest = self.config.buffer.key.partition(":")
        return self.config.buffer.key if provider == "credential" else f"{provider}:{self.resolve(Path(rest))}"

    def resolve(self, path: Path) -> Path:
        """A path of the configuration; a relative one starts at the configuration file's folder."""
        return path if path.is_absolute() else self.path.parent / path


def load(path: Path) -> Loaded:
    """The configuration in `path`.

    Raises: ConfigError for a file that cannot be read, is not TOML, or does not hold what it should.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, None, "", f"cannot be read: {error}", "give the path of a UTF-8 TOML file") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        raise ConfigError(path, int(found[1]) if found else None, "", f"not valid TOML: {error}") from error
    lines = key_lines(text)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise _first_error(path, lines, error) from error
    loaded = Loaded(config, path, lines)
    _check_references(loaded)
    return loaded


def secret(loaded: Loaded, spec: str) -> str:
    """The text of a secret named by credential:NAME or file:PATH, without its last line end.

    Raises: OSError when there is none, or it is not UTF-8 text; its words name the place that was looked at.
    """
    provider, _, name = spec.partition(":")
    if provider == "credential":
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise OSError(f"{spec}: not started by systemd with LoadCredential= or LoadCredentialEncrypted=")
        place = Path(folder) / name
    else:
        place = loaded.resolve(Path(name))
    try:
        return place.read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise OSError(f"{place} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OSError(f"{place} is not UTF-8 text") from error


def _first_error(path: Path, lines: dict[Key, int], error: ValidationError) -> ConfigError:
    found = error.errors()
    first = next((item for item in found if item["type"] == "extra_forbidden"), found[0])
    key: Key = tuple(first["loc"])
    reason, remedy = first["msg"].removeprefix("Value error, "), ""
    if first["type"] == "extra_forbidden":
        reason, remedy = "unknown key", "remove it or correct its spelling; docs/configuration.md lists the keys"
    elif first["type"] == "missing":
        reason, remedy = "missing", "add it; docs/configuration.md says what it means"
    elif len(found) > 1:
        remedy = f"and {len(found) - 1} more; correct this one first"
    return ConfigError(path, nearest_line(lines, key), dotted(key), reason, remedy)


def _check_references(loaded: Loaded) -> None:
    config = loaded.config
    beds: dict[str, int] = {}
    for index, bed in enumerate(config.bed):
        if bed.id in beds:
            raise loaded.error(("bed", index, "id"), f"bed {bed.id!r} stands twice", "give every bed an id of its own")
        beds[bed.id] = index
    locations: dict[str, str] = {}
    for index, bed in enumerate(config.bed):
        if bed.location and bed.location in locations:
            raise loaded.error(
                ("bed", index, "location"),
                f"location {bed.location!r} already belongs to bed {locations[bed.location]!r}",
                "one location names one bed, or a patient's values reach the wrong one",
            )
        locations[bed.location] = bed.id
    known = f"known beds: {', '.join(beds)}"
    for index, source in enumerate(config.source):
        if source.bed and source.bed not in beds:
            raise loaded.error(("source", index, "bed"), f"no bed has the id {source.bed!r}", known)
    for index, button in enumerate(config.button):
        if button.bed and button.bed not in beds:
            raise loaded.error(("button", index, "bed"), f"no bed has the id {button.bed!r}", known)
    for index, annunciator in enumerate(config.annunciator):
        if annunciator.bed and annunciator.bed not in beds:
            raise loaded.error(("annunciator", index, "bed"), f"no bed has the id {annunciator.bed!r}", known)


def dotted(key: Key) -> str:
    """A key as a person writes it: source[1].link."""
    out = ""
    for part in key:
        out += f"[{part}]" if isinstance(part, int) else (f".{part}" if out else part)
    return out


def nearest_line(lines: dict[Key, int], key: Key) -> int | None:
    """Line of `key`, or of the nearest table around it that the file states."""
    for length in range(len(key), 0, -1):
        if key[:length] in lines:
            return lines[key[:length]]
    return None


_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\]#]+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGN = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def _parts(dotted_key: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in dotted_key.split("."))


def key_lines(text: str) -> dict[Key, int]:
    """The line (from 1) on which each table and key of a TOML text stands; arrays of tables count from 0."""
    lines: dict[Key, int] = {}
    counts: dict[Key, int] = {}
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            parts = _parts(header[2])
            path: Key = ()
            for position, part in enumerate(parts):
                path = (*path, part)
                last = position == len(parts) - 1
                if last and header[1] == "[[":
                    counts[path] = counts.get(path, -1) + 1
                if path in counts:
                    lines.setdefault(path, number)
                    path = (*path, counts[path])
            table = path
            lines.setdefault(table, number)
            continue
        assign = _ASSIGN.match(line)
        if assign:
            lines.setdefault((*table, *_parts(assign[1])), number)
    return lines
