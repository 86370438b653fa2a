"""A bundle is trusted for its signature, and read for nothing else than plain files that its manifest names."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from release_bench import make_bundle, make_key

from edge_agent.__main__ import main
from edge_agent.alarm_log import store as log_store
from edge_agent.buffer import store as buffer_store
from edge_agent.release import bundle as bundles
from edge_agent.release.build import FILES, PARTS, build, sign
from edge_agent.release.bundle import BUNDLE, MACHINE, Stop, order, unpack, verify

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A bundle, its key, the folder of trusted keys."""
    folder = tmp_path_factory.mktemp("bundle")
    key = make_key(folder)
    return make_bundle(folder, "1.1.0", key), key, folder / "trusted"


@pytest.fixture
def bundle(made: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for path in (made[0], made[0].with_name(made[0].name + ".sig")):
        shutil.copy(path, tmp_path)
    return tmp_path / made[0].name


def checked(bundle: Path, trusted: Path) -> dict[str, Any]:
    with bundle.open("rb") as content:
        return verify(content, bundle.with_name(bundle.name + ".sig"), trusted)


def resign(bundle: Path, key: Path, **change: Any) -> None:
    """Signs a bundle as it is now, with some of the statement changed."""
    import hashlib

    raw = bundle.read_bytes()
    with tarfile.open(bundle) as tar:
        first = tar.extractfile(tar.next())  # type: ignore[arg-type]
        assert first is not None
        manifest = first.read()
    stated = {
        "format": 1, "name": "bedside-edge", "version": "1.1.0", "size": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(), "manifest_sha256": hashlib.sha256(manifest).hexdigest(), **change,
    }  # fmt: skip
    sign(stated, bundle.with_name(bundle.name + ".sig"), key)


def rewritten(bundle: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """The bundle with other entries, unsigned."""
    entries = []
    with tarfile.open(bundle) as tar:
        for member in tar:
            content = tar.extractfile(member)
            entries.append((member, content.read() if content else b""))
    change(entries)
    with tarfile.open(bundle, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, data in entries:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))


def test_a_good_bundle_is_what_it_says(bundle: Path, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    manifest = checked(bundle, made[2])
    assert manifest["version"] == "1.1.0" and "systemd/edge-agent.service" in manifest["files"]
    target = tmp_path / "there"
    target.mkdir()
    with bundle.open("rb") as content:
        unpack(content, manifest, target)
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {*manifest["files"], "manifest.json"}
    assert (target / "systemd/edge-agent.service").read_text() == "# edge-agent.service of 1.1.0\n"


@pytest.mark.parametrize("at", [0.01, 0.3, 0.9])
def test_one_bit_is_enough(bundle: Path, made: tuple[Path, Path, Path], at: float) -> None:
    raw = bytearray(bundle.read_bytes())
    raw[int(len(raw) * at)] ^= 1
    bundle.write_bytes(raw)
    with pytest.raises(Stop, match="are not those that were signed") as stop:
        checked(bundle, made[2])
    assert stop.value.code == BUNDLE


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_bundle_cut_off_or_longer_is_refused(bundle: Path, made: tuple[Path, Path, Path], size: int) -> None:
    raw = bundle.read_bytes()
    bundle.write_bytes(raw[:size] if size >= 0 else raw + b"x")
    with pytest.raises(Stop, match="bytes long as was signed"):
        checked(bundle, made[2])


def test_the_signed_line_cannot_be_changed(bundle: Path, made: tuple[Path, Path, Path]) -> None:
    path = bundle.with_name(bundle.name + ".sig")
    path.write_bytes(path.read_bytes().replace(b'"1.1.0"', b'"1.2.0"'))
    with pytest.raises(Stop, match="none of 1 trusted keys made it"):
        checked(bundle, made[2])


@pytest.mark.parametrize(
    "raw", [b"", b"{}\n", b"x" * 5000, b"[]\nAAAA\n", b'{"version": "1.1.0", "size": "big"}\n\n', b"\xff\n\xff\n"]
)
def test_what_is_no_signature_says_so(bundle: Path, made: tuple[Path, Path, Path], raw: bytes) -> None:
    bundle.with_name(bundle.name + ".sig").write_bytes(raw)
    with pytest.raises(Stop, match="is not a signature of a release"):
        checked(bundle, made[2])


def test_keys_that_do_not_count(bundle: Path, made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    with pytest.raises(Stop, match=r"no key is trusted yet\n.*put the release-signing public key into"):
        checked(bundle, trusted)
    make_key(tmp_path, "other")
    with pytest.raises(Stop, match="none of 1 trusted keys made it"):
        checked(bundle, trusted)
    public = (made[2] / "key.pub").read_text()
    ours = trusted / "ours.pub"
    ours.write_text(f"Expires: 2020-12-31\n{public}")
    with pytest.raises(Stop, match=r"ours.pub: made the signature, and expired on 2020-12-31"):
        checked(bundle, trusted)
    ours.write_text(f"expires: next year\n{public}")
    with pytest.raises(Stop, match=r"ours.pub: cannot be used: Invalid isoformat"):
        checked(bundle, trusted)
    ours.write_text(f"Expires: 2999-12-31\n{public}")
    assert checked(bundle, trusted)["version"] == "1.1.0"
    ours.chmod(0o666)
    with pytest.raises(Stop, match=r"ours.pub: cannot be used: others than its owner may write it"):
        checked(bundle, trusted)
    ours.unlink()
    (trusted / "folder.pub").mkdir()
    with pytest.raises(Stop, match=r"folder.pub: cannot be used: Is a directory"):
        checked(bundle, trusted)


def test_a_signature_of_something_else_is_not_one_of_a_release(bundle: Path, made: tuple[Path, Path, Path]) -> None:
    for change in ({"name": "another-product"}, {"format": 2}):
        resign(bundle, made[1], **change)
        with pytest.raises(Stop, match="signs something else"):
            checked(bundle, made[2])
    resign(bundle, made[1], manifest_sha256="0" * 64)
    with pytest.raises(Stop, match="does not begin with the manifest"):
        checked(bundle, made[2])


def _named(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "../../etc/passwd"
    return member


HOSTILE = [
    _named("../evil"), _named("/etc/cron.d/evil"), _named("systemd/../../evil"), _named("a//b"), _named(".hidden"),
    _named("link", tarfile.SYMTYPE), _named("hard", tarfile.LNKTYPE), _named("pipe", tarfile.FIFOTYPE),
    _named("device", tarfile.CHRTYPE), _named("disk", tarfile.BLKTYPE), _named("folder", tarfile.DIRTYPE),
    _named("new\nline"), _named("requirements.lock"), _named("n" * 300 + "/../x"),
]  # fmt: skip


@pytest.mark.parametrize("member", HOSTILE, ids=lambda member: repr(member.name[:20]))
def test_an_entry_that_is_no_plain_file_is_refused_whoever_signed(
    bundle: Path, made: tuple[Path, Path, Path], tmp_path: Path, member: tarfile.TarInfo
) -> None:
    rewritten(bundle, lambda entries: entries.append((member, b"evil")))
    resign(bundle, made[1])
    manifest = checked(bundle, made[2])
    target = tmp_path / "deep/er/there"
    target.mkdir(parents=True)
    with bundle.open("rb") as content, pytest.raises(Stop, match="is no plain file of its own") as stop:
        unpack(content, manifest, target)
    assert stop.value.code == BUNDLE
    assert not any(path.name in ("evil", "link", "hard", "pipe", "device", "disk") for path in tmp_path.rglob("*"))


def test_what_the_manifest_does_not_name_is_refused(
    bundle: Path, made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    def more(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries.append((_named("systemd/more.service"), b"[Service]"))

    def fewer(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries.pop()

    def changed(entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        entries[-1] = (entries[-1][0], entries[-1][1].replace(b"1.1.0", b"6.6.6"))

    for number, (change, why) in enumerate(
        ((more, "is not as in the manifest"), (fewer, "lacks systemd/udev"), (changed, "was changed after"))
    ):
        copy = tmp_path / f"{number}.tar"
        shutil.copy(bundle, copy)
        rewritten(copy, change)
        resign(copy, made[1])
        target = tmp_path / str(number)
        target.mkdir()
        with copy.open("rb") as content, pytest.raises(Stop, match=why):
            unpack(content, checked(copy, made[2]), target)


def test_there_is_an_end_to_entries_and_to_size(
    bundle: Path, made: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "MAX_FILES", 3)
    with bundle.open("rb") as content, pytest.raises(Stop, match="is one too many"):
        unpack(content, checked(bundle, made[2]), tmp_path)
    monkeypatch.setattr(bundles, "MAX_BYTES", 1000)
    with pytest.raises(Stop, match="bytes long as was signed"):
        checked(bundle, made[2])
    monkeypatch.setattr(bundles, "MAX_BYTES", 2 << 30)
    monkeypatch.setattr(bundles, "MAX_MANIFEST", 10)
    with pytest.raises(Stop, match="does not begin with the manifest"):
        checked(bundle, made[2])


def test_without_openssl_nothing_is_trusted(
    bundle: Path, made: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Stop, match="apt install openssl") as stop:
        checked(bundle, made[2])
    assert stop.value.code == MACHINE


def test_the_signature_is_plain_ed25519_that_openssl_checks(bundle: Path, made: tuple[Path, Path, Path]) -> None:
    line, encoded = bundle.with_name(bundle.name + ".sig").read_bytes().split(b"\n")[:2]
    (bundle.parent / "line").write_bytes(line)
    (bundle.parent / "raw").write_bytes(base64.b64decode(encoded))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(made[2] / "key.pub"), "-rawin", "-in",
               str(bundle.parent / "line"), "-sigfile", str(bundle.parent / "raw")]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert json.loads(line)["version"] == "1.1.0"


def test_versions_have_an_order() -> None:
    rising = ["0.9", "0.9.1", "0.10.0", "1.0.0a2", "1.0.0b1", "1.0.0rc1", "1.0.0rc2", "1.0.0", "1.0.1", "1.10.0", "2.0"]
    assert sorted(rising, key=order) == rising and order("1.0") == order("1.0.0")
    for wrong in ("", "1", "v1.0", "1.0-beta", "../1.0", "1.0.0.partial"):
        with pytest.raises(ValueError, match="is not a version"):
            order(wrong)


def test_a_checkout_gives_the_same_bytes_and_its_number(tmp_path: Path) -> None:
    key = make_key(tmp_path)
    tree = tmp_path / "tree"
    for name in (*PARTS, *FILES):
        tree.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, tree / name)
    first, second = (build(tree, tmp_path / name, key, version="7.8.9", dirty=True) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "a/installer.pyz").read_bytes() == (tmp_path / "b/installer.pyz").read_bytes()
    manifest = checked(first, tmp_path / "trusted")
    assert manifest["data"] == {"buffer": buffer_store.SCHEMA_VERSION, "alarm log": log_store.SCHEMA_VERSION}
    assert manifest["version"] == "7.8.9" and manifest["requires_python"].startswith(">=3.11")
    target = tmp_path / "there"
    target.mkdir()
    with first.open("rb") as content:
        unpack(content, manifest, target)
    with zipfile.ZipFile(target / manifest["wheel"]) as wheel:
        assert b'__version__ = "7.8.9"' in wheel.read("edge_agent/__init__.py")
        assert b"\nVersion: 7.8.9\n" in wheel.read("bedside_edge-7.8.9.dist-info/METADATA")
        assert "models_tflite/bundles" in "\n".join(wheel.namelist())
    assert (target / "systemd/edge-agent.service").read_bytes() == (ROOT / "systemd/edge-agent.service").read_bytes()
    assert (target / "requirements.lock").read_bytes() == (ROOT / "requirements.lock").read_bytes()


def test_a_build_says_what_it_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_key(tmp_path)
    key = str(tmp_path / "key.pem")

    def told(*words: str) -> tuple[int, str]:
        code = main(["release", "build", "--out", str(tmp_path / "out"), *words])
        return code, capsys.readouterr().err

    source = ["--source", str(ROOT)]
    assert told("--sign-key", key, "--source", str(tmp_path))[0] == MACHINE
    code, said = told(*source, "--dirty", "--sign-key", key, "--version", "one")
    assert code == 2 and "'one' is not a version" in said
    (tmp_path / "empty").mkdir()
    code, said = told(*source, "--dirty", "--sign-key", key, "--wheels", str(tmp_path / "empty"))
    assert code == BUNDLE and "pip download" in said
    code, said = told(*source, "--dirty", "--sign-key", str(tmp_path / "absent.pem"))
    assert code == BUNDLE and "absent.pem: cannot sign" in said and "openssl genpkey" in said


def test_verify_tells_and_changes_nothing(
    bundle: Path, made: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["release", "verify", str(bundle), "--trusted", str(made[2])]
    assert main(words) == 0
    assert f"bedside-edge 1.1.0, commit {'0' * 40}, signature good" in capsys.readouterr().out
    bundle.write_bytes(b"")
    assert main(words) == BUNDLE
    assert "copy the bundle again" in capsys.readouterr().err
    assert main(["release", "verify", str(bundle.parent / "none.tar"), "--trusted", str(made[2])]) == BUNDLE
