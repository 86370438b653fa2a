"""The whole path with marked patients: nothing of what HL7 said of them comes out anywhere, except as pseudonyms."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alert_manager import AlertManager
from cloud_site import consume, on_topic
from cloud_site import until as wait_until
from running_agent import Bedside, dial, running
from schema_registry import Registry as Served

from bench.messages import message as vitals
from cloud_sync import pcd04
from cloud_sync.embedded import Arrival, EmbeddedKafka
from cloud_sync.pseudonym import SiteKey
from drivers.hl7.decoder import Hl7
from edge_agent import records
from edge_agent.control import ControlClient

KEYS = {"p1": bytes(range(32)), "n2": bytes(range(7, 39))}
UMLAUT, ESCAPED, MERGED, NUMBER, SPOKEN = "MRN-Äß-7ZQ41", "P\\T\\8Z201-Ж", "OLD-6Z120", "998-77-6655", "SPK-3Z337"
# No output may hold one of these, in capitals or not.
SAID = (
    UMLAUT, SPOKEN, "7ZQ41", "8Z201", MERGED, NUMBER, "998776655", "Zuckerkandl", "Ottilie", "Łukasiewicz", "Øyvind",
    "Balthasar", "19471123", "1947-11-23", "Rosengasse", "43155512345", "ACC-5Z310", "Hieronymus",
)  # fmt: skip
PERSON = (
    "Zuckerkandl^Ottilie^Q^^Dr.|Maiden^Łukasiewicz|19471123|F|Alias^Øyvind||Rosengasse 9^^Wien^^1030||"
    f"+43155512345|||||ACC-5Z310|{NUMBER}"
)
REST = "NK1|1|Zuckerkandl^Balthasar|SPO||+43155512345"
DOCTOR = "|||7^Hieronymus^Karl"


def framed(text: str) -> bytes:
    return b"\x0b" + text.encode() + b"\x1c\r"


def adt(event: str, patient: str, location: str, more: str = "", prior: str = "") -> bytes:
    return framed(
        f"MSH|^~\\&|ADT|H|||20260101||ADT^{event}|A-{event}-{location[-1:]}|P|2.6||||||UNICODE UTF-8\r"
        f"EVN|{event}|20260101\rPID|1|ACC-5Z310|{patient}^^^HOSP^MR~{NUMBER}^^^SSA^SS||{PERSON}\r{more}{REST}\r"
        f"PV1||I|{location}|||{prior}{DOCTOR}\r"
    )


def oru(number: int, bed: int, patient: str, spo2: float = 97.0) -> bytes:
    text = (
        vitals(number, bed, spo2).decode().replace(f"PID|||P{bed}^^^HOSPITAL^PI||", f"PID|||{patient}^^^H^MR||{PERSON}")
    )
    assert patient in text
    return framed(text)


def spoken_alarm() -> bytes:
    """A device that repeats the identifier in the text and the name of its alarm."""
    event = records.AlarmEvent(
        f"{SPOKEN}.7", "pump", "physiological", "medium", "start", "On", 5, f"Pump of {SPOKEN.lower()} stopped"
    )
    alert = pcd04.Alert(event, "x", "MON", 1_767_225_600_000_000_000, "", "ICU^^4", SPOKEN)
    return b"\x0b" + pcd04.message(alert, pcd04.Sender(), 1_767_225_600_000_000_000) + b"\x1c\r"


MESSAGES = (
    adt("A01", UMLAUT, "ICU^^3"),
    oru(1, 3, UMLAUT, 80.0),
    oru(2, 3, UMLAUT),
    oru(3, 9, "STRAY-7ZQ41"),  # a bed that is not of this gateway
    adt("A02", ESCAPED, "ICU^^4", prior="ICU^^3"),
    oru(4, 4, ESCAPED, 81.0),
    oru(5, 3, f"{NUMBER}"),
    adt("A40", ESCAPED, "", more=f"MRG|{MERGED}^^^HOSP^MR\r"),
    adt("A08", UMLAUT, "ICU^^3"),
    oru(6, 3, NUMBER, 79.0),  # the monitor names another than the one admitted
    adt("A03", ESCAPED, "ICU^^4"),
    adt("A05", UMLAUT, "ICU^^4"),  # a message that is not used, and one that is cut
    framed(f"PID|||{UMLAUT}||{PERSON}\r"),
    framed(f"MSH|^~\\&|A|B|||20260101||ORU^R01|C9|P|2.6||||||UNICODE UTF-8\rPID|||{UMLAUT}||{PERSON}\rOBX|1|NM|Zuck"),
)


def tells(where: str, text: str, said: tuple[str, ...] = SAID) -> None:
    """Fails naming the place, never the text."""
    low = text.lower()
    found = [mark for mark in said if mark.lower() in low or json.dumps(mark.lower())[1:-1] in low]
    assert not found, f"{where} tells {len(found)} of the marked words, first number {said.index(found[0])}"


def everything(found: list[Arrival]) -> str:
    """Topics, keys, headers and values; JSON decoded, so that no escape hides a letter."""
    parts = []
    for arrival in found:
        value = json.dumps(json.loads(arrival.value), ensure_ascii=False)
        parts += [arrival.topic, arrival.key, *arrival.headers, *arrival.headers.values(), value]
    return "\n".join(parts)


class Gateway(Bedside):
    """A bedside with receivers and a site key."""

    def set_key(self, name: str) -> None:
        path = self.folder / "site-key"
        path.unlink(missing_ok=True)
        path.write_text(f"{name} {KEYS[name].hex()}\n")
        path.chmod(0o400)

    def configure(self, bootstrap: str, prefix: str, manager: int, privacy: str, more: str = "") -> Path:
        return self.write(
            f"[privacy]\n{privacy}",
            f'[cloud.kafka]\nbootstrap = "{bootstrap}"\nsecurity = "plaintext"\ntopic_prefix = "{prefix}"'
            "\nexactly_once = false",  # the embedded one knows no transactions
            f'[cloud.alert_manager]\nlink = "mllp://127.0.0.1:{manager}"\ntechnical = true',
            more,
        )

    @contextmanager
    def forwarding(self, config: Path) -> Iterator[Path]:
        """cloud-sync as its own process, its log at the path."""
        path = self.folder / "cloud-sync.log"
        with path.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "cloud_sync", "run", "--verbose", "--config", str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            yield path
        finally:
            child.send_signal(signal.SIGTERM)
            assert child.wait(30) == 0, path.read_text()[-2000:]

    def command(self, module: str, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.stdout + done.stderr

    def delivered(self) -> bool:
        try:
            status = json.loads((self.data_dir / "cloud-sync" / "status.json").read_bytes())
        except FileNotFoundError:
            return False
        return (
            status["state"] == "connected" and status["backlog_records"] == 0 and sum(status["forwarded"].values()) > 0
        )


@pytest.fixture
def bedside(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


@pytest.fixture
def manager() -> Iterator[AlertManager]:
    made = AlertManager()
    yield made
    made.close()


async def play(gateway: Gateway, config: Path, *more: bytes, commands: bool = True) -> str:
    """Sends everything to a running agent; what its control socket and its commands say meanwhile."""
    said: list[str] = []

    def ask() -> None:
        with ControlClient(gateway.folder / "control.sock") as client:
            for op in ("status", "metrics"):
                said.append(json.dumps(client.call(op), ensure_ascii=False))
            for bed in ("ICU-3", "ICU-4"):
                said.append(json.dumps(client.call("limits", bed=bed), ensure_ascii=False))

    async with running(config):
        monitor = await dial(gateway.port)
        for number, data in enumerate((*MESSAGES, *more)):
            monitor.send(data)
            if b"\rPID" in data and b"OBX|1|NM|Zuck" not in data:
                await monitor.reply()
            if number % 3 == 0:
                await asyncio.to_thread(ask)
        await asyncio.to_thread(ask)
        for command in (
            ("status",), ("status", "--json"), ("watch", "--once", "--size", "160x50"),
            ("watch", "--once", "--bed", "ICU-3"),
            ("metrics",), ("doctor",), ("acknowledge", "--bed", "ICU-3"),
        ) if commands else ():  # fmt: skip
            said.append(await asyncio.to_thread(gateway.command, "edge_agent", *command, "--config", str(config)))
        monitor.close()
    for command in (
        ("alarms", "export"), ("alarms", "export", "--csv"), ("alarms", "log"), ("alarms", "report"),
        ("buffer", "stats"), ("buffer", "verify"),
    ) if commands else ():  # fmt: skip
        said.append(await asyncio.to_thread(gateway.command, "edge_agent", *command, "--config", str(config)))
    return "\n".join(said)


def forwarded(gateway: Gateway, config: Path, bootstrap: str, prefix: str) -> tuple[list[Arrival], str]:
    """Everything that reached the topics, and what the forwarder and its commands said."""
    with gateway.forwarding(config) as log:
        wait_until(gateway.delivered, deadline_s=45)
        said = gateway.command("cloud_sync", "status", "--config", str(config))
        said += gateway.command("cloud_sync", "status", "--json", "--config", str(config))
    found = consume(bootstrap, prefix, lambda found: len(on_topic(found, "observations")) >= 60)
    return found, said + log.read_text()


def patients(found: list[Arrival]) -> set[str]:
    return {message["patient"] for topic in ("observations", "alerts") for message in on_topic(found, topic)
            if "patient" in message}  # fmt: skip


async def test_nothing_said_of_a_patient_comes_out(
    bedside: Gateway, manager: AlertManager, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    bedside.set_key("p1")
    with EmbeddedKafka() as kafka:
        config = bedside.configure(kafka.bootstrap, "first", manager.port, 'key = "file:site-key"')
        tells("the control socket", await play(bedside, config, commands=False))
        found, said = await asyncio.to_thread(forwarded, bedside, config, kafka.bootstrap, "first")
        # a second run of the agent: the same patients, and one whose monitor repeats the identifier in a text
        tells("a command or the control socket", await play(bedside, config, spoken_alarm()))
        again, more = await asyncio.to_thread(forwarded, bedside, config, kafka.bootstrap, "first")
        # another site's key over the same records
        bedside.set_key("n2")
        shutil.rmtree(bedside.data_dir / "cloud-sync")
        shutil.rmtree(bedside.data_dir / "marks", ignore_errors=True)
        elsewhere = bedside.configure(kafka.bootstrap, "second", manager.port, 'key = "file:site-key"')
        other, _ = await asyncio.to_thread(forwarded, bedside, elsewhere, kafka.bootstrap, "second")

    for place, text in {
        "a topic": everything(found) + everything(again) + everything(other),
        "the forwarder": said + more,
        "the alert manager's messages": "\n".join(message.decode() for message in manager.messages),
        "the agent's log": "\n".join(record.getMessage() for record in caplog.records),
        "standard output": "".join(capfd.readouterr()),
        "a name of a file": "\n".join(str(path) for path in bedside.folder.rglob("*")),
    }.items():
        assert text or place == "standard output", place
        tells(place, text)

    def names(key: str, *identifiers: str) -> set[str]:
        return {SiteKey(key, KEYS[key]).pseudonym(each) for each in identifiers}

    admitted = names("p1", UMLAUT, ESCAPED)
    assert admitted <= patients(found) <= admitted | names("p1", NUMBER)
    assert patients(again) == patients(found), "the same patients after a restart"
    alarms = [message["record"] for message in on_topic(again, "alerts")]
    spoken = next(record for record in alarms if record["item"] == "device_alarm")
    assert {spoken["subject"]} == names("p1", SPOKEN) and spoken["text"] == "Pump of [patient] stopped"
    assert "[patient].7" in spoken["alert_id"]
    assert any(record["text"] == "Pump of [patient] stopped" for record in alarms if record["item"] == "alarm_event")
    events = [message["record"] for message in on_topic(found, "alerts") if message["record"]["item"] == "patient"]
    merge = next(event for event in events if event["event"] == "A40")
    assert {merge["patient_id"]} == names("p1", ESCAPED) and {merge["prior_patient_id"]} == names("p1", MERGED)
    assert names("p1", NUMBER) & {message["record"].get("subject") for message in on_topic(found, "observations")}
    assert {name.partition(":")[0] for name in patients(other)} == {"n2"}
    pids = {Hl7().feed(records.Chunk(0, b"\x0b" + one + b"\x1c\r"))[0].subject for one in manager.messages}  # type: ignore[union-attr]
    assert admitted & pids, "the alert manager gets them under the same pseudonyms"
    assert "pseudonyms under key p1" in said


async def test_without_a_key_patients_are_left_out_and_status_says_so(bedside: Gateway, manager: AlertManager) -> None:
    with EmbeddedKafka() as kafka, Served() as served:
        encoding = f'[cloud.encoding]\nformat = "avro"\nregistry = "{served.url}"'
        config = bedside.configure(kafka.bootstrap, "bare", manager.port, "", encoding)
        await play(bedside, config, commands=False)

        def forward() -> tuple[list[Arrival], str]:
            with bedside.forwarding(config) as log:
                wait_until(bedside.delivered, deadline_s=45)
                said = bedside.command("cloud_sync", "status", "--config", str(config))
            return consume(kafka.bootstrap, "bare", lambda found: len(found) >= 60), said + log.read_text()

        found, said = await asyncio.to_thread(forward)
        messages: list[dict[str, Any]] = [served.decode(arrival.value) for arrival in found]
        tells("a topic", json.dumps(messages, ensure_ascii=False, default=str))
        assert {message["patient"] for message in messages} == {None}
        assert {message["record"].get("subject") for message in messages} == {None}
        assert {message["record"]["patient_id"] for message in messages if "patient_id" in message["record"]} == {""}
    tells("the forwarder", said)
    assert "left out: [privacy] key is not set" in said
