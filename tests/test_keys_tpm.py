"""The key that the board's TPM has sealed, against a TPM 2.0 in software and the unmodified tpm2-tools."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import software_tpm
from buffer_rig import Rig, alert, numeric, read_all, values
from running_agent import Bedside, dial, running, until
from software_tpm import SoftwareTpm

from bench.messages import frame
from edge_agent import buffer
from edge_agent.__main__ import main
from edge_agent.buffer import keys, keys_tpm


@pytest.fixture
def tpm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SoftwareTpm]:
    why = software_tpm.missing()
    if why and software_tpm.required():
        pytest.fail(why)
    if why:
        pytest.skip(why)
    made = SoftwareTpm(tmp_path / "board")
    monkeypatch.setenv("TPM2TOOLS_TCTI", made.tcti)
    yield made
    made.close()


class Desk:
    """A gateway whose configuration names a sealed key, and its commands."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.bedside, self._capsys = Bedside(folder), capsys
        self.path = folder / "sealed"
        self.config = self.bedside.write()
        self.config.write_text(self.config.read_text().replace('key = "file:kek"', 'key = "tpm:sealed"'))

    def run(self, *words: str) -> tuple[int, str]:
        code = main([*words, "--config", str(self.config)])
        out = self._capsys.readouterr()
        return code, out.out + out.err


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def test_a_sealed_key_is_made_opens_the_buffer_and_is_never_overwritten(
    tpm: SoftwareTpm, desk: Desk, tmp_path: Path
) -> None:
    code, told = desk.run("keys", "init", "--copy", str(tmp_path / "copy"))
    assert code == 0 and "this board only" in told and str(tmp_path / "copy") in told
    kek = buffer.load_kek(f"tpm:{desk.path}")
    assert kek == buffer.load_kek(f"file:{tmp_path / 'copy'}") and keys.fingerprint(kek).hex() in told
    assert kek not in desk.path.read_bytes() and kek.hex() not in told
    assert desk.path.stat().st_mode & 0o777 == 0o400
    rig = Rig(desk.bedside.data_dir, kek=kek)
    rig.commit(numeric(1), alert(1))
    rig.close()
    assert desk.run("keys", "status")[0] == 0
    assert desk.run("buffer", "verify")[0] == 0
    assert f"[ok  ] key: tpm:{desk.path}: readable" in desk.run("doctor")[1]
    before = desk.path.read_bytes()
    code, told = desk.run("keys", "init", "--anew")
    assert code == 1 and "never overwritten" in told and desk.path.read_bytes() == before


async def test_an_agent_seals_and_a_forwarders_reader_opens_under_the_sealed_key(tpm: SoftwareTpm, desk: Desk) -> None:
    assert desk.run("keys", "init")[0] == 0
    async with running(desk.config):
        monitor = await dial(desk.bedside.port)
        monitor.send(frame(1, 3, 97.0))
        assert "|AA|" in await monitor.reply()
        monitor.close()
    reader = buffer.Reader(desk.bedside.data_dir, buffer.load_kek(f"tpm:{desk.path}"))
    assert sum(len(block.entries) for block in reader.read("data", None)) > 5
    reader.close()


