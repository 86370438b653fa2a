"""A real Apache Kafka for tests and measurements: KRaft nodes from its published jars, on free ports.

    python tests/kafka/fetch.py                             copies the jars into .cache/kafka (needs Maven once)
    python tests/kafka_broker.py --port-file FILE           runs a broker in the foreground until a signal

Listeners: plain, TLS, TLS with client certificates, and SASL over TLS. Everybody may do everything except the SASL
user `stranger`, who may do nothing until a test grants it.

`Broker` is one node with all listeners. `Cluster` is three with the plain one, each broker and controller, every record
on all of them and confirmed by two: what a hospital would run, in small.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import NamedTuple, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic, PartitionMetadata
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

ROOT = Path(__file__).resolve().parent.parent
POM = Path(__file__).resolve().parent / "kafka" / "pom.xml"
CACHE = ROOT / ".cache" / "kafka"
# Stated, because Maven would otherwise choose a version of its own that changes with the machine.
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
SASL_USER, SASL_PASSWORD = "bedside", "correct horse"
STRANGER = "stranger"


def missing() -> str:
    """Why no broker can be run here; empty when one can."""
    if shutil.which("java") is None:
        return "java is not installed (Java 17 or newer runs the broker)"
    if not _complete() and shutil.which("mvn") is None:
        return "mvn is not installed and .cache/kafka does not hold the broker's jars"
    return ""


def _complete() -> bool:
    """Whether the cache holds exactly what pom.xml asks for: the stamp is a copy of it."""
    stamp = CACHE / "pom.xml"
    return stamp.exists() and stamp.read_bytes() == POM.read_bytes()


def fetch() -> Path:
    """The folder of the broker's jars, filled by Maven when it is not complete."""
    jars = CACHE / "jars"
    if _complete():
        return jars
    shutil.rmtree(CACHE, ignore_errors=True)
    command = ["mvn", "-q", "-B", "-f", str(POM), COPY, "-DincludeScope=runtime", f"-DoutputDirectory={jars}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"Maven could not fetch the broker: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    shutil.copyfile(POM, CACHE / "pom.xml")
    return jars


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Certificate(NamedTuple):
    """A certificate with its key, as PEM files; `both` is the two in one file."""

    certificate: Path
    private_key: Path
    both: Path


class Authority:
    """A certificate authority of the tests' own."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.path = folder / "ca.pem"
        self.path.write_bytes(made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Certificate:
        """A certificate for client and server use on the loopback address."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        made = self._builder(subject, key).add_extension(names, critical=False).add_extension(usage, critical=False)
        certificate = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        private_key = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        out = Certificate(*(self._folder / f"{name}.{kind}.pem" for kind in ("certificate", "key", "both")))
        out.certificate.write_bytes(certificate)
        out.private_key.write_bytes(private_key)
        out.both.write_bytes(private_key + certificate)
        return out

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
        )


# Of every node: small, quick to start, quick to miss a peer.
_SMALL = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAIN",
    "num.partitions": "3",
    "offsets.topic.num.partitions": "3",
    "transaction.state.log.num.partitions": "3",
    "group.initial.rebalance.delay.ms": "0",
    "broker.heartbeat.interval.ms": "500",
    "log.cleaner.enable": "false",  # its buffer alone is half of the small heap
}


