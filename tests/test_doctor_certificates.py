"""What the doctor says of client certificates: dates, key, authority, modes; and the number that monitoring gets."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from running_agent import Bedside

from edge_agent import certificates, metrics
from edge_agent.commands.doctor_certificates import check_certificates
from edge_agent.commands.finding import Finding
from edge_agent.config import Loaded, load

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = timedelta(days=1)


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def pem(key: Key | ed25519.Ed25519PrivateKey) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form)


class Site:
    """An authority, and the files of one gateway."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bedside = folder, Bedside(folder)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ca = self.sign("Site CA", self.key, self.key, "Site CA", days=3650, authority=True)
        self.own: Key = ec.generate_private_key(ec.SECP384R1())
        self.write("ca.pem", self.ca.public_bytes(serialization.Encoding.PEM))
        self.write("client.key", pem(self.own), 0o600)
        self.issue()

    def sign(
        self, subject: str, key: Key, by: Key, issuer: str, *, days: float, begins: float = -1, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now + begins * DAY).not_valid_after(now + days * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .sign(by, hashes.SHA256())
        )  # fmt: skip

    def write(self, file: str, data: bytes, mode: int = 0o644) -> None:
        path = self.folder / file
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(mode)

    def issue(self, *, days: float = 365, begins: float = -1) -> None:
        made = self.sign("gw", self.own, self.key, "Site CA", days=days, begins=begins)
        self.write("client.pem", made.public_bytes(serialization.Encoding.PEM))

    def loaded(self) -> Loaded:
        table = (
            '[cloud.kafka]\nbootstrap = "b:1"\nca = "ca.pem"\ncertificate = "client.pem"\nprivate_key = "client.key"'
        )
        return load(self.bedside.write(table))

    def found(self, root: Path = Path("/nowhere")) -> list[Finding]:
        told = list(check_certificates(self.loaded(), root))
        assert all(each.remedy for each in told if each.state != "ok")
        return told

    def only(self, root: Path = Path("/nowhere")) -> Finding:
        (one,) = self.found(root)
        return one


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_one_that_is_well(site: Site) -> None:
    found = site.only()
    assert found.state == "ok" and "CN=gw, 365 days left" in found.detail
    assert not list(check_certificates(load(site.bedside.write()), Path("/nowhere")))


@pytest.mark.parametrize(
    ("days", "begins", "state", "words"),
    [(-0.5, -9, "FAIL", "has ended on 20"), (29.5, -1, "warn", "ends on 20"), (400, 2, "FAIL", "begins on 20")],
)
def test_dates(site: Site, days: float, begins: float, state: str, words: str) -> None:
    site.issue(days=days, begins=begins)
    found = site.only()
    assert found.state == state and words in found.detail
    assert ("docs/it.md" in found.remedy) is (begins < 0), "one that begins tomorrow means a wrong clock"


def test_thirty_days_are_enough(site: Site) -> None:
    site.issue(days=30.5)
    assert site.only().state == "ok"


def test_a_key_of_another_certificate(site: Site) -> None:
    site.write("client.key", pem(ec.generate_private_key(ec.SECP256R1())), 0o600)
    found = site.only()
    assert found.state == "FAIL" and "client.key is not the key of" in found.detail


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_none(site: Site, data: bytes) -> None:
    site.write("client.key", data, 0o600)
    assert site.only().state == "FAIL" and "no private key" in site.only().detail


def test_files_that_are_missing_or_are_something_else(site: Site) -> None:
    (site.folder / "client.key").unlink()
    assert "client.key: No such file" in site.only().detail
    site.write("client.key", pem(site.own), 0o600)
    site.write("client.pem", b"PK\x03\x04")
    assert "no certificate in PEM form" in site.only().detail
    (site.folder / "client.pem").unlink()
    assert "cannot be read: No such file" in site.only().detail
    site.issue()
    (site.folder / "ca.pem").unlink()
    assert "cloud.kafka.ca" in site.only().detail


def test_modes_of_the_key(site: Site, tmp_path: Path) -> None:
    (site.folder / "client.key").chmod(0o640)
    found = site.only()
    assert found.state == "FAIL" and "mode 0640" in found.detail and "chmod 0600" in found.remedy
    (site.folder / "client.key").chmod(0o600)
    root = tmp_path / "root"
    (root / "opt/bedside-edge/releases").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text("cloud-sync:x:4711:4711::/:\n")
    found = site.only(root)
    assert (
        found.state == "FAIL" and "cannot be read by cloud-sync" in found.detail and "chown cloud-sync" in found.remedy
    )
    (root / "etc/passwd").write_text(f"cloud-sync:x:{os.getuid()}:4711::/:\n")
    assert site.only(root).state == "ok"


def test_another_authority(site: Site) -> None:
    """Of the same name, so that only the signature tells them apart."""
    other = ec.generate_private_key(ec.SECP256R1())
    made = site.sign("Site CA", other, other, "Site CA", days=3650, authority=True)
    site.write("ca.pem", made.public_bytes(serialization.Encoding.PEM))
    found = site.only()
    assert found.state == "warn" and "was not issued by" in found.detail and "CN=Site CA" in found.remedy
    both = made.public_bytes(serialization.Encoding.PEM) + site.ca.public_bytes(serialization.Encoding.PEM)
    site.write("ca.pem", both)
    assert site.only().state == "ok", "one of several is enough"


def test_an_authority_between(site: Site) -> None:
    site.own = rsa.generate_private_key(65537, 2048)
    site.write("client.key", pem(site.own), 0o600)
    between = ec.generate_private_key(ec.SECP256R1())
    sub = site.sign("Ward CA", between, site.key, "Site CA", days=3000, authority=True)
    leaf = site.sign("gw", site.own, between, "Ward CA", days=300)
    site.write("client.pem", leaf.public_bytes(serialization.Encoding.PEM))
    assert "was not issued by" in site.only().detail, "without the one between nobody can follow"
    chain = leaf.public_bytes(serialization.Encoding.PEM) + sub.public_bytes(serialization.Encoding.PEM)
    site.write("client.pem", chain)
    assert site.only().state == "ok"


def test_an_authority_that_ends(site: Site) -> None:
    for days, state in ((20, "warn"), (-0.5, "FAIL")):
        made = site.sign("Site CA", site.key, site.key, "Site CA", days=days, begins=-9, authority=True)
        site.write("ca.pem", made.public_bytes(serialization.Encoding.PEM))
        found = site.only()
        assert found.state == state and "the authority CN=Site CA ends on" in found.detail


def test_monitoring_gets_the_day_it_ends(site: Site) -> None:
    own = certificates.read(site.folder / "client.pem")[0]
    text = metrics.host_text(site.loaded())
    assert f'edge_agent_certificate_expiry_seconds{{receiver="kafka"}} {own.not_after}' in text.splitlines()
    (site.folder / "client.pem").unlink()
    assert "certificate_expiry" not in metrics.host_text(site.loaded())