async def test_without_its_tpm_an_agent_raises_alarms_and_acknowledges_nothing(
    tpm: SoftwareTpm, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.run("keys", "init")[0] == 0
    monkeypatch.setattr(keys_tpm, "_ALL_S", 0.5)
    tpm.hang()
    async with running(desk.config) as agent:
        monitor = await dial(desk.bedside.port)
        monitor.send(frame(1, 3, 80.0))
        await until(lambda: desk.bedside.lit("spo2_low"), "the lamp")
        assert any("the TPM does not give the key" in text for text in agent.faults.values())
        with pytest.raises(TimeoutError):
            await monitor.reply(0.3)
        monitor.close()


def test_another_board_does_not_open_it_and_the_copy_does(
    tpm: SoftwareTpm, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.run("keys", "init", "--copy", str(tmp_path / "copy"))[0] == 0
    rig = Rig(desk.bedside.data_dir, kek=buffer.load_kek(f"tpm:{desk.path}"))
    rig.commit(numeric(7))
    rig.close()
    other = SoftwareTpm(tmp_path / "another-board")
    try:
        monkeypatch.setenv("TPM2TOOLS_TCTI", other.tcti)
        with pytest.raises(buffer.KeyProblem, match=r"sealed: the TPM does not give the key: tpm2_load.*another board"):
            buffer.load_kek(f"tpm:{desk.path}")
        desk.config.write_text(desk.config.read_text().replace('key = "tpm:sealed"', 'key = "file:copy"'))
        assert desk.run("keys", "init", "--key", f"tpm:{tmp_path}/new")[0] == 0
        code, told = desk.run("keys", "rotate", "--new", f"tpm:{tmp_path}/new")
        assert code == 0 and f'key = "tpm:{tmp_path}/new"' in told
        kek = buffer.load_kek(f"tpm:{tmp_path}/new")
        assert values(read_all(desk.bedside.data_dir, "data", kek)) == [7.0]
    finally:
        other.close()


def test_a_damaged_or_half_written_file_is_told_and_left_as_it_is(tpm: SoftwareTpm, tmp_path: Path) -> None:
    whole = keys_tpm.seal(bytes(range(32)))
    assert keys_tpm.unseal(whole) == bytes(range(32))
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (b"", whole[:30], whole[:-1], whole + b"x", bytes(len(whole)), bytes(flipped), b"k" * 32):
        path = tmp_path / "sealed"
        path.write_bytes(content)
        path.chmod(0o400)
        with pytest.raises(buffer.KeyProblem, match=r"sealed: .*(half-written|damaged)"):
            buffer.load_kek(f"tpm:{path}")
        assert path.read_bytes() == content
        path.unlink()
    with pytest.raises(buffer.KeyProblem, match="the key is missing"):
        buffer.load_kek(f"tpm:{tmp_path}/sealed")


def test_a_tpm_that_hangs_or_is_not_there_holds_nothing_up(
    tpm: SoftwareTpm, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert desk.run("keys", "init")[0] == 0
    monkeypatch.setattr(keys_tpm, "_ALL_S", 1.0)
    tpm.hang()
    with pytest.raises(buffer.KeyProblem, match=r"no answer over swtpm:.* for 1 s"):
        buffer.load_kek(f"tpm:{desk.path}")
    monkeypatch.setenv("TPM2TOOLS_TCTI", "device:/dev/no-tpm-here")
    code, told = desk.run("doctor")
    assert code == 1 and "[FAIL] key: " in told and "the TPM does not give the key" in told
    code, told = desk.run("keys", "init", "--key", f"tpm:{desk.path}2")
    assert code == 1 and "the TPM does not take a key" in told and not Path(f"{desk.path}2").exists()


def test_without_its_tools_it_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(keys_tpm.TpmTrouble, match=r"is not installed: apt install tpm2-tools"):
        keys_tpm.seal(bytes(range(32)))


@pytest.mark.skipif(
    shutil.which("systemd-creds") is None and not software_tpm.required(),
    reason="systemd-creds is not installed; with CI that is a failure",
)
def test_a_credential_that_systemd_binds_to_the_tpm_opens_on_its_board_alone(
    tpm: SoftwareTpm, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that `keys init` prints, with the TPM and one of its registers named."""
    _, told = desk.run("keys", "init", "--key", "credential:edge-agent.kek")
    command = "\n".join(line for line in told.splitlines() if line.startswith("  "))
    command = command.replace("/etc/credstore.encrypted", str(tmp_path / "store"))
    command = command.replace("--with-key=auto", f"--with-key=tpm2 --tpm2-device={tpm.tcti} --tpm2-pcrs=0")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    loaded = tmp_path / "loaded"
    loaded.mkdir()

    def decrypt(tcti: str) -> int:
        words = ["systemd-creds", "decrypt", "--name=edge-agent.kek", f"--tpm2-device={tcti}"]
        files = [tmp_path / "store" / "edge-agent.kek", loaded / "edge-agent.kek"]
        return subprocess.run([*words, *files], capture_output=True, timeout=60, check=False).returncode

    other = SoftwareTpm(tmp_path / "another-board")
    try:
        assert decrypt(other.tcti) != 0 and not (loaded / "edge-agent.kek").exists()
    finally:
        other.close()
    assert decrypt(tpm.tcti) == 0
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(loaded))
    assert len(buffer.load_kek("credential:edge-agent.kek")) == keys.KEY_BYTES