class Node:
    """One process of Kafka; stop or kill it and start it again on the same ports and data."""

    def __init__(self, folder: Path, properties: dict[str, str], bootstrap: str, heap_mb: int = 256) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.bootstrap = folder, bootstrap
        self.number = int(properties["node.id"])
        self._jars, self._heap_mb = fetch(), heap_mb
        self._process: subprocess.Popen[bytes] | None = None
        self._properties = folder / "server.properties"
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))

    def format(self, *arguments: str) -> None:
        """Makes the node's storage."""
        command = ("format", "-t", uuid.uuid4().hex[:22], "-c", str(self._properties), *arguments)
        self._java("kafka.tools.StorageTool", *command).wait(60)
        if not self._meta.exists():
            raise RuntimeError(f"the broker's storage was not formatted: {self._log()}")

    def format_like(self, other: Node) -> None:
        """Makes the node's storage from another one's that was never started: a Java less to wait for."""
        shutil.copytree(other._meta.parent, self._meta.parent)
        own = {"node.id": str(self.number), "directory.id": base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()}
        told = dict(line.split("=", 1) for line in other._meta.read_text().splitlines() if "=" in line)
        self._meta.write_text("".join(f"{name}={value}\n" for name, value in {**told, **own}.items()))

    @property
    def _meta(self) -> Path:
        return self.folder / "data" / "meta.properties"

    @property
    def runs(self) -> bool:
        """Whether it was started and not ended since."""
        return self._process is not None

    def configure(self, **settings: str) -> Self:
        """Sets broker properties, with underscores for dots, for the next start."""
        with self._properties.open("a") as file:
            file.writelines(f"{name.replace('_', '.')}={value}\n" for name, value in settings.items())
        return self

    def start(self, deadline_s: float = 60.0) -> Self:
        """Runs the node and returns when it answers."""
        self.launch()
        self.wait(deadline_s)
        return self

    def launch(self) -> None:
        """Runs the node and does not wait for it."""
        assert self._process is None, "the broker runs already"
        self._process = self._java("kafka.Kafka", str(self._properties))

    def wait(self, deadline_s: float, nodes: int = 1) -> None:
        """Returns when the node answers and knows of so many that do."""
        assert self._process is not None, "the broker does not run"
        end = time.monotonic() + deadline_s
        client = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200})
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"the broker ended with {self._process.returncode}: {self._log()}")
            try:
                if len(client.list_topics(timeout=1.0).brokers) >= nodes:
                    return
                time.sleep(0.05)
            except KafkaException:
                pass
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"the broker did not answer within {deadline_s} s: {self._log()}")

    def stop(self) -> None:
        """Asks the node to end and waits for it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the node at once, as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Holds the node still: its port takes bytes and nothing answers. Only `kill` follows."""
        assert self._process is not None, "the broker does not run"
        self._process.send_signal(signal.SIGSTOP)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)

    def _java(self, *command: str) -> subprocess.Popen[bytes]:
        small = [f"-Xmx{self._heap_mb}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]
        with (self.folder / "broker.log").open("ab") as log:
            return subprocess.Popen(
                ["java", *small, "-cp", f"{self._jars}/*", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={key: value for key, value in os.environ.items() if key != "CLASSPATH"},
            )

    def _log(self) -> str:
        return (self.folder / "broker.log").read_text(errors="replace")[-3000:]


class Broker(Node):
    """One node with every listener."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "tls")
        self.client = self.authority.issue("gateway")
        server = self.authority.issue("broker")
        ports = {name: free_port() for name in ("PLAIN", "TLS", "MTLS", "SASL", "CONTROLLER")}
        self.tls, self.mtls, self.sasl = (f"127.0.0.1:{ports[name]}" for name in ("TLS", "MTLS", "SASL"))
        listeners = {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}
        properties = {
            **_SMALL,
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{ports['CONTROLLER']}",
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(value for name, value in listeners.items() if name != "CONTROLLER"),
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,MTLS:SSL,SASL:SASL_SSL",
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "broker.session.timeout.ms": "2000",  # after a kill the node may register again only when this is over
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(server.both),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self.authority.path),
            "listener.name.mtls.ssl.client.auth": "required",
            "listener.name.sasl.sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": f"User:ANONYMOUS;User:CN=gateway;User:{SASL_USER}",
        }
        super().__init__(folder, properties, f"127.0.0.1:{ports['PLAIN']}")
        self.format(
            *(
                part
                for user in (SASL_USER, STRANGER)
                for part in ("--add-scram", f"SCRAM-SHA-512=[name={user},password={SASL_PASSWORD}]")
            )
        )

    def create(self, topic: str, partitions: int = 3, **settings: str) -> None:
        """Makes a topic, with its properties written with underscores for dots."""
        _create(self.bootstrap, topic, partitions, 1, settings)


class Cluster:
    """Nodes that take over from each other: each record on three of them, confirmed by two."""

    def __init__(self, folder: Path, nodes: int = 3) -> None:
        plain = {number: free_port() for number in range(1, nodes + 1)}
        control = {number: free_port() for number in plain}
        voters = ",".join(f"{number}@127.0.0.1:{port}" for number, port in control.items())
        self.bootstrap = ",".join(f"127.0.0.1:{port}" for port in plain.values())
        self.nodes = [
            Node(
                folder / f"node-{number}",
                {
                    **_SMALL,
                    "node.id": str(number),
                    "controller.quorum.voters": voters,
                    "listeners": f"PLAIN://127.0.0.1:{port},CONTROLLER://127.0.0.1:{control[number]}",
                    "advertised.listeners": f"PLAIN://127.0.0.1:{port}",
                    "listener.security.protocol.map": "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT",
                    "log.dirs": str(folder / f"node-{number}" / "data"),
                    "default.replication.factor": "3",
                    "min.insync.replicas": "2",
                    "unclean.leader.election.enable": "false",
                    "offsets.topic.replication.factor": "3",
                    "transaction.state.log.replication.factor": "3",
                    "transaction.state.log.min.isr": "2",
                    "broker.session.timeout.ms": "3000",  # a leader that was killed is missed for so long
                    "controller.quorum.fetch.timeout.ms": "2000",
                    "controller.quorum.election.timeout.ms": "500",
                    "replica.lag.time.max.ms": "5000",
                },
                f"127.0.0.1:{port}",
                heap_mb=192,
            )
            for number, port in plain.items()
        ]
        first, *others = self.nodes
        first.format()
        for node in others:
            node.format_like(first)

    def start(self, deadline_s: float = 90.0) -> Cluster:
        """Runs the nodes that do not run and returns when each of them knows of all."""
        end = time.monotonic() + deadline_s
        for node in self.nodes:
            if not node.runs:
                node.launch()
        for node in self.nodes:
            node.wait(end - time.monotonic(), len(self.nodes))
        return self

    def create(self, topic: str, partitions: int = 3, **settings: str) -> None:
        """Makes a topic on three nodes, with its properties written with underscores for dots."""
        _create(self.bootstrap, topic, partitions, 3, settings)

    def leader(self, topic: str, partition: int = 0) -> Node:
        """The node that leads a partition now."""
        return self._node(_partition(self._admin(), topic, partition).leader)

    def coordinator(self, transactional_id: str) -> Node:
        """The node that coordinates a transactional id now."""
        number = _java_hash(transactional_id) % int(_SMALL["transaction.state.log.num.partitions"])
        return self.leader("__transaction_state", number)

    def wait_in_sync(self, topic: str, deadline_s: float = 60.0) -> None:
        """Returns when every replica of a topic's partitions has caught up."""
        admin, end = self._admin(), time.monotonic() + deadline_s
        while True:
            found = admin.list_topics(topic, timeout=10).topics[topic].partitions.values()
            if found and all(len(partition.isrs) == len(partition.replicas) for partition in found):
                return
            if time.monotonic() > end:
                raise TimeoutError(f"{topic} is not in sync within {deadline_s} s")
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends every node at once."""
        for node in self.nodes:
            node.kill()

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})

    def _node(self, number: int) -> Node:
        return next(node for node in self.nodes if node.number == number)


def _create(bootstrap: str, topic: str, partitions: int, replicas: int, settings: dict[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    config = {name.replace("_", "."): value for name, value in settings.items()}
    admin.create_topics([NewTopic(topic, partitions, replicas, config=config)])[topic].result(30)


def _partition(admin: AdminClient, topic: str, partition: int) -> PartitionMetadata:
    return admin.list_topics(topic, timeout=10).topics[topic].partitions[partition]


def _java_hash(text: str) -> int:
    """Java's String.hashCode without its sign, by which Kafka finds the partition of a transactional id."""
    out = 0
    for letter in text:
        out = (31 * out + ord(letter)) & 0xFFFFFFFF
    return out & 0x7FFFFFFF


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port-file", type=Path, help="gets host:port of the plain listener")
    options = parser.parse_args()
    why = missing()
    if why:
        print(why, file=sys.stderr)
        return 69  # sysexits.h EX_UNAVAILABLE
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="bedside-kafka-") as folder:
        broker = Broker(Path(folder)).start()
        print(broker.bootstrap, flush=True)
        if options.port_file is not None:
            fresh = options.port_file.with_name(options.port_file.name + ".new")
            fresh.write_text(broker.bootstrap + "\n")
            fresh.replace(options.port_file)
        stop.wait()
        broker.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
