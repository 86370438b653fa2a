"""What `edge-agent doctor` says of receivers, registry and privacy: what happened, where, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import mosquitto
import pytest
from alert_manager import AlertManager
from mosquitto import PASSWORD, USER, Mosquitto, Subscriber
from rest_proxy import CLIENT, CLUSTER, SECRET, RestProxy
from running_agent import Bedside
from schema_registry import Registry as Served

from bench.gateway import free_port
from edge_agent.__main__ import main

Doctor = Callable[..., dict[str, list[str]]]


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command with further tables; its findings by part, each with its remedy on a line of its own."""
    bedside = Bedside(tmp_path)

    def run(*tables: str) -> dict[str, list[str]]:
        main(["doctor", "--config", str(bedside.write(*tables))])
        found: dict[str, list[str]] = {}
        part = ""
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("["):
                state, _, rest = line[1:].partition("]")
                part, _, detail = rest.strip().partition(": ")
                found.setdefault(part, []).append(f"{state.strip()}: {detail}")
            elif line.startswith("       do: "):
                found[part][-1] += "\n" + line.strip()
        return found

    return run


def secret(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(0o400)
    return f"file:{path}"


def test_without_a_receiver_it_is_told_where_records_stay(doctor: Doctor) -> None:
    (found,) = doctor()["broker"]
    assert found.startswith("warn: no receiver is configured; records stay in the buffer\ndo: add [cloud.kafka]")
    assert "broker" not in doctor('[cloud.alert_manager]\nlink = "mllp://127.0.0.1:9"')


def test_an_mqtt_broker_is_asked_with_the_gateways_own_login(doctor: Doctor, broker: Mosquitto, tmp_path: Path) -> None:
    def table(user: str = USER, password: str = PASSWORD, ca: Path = broker.authority.path, port: int = 0) -> str:
        return (
            f'[cloud.mqtt]\nbroker = "localhost:{port or broker.tls_port}"\nca = "{ca}"\nusername = "{user}"\n'
            f'password = "{secret(tmp_path, "mqtt", password)}"'
        )

    watcher = Subscriber(broker.port, "#")
    try:
        (found,) = doctor(table())["mqtt"]
        assert found == f"ok: localhost:{broker.tls_port}: takes the log-in; cloud-sync status shows delivery"
        (found,) = doctor(table(password="wrong"))["mqtt"]
        assert found.startswith(f"FAIL: localhost:{broker.tls_port}: ") and "\ndo: is the network up" in found
        assert "Not authorized" in found and PASSWORD not in found
        stranger = mosquitto.Authority(tmp_path / "stranger").path
        (found,) = doctor(table(ca=stranger))["mqtt"]
        assert found.startswith("FAIL") and "certificate verify failed" in found
        (found,) = doctor(table(port=free_port()))["mqtt"]
        assert found.startswith("FAIL") and "refused" in found.lower()
        (found,) = doctor(table().replace("/mqtt", "/nowhere"))["mqtt"]
        assert found.startswith("FAIL: ") and "edge.toml:" in found and "cloud.mqtt.password" in found
        assert "nowhere cannot be read" in found and "\ndo: the secret must exist" in found
        assert not watcher.arrivals, "nothing was published"
    finally:
        watcher.close()
    assert "gw-doctor" in broker.log() and "gw-alerts" not in broker.log()


def test_a_credential_that_only_the_service_reads_is_no_failure(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    tables = (
        '[cloud.mqtt]\nbroker = "127.0.0.1:9"\nsecurity = "plaintext"\nusername = "u"\npassword = "credential:mqtt"',
        '[privacy]\nkey = "credential:edge-agent.site-key"',
    )
    found = doctor(*tables)
    assert found["mqtt"][0].startswith("warn: credential:mqtt: only the service can read it")
    assert "LoadCredentialEncrypted=mqtt" in found["mqtt"][0]
    assert found["privacy"][0].startswith("warn: credential:edge-agent.site-key: only the service")
    secret(tmp_path, "edge-agent.site-key", f"p1 {bytes(range(32)).hex()}\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    found = doctor(*tables)
    assert found["privacy"] == ["ok: patients' identifiers leave as pseudonyms under key p1"]
    assert found["mqtt"][0].startswith("FAIL") and "cannot be read" in found["mqtt"][0]


def test_a_rest_proxy_is_asked_for_its_cluster_with_a_token(doctor: Doctor, tmp_path: Path) -> None:
    proxy = RestProxy(tokens=True)

    def table(password: str = SECRET, cluster: str = CLUSTER) -> str:
        return (
            f'[cloud.rest]\nurl = "{proxy.url}"\ncluster = "{cluster}"\ntoken_url = "{proxy.url}/token"\n'
            f'client_id = "{CLIENT}"\nclient_secret = "{secret(tmp_path, "rest", password)}"'
        )

    try:
        assert doctor(table())["rest"] == [f"ok: {proxy.url}: takes the log-in; cloud-sync status shows delivery"]
        (found,) = doctor(table(password="wrong"))["rest"]
        assert found.startswith(f"FAIL: {proxy.url}") and "401" in found and "\ndo: are url, cluster" in found
        (found,) = doctor(table(cluster="another"))["rest"]
        assert found.startswith("FAIL") and "takes the log-in, but" in found and "no such cluster" in found
        assert not proxy.records
    finally:
        proxy.close()
    (found,) = doctor(table())["rest"]
    assert found.startswith(f"FAIL: {proxy.url}")


def test_an_alert_manager_is_reached_and_hears_nothing(doctor: Doctor) -> None:
    manager = AlertManager()
    table = f'[cloud.alert_manager]\nlink = "mllp://127.0.0.1:{manager.port}"'
    try:
        (found,) = doctor(table)["alert manager"]
        assert found.startswith(f"ok: mllp://127.0.0.1:{manager.port}: accepts connections")
        assert manager.messages == []
    finally:
        manager.close()
    (found,) = doctor(table)["alert manager"]
    assert found.startswith("FAIL") and "refused" in found and "cloud.alert_manager.link right?" in found


def test_a_schema_registry_is_asked_with_its_login_and_gets_no_schema(doctor: Doctor, tmp_path: Path) -> None:
    with Served(login="gw:open sesame") as served:

        def table(password: str) -> str:
            return (
                f'[cloud.encoding]\nformat = "avro"\nregistry = "{served.url}"\nregistry_username = "gw"\n'
                f'registry_password = "{secret(tmp_path, "registry", password)}"'
            )

        assert doctor(table("open sesame"))["registry"] == [f"ok: {served.url}: answers"]
        (found,) = doctor(table("guess"))["registry"]
        assert found.startswith("FAIL") and "status 401" in found and "registry_password" in found.lower()
        assert served.subjects == {} and set(served.calls) == {"GET /subjects"}
        (found,) = doctor(table("x").replace(f"file:{tmp_path}", "file:nowhere"))["registry"]
        assert found.startswith("FAIL") and "cloud.encoding.registry_password" in found
    (found,) = doctor(table("open sesame"))["registry"]
    assert found.startswith("FAIL") and "cannot be reached" in found
    assert "registry" not in doctor()


def test_avro_that_nobody_gets_is_told(doctor: Doctor) -> None:
    avro = f'[cloud.encoding]\nformat = "avro"\nregistry = "http://127.0.0.1:{free_port()}"'
    (found,) = doctor(avro, '[cloud.alert_manager]\nlink = "mllp://127.0.0.1:9"')["encoding"]
    assert found.startswith("warn: avro is set and no receiver gets it") and "\ndo: remove [cloud.encoding]" in found
    assert "encoding" not in doctor(avro, '[cloud.rest]\nurl = "http://127.0.0.1:9"\ncluster = "c"')


def test_what_leaves_of_patients_is_told(doctor: Doctor, tmp_path: Path) -> None:
    (found,) = doctor()["privacy"]
    assert found.startswith("warn: patients' identifiers are left out: [privacy] key is not set\ndo: set [privacy] key")
    key = secret(tmp_path, "site-key", f"p1 {bytes(range(32)).hex()}\n")
    assert doctor(f'[privacy]\nkey = "{key}"')["privacy"] == [
        "ok: patients' identifiers leave as pseudonyms under key p1"
    ]
    assert doctor('[privacy]\nidentifiers = "none"')["privacy"] == ["ok: patients' identifiers are left out"]
    (found,) = doctor('[privacy]\nidentifiers = "clear"')["privacy"]
    assert found.startswith("warn: patients' identifiers leave in the clear\ndo: set [privacy] identifiers")
    os.chmod(tmp_path / "site-key", 0o444)
    (found,) = doctor(f'[privacy]\nkey = "{key}"')["privacy"]
    assert found.startswith("FAIL") and "privacy.key" in found and "can be read by others" in found


def test_kafka_files_are_looked_at_before_the_way(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor(f'[cloud.kafka]\nbootstrap = "127.0.0.1:{free_port()}"\nsecurity = "tls"\nca = "nowhere.pem"')[
        "broker"
    ]
    assert found[0].startswith("FAIL") and "cloud.kafka.ca" in found[0] and "nowhere.pem cannot be read" in found[0]
    assert found[1].startswith("FAIL") and "refused" in found[1]
