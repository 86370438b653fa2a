"""A backlog as an outage leaves it, and the production forwarder that drains it into a real Kafka."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition

from bench.gateway import BIN
from bench.stores import GROUP, Sealed, entries
from edge_agent.buffer import create_key_file, load_kek
from edge_agent.buffer.marks import BadMark, mark_path, read_mark

PARTITIONS = 3
TOPIC = "observations"
_CHUNK = GROUP * 200


def fill(data_dir: Path, key: Path, records: int) -> int:
    """Sealed blocks of 110 numerics each, through the production buffer; the number of the last block."""
    if not key.exists():
        create_key_file(key)
    made = entries(_CHUNK, time.monotonic_ns() - 3600 * 10**9)
    parts = [made[start : start + GROUP] for start in range(0, _CHUNK, GROUP)]
    store = Sealed(data_dir, load_kek(f"file:{key}"))  # one at a time, so that blocks are of 110
    try:
        for number in range(-(-records // GROUP)):
            store.commit(parts[number % len(parts)])
        store.settle()
        return store.blocks()
    finally:
        store.close()


def drained_to(data_dir: Path) -> int:
    """The block up to which the data are delivered, by the durable mark."""
    try:
        mark = read_mark(mark_path(data_dir, "data"))
    except BadMark:
        return 0
    return 0 if mark is None else mark.block


class Forwarder:
    """`cloud-sync run` over a folder of records, without an agent."""

    def __init__(
        self, folder: Path, data_dir: Path, key: Path, bootstrap: str, prefix: str = "bench", exactly_once: bool = True
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        site = folder / "site.key"
        site.write_text(f"p1 {os.urandom(32).hex()}\n")
        site.chmod(0o400)
        self._log = folder / "cloud-sync.log"
        config = folder / "edge.toml"
        config.write_text(
            f'[gateway]\nid = "bench"\ndata_dir = "{data_dir}"\n'
            f'[control]\nsocket = "{folder / "control.sock"}"\n'
            f'[buffer]\nkey = "file:{key}"\n'
            f'[privacy]\nkey = "file:{site}"\n'
            '[[bed]]\nid = "ICU-0"\n'
            f'[[source]]\ndriver = "hl7"\nlink = "mllp-listen://127.0.0.1:2575"\n'
            f'[cloud.kafka]\nbootstrap = "{bootstrap}"\nsecurity = "plaintext"\ntopic_prefix = "{prefix}"\n'
            f"exactly_once = {str(exactly_once).lower()}\n"
        )
        self.config = config

    def __enter__(self) -> Forwarder:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(
                [str(BIN / "cloud-sync"), "run", "--config", str(self.config)], stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def check(self) -> None:
        """Raises: RuntimeError when the forwarder has ended."""
        if self._child.poll() is not None:
            raise RuntimeError(f"cloud-sync ended:\n{self._log.read_text()[-2000:]}")

    def memory_kb(self, what: str) -> int:
        """`VmRSS`: resident now, `VmHWM`: at most so far; shared pages included."""
        for line in Path(f"/proc/{self._child.pid}/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1])
        raise RuntimeError(f"the kernel does not tell {what}")

    def processor_s(self) -> float:
        """Processor time of the process so far."""
        return processor_s(self._child.pid)


def processor_s(pid: int) -> float:
    """Processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Offsets:
    """How far a topic has come, asked of the broker: the same clock for everyone who produces."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "bench", "isolation.level": "read_committed", "log_level": 0}
        )
        self._places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        deadline = time.monotonic() + 30
        while True:  # a topic that was just made has no leader for a moment
            try:
                self.end()
                return
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def end(self) -> int:
        """The sum of the ends of all partitions, as a reader of committed records sees them."""
        return sum(self._consumer.get_watermark_offsets(place, timeout=10)[1] for place in self._places)

    def close(self) -> None:
        """Ends the connection."""
        self._consumer.close()
