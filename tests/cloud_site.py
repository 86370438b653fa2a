"""A site for the forwarder's tests: configuration, key, buffer, the forwarder as a process, and what a broker holds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kafka_broker import Broker, Cluster

from cloud_sync.embedded import Arrival, Arrivals
from edge_agent import config, records, terms
from edge_agent.buffer import Buffer, Reader, create_key_file, load_kek

DEADLINE_S = 90.0
GATEWAY = "gw-1"


def until(done: Callable[[], Any], step: Callable[[], object] | None = None, deadline_s: float = DEADLINE_S) -> None:
    """Steps until it is done; a state of another process is looked at every 20 ms."""
    end = time.monotonic() + deadline_s
    while not done():
        assert time.monotonic() < end, f"not within {deadline_s} s"
        if step is None:
            time.sleep(0.02)
        else:
            step()


class Site:
    """One gateway's folder."""

    def __init__(self, folder: Path, kafka: str, prefix: str) -> None:
        self.folder, self.prefix, self.data_dir = folder, prefix, folder / "data"
        self.path = folder / "site.toml"
        self.key = folder / "kek"
        self.write(kafka)
        create_key_file(self.key)
        self._children: list[subprocess.Popen[bytes]] = []

    def write(self, kafka: str) -> None:
        self.path.write_text(
            f'[gateway]\nid = "{GATEWAY}"\ndata_dir = "{self.data_dir}"\n'
            f'[control]\nsocket = "{self.folder}/control.sock"\n'
            f'[buffer]\nkey = "file:{self.key}"\n[privacy]\nidentifiers = "clear"\n'
            f'[[bed]]\nid = "ICU-1"\n[cloud.kafka]\ntopic_prefix = "{self.prefix}"\n{kafka}\n'
        )

    def store(self, batches: Iterable[Sequence[records.Entry]]) -> None:
        """Seals the entries and returns when they are durable."""
        last = 0
        committed: list[int] = []
        faults: list[tuple[str, str]] = []
        buffer = Buffer(
            self.data_dir,
            load_kek(f"file:{self.key}"),
            GATEWAY,
            config.Buffer(key=f"file:{self.key}"),
            on_committed=committed.append,
            on_fault=lambda kind, detail: faults.append((kind, detail)),
        )
        try:
            for batch in batches:
                last = buffer.append(list(batch))
                if last % 20 == 0:  # faster than the disk, and the buffer would shed what waits in memory
                    until(lambda wanted=last: committed and committed[-1] >= wanted)
            until(lambda: committed and committed[-1] >= last)
        finally:
            buffer.close(10.0)
        assert not faults

    def run(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts `cloud-sync run`; its words go to cloud-sync.log."""
        with (self.folder / "cloud-sync.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "cloud_sync", "run", "--config", str(self.path), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._children.append(child)
        return child

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of cloud-sync to its end."""
        command = [sys.executable, "-m", "cloud_sync", *arguments, "--config", str(self.path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    def status(self) -> dict[str, Any]:
        """The state file, empty before there is one; fails when a forwarder has ended by itself."""
        assert all(child.poll() in (None, 0, -signal.SIGKILL) for child in self._children), self.log()
        try:
            found: dict[str, Any] = json.loads((self.data_dir / "cloud-sync" / "status.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def log(self) -> str:
        return (self.folder / "cloud-sync.log").read_text()

    def end(self, child: subprocess.Popen[bytes]) -> int:
        """Asks the forwarder to stop; its exit code."""
        child.send_signal(signal.SIGTERM)
        return child.wait(30)

    def close(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
                child.wait(30)


class ReceiverSite(Site):
    """A site whose receivers are the tables given, in place of Kafka's."""

    def write(self, tables: str) -> None:
        super().write("")
        self.path.write_text(self.path.read_text().partition("[cloud.kafka]")[0] + tables)


def sealed(site: Site, stream: str) -> dict[str, list[str]]:
    """The identity of every record of a stream by bed, in order."""
    reader = Reader(site.data_dir, load_kek(f"file:{site.key}"))
    try:
        blocks = reader.read(stream, None, 100_000)
    finally:
        reader.close()
    out: dict[str, list[str]] = {}
    for block in blocks:
        for sequence, entry in enumerate(block.entries, block.first):
            out.setdefault(entry.bed, []).append(f"{GATEWAY}/{block.instance}/{sequence}")
    return out


def observation(number: int, bed: str = "ICU-1", patient: str = "") -> records.Entry:
    """A value that tells its own number; every seventh is missing."""
    value = None if number % 7 == 0 else number / 2
    return records.Entry(bed, "hl7@test", patient, records.observation(terms.BY_NAME["spo2"], value, number * 1_000))


def alarm(number: int, bed: str = "ICU-1") -> records.Entry:
    event = records.AlarmEvent(
        f"alert-{number}", "spo2_low", "physiological", "high", "start", "On", number * 1_000, "SpO2 low", "spo2", 82.0
    )
    return records.Entry(bed, "hl7@test", "", event)


def consume(bootstrap: str, prefix: str, enough: Callable[[list[Arrival]], bool]) -> list[Arrival]:
    """What the topics of the prefix hold, read until it is enough and nothing more comes."""
    found: list[Arrival] = []
    arrivals = Arrivals(bootstrap, prefix)
    try:
        until(lambda: enough(found), lambda: found.extend(arrivals.poll(0.2)))
    except AssertionError as error:
        raise AssertionError(f"arrived {arrivals.counts}") from error
    else:
        while more := arrivals.poll(0.3):
            found.extend(more)
    finally:
        arrivals.close()
    return found


def on_topic(found: Iterable[Arrival], topic: str) -> list[dict[str, Any]]:
    """Messages of a topic named without its prefix, decoded, in the order of arrival."""
    return [json.loads(arrival.value) for arrival in found if arrival.topic.endswith(f".{topic}")]


def count(found: Iterable[Arrival], topic: str) -> int:
    """How many messages a topic holds, copies included."""
    return sum(arrival.topic.endswith(f".{topic}") for arrival in found)


def identities(found: Iterable[Arrival], topic: str) -> set[str]:
    return {arrival.headers["dedup"] for arrival in found if arrival.topic.endswith(f".{topic}")}


def plain(broker: Broker | Cluster) -> str:
    """The address of a broker, as the configuration gives it."""
    return f'bootstrap = "{broker.bootstrap}"\nsecurity = "plaintext"'


def batches(start: int, total: int, size: int = 500) -> Iterator[list[Any]]:
    """Observations of four beds."""
    for first in range(start, total, size):
        yield [observation(number, f"ICU-{number % 4}") for number in range(first, min(first + size, total))]


def each_once(found: list[Arrival], topic: str, total: int) -> None:
    """Every identity of the topic, in order within each bed, and none of them twice."""
    times = Counter(arrival.headers["dedup"] for arrival in found if arrival.topic.endswith(f".{topic}"))
    twice = {identity for identity, often in times.items() if often > 1}
    assert not twice, f"{len(twice)} records came twice, for example {sorted(twice)[:3]}"
    assert len(times) == total
    last: dict[str, int] = {}
    for message in on_topic(found, topic):
        assert message["sequence"] > last.get(message["bed"], -1), "order within a bed"
        last[message["bed"]] = message["sequence"]


def seen(bootstrap: str, prefix: str, total: int, alerts: int = 0) -> list[Arrival]:
    """What a read_committed consumer finds when so many are there."""
    return consume(
        bootstrap,
        prefix,
        lambda found: count(found, "observations") >= total and count(found, "alerts") >= alerts,
    )


def drained(site: Site) -> None:
    """Returns when nothing waits."""
    until(lambda: site.status().get("backlog_records") == 0 and site.status()["state"] == "connected")
