"""Keys and seals: what is altered, cut or moved does not open, and a bad key file says what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from buffer_rig import KEK, Rig, numeric
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import buffer
from edge_agent.buffer import keys, seal
from edge_agent.buffer.seal import Cipher, Damaged, Head, Packer, Unpacker

HEAD = Head(1, 1, 1, 1, 2, 77, 5, 100, 3, 0, 10, 20, 30, 40, b"I" * 16, b"B" * 16)
ENTRIES = [numeric(value, at_ns=value) for value in range(3)]


def sealed() -> tuple[Cipher, Head, bytes]:
    cipher = Cipher(b"k" * 32)
    packed, plain = Packer("gw-1").pack(ENTRIES)
    head = HEAD._replace(plain=plain)
    return cipher, head, cipher.seal(head, packed)


def test_a_block_opens_with_its_own_head() -> None:
    cipher, head, blob = sealed()
    assert Unpacker().unpack(cipher.unseal(head, blob), head) == ("gw-1", ENTRIES)


def test_nonces_differ() -> None:
    cipher, head, _ = sealed()
    assert len({cipher.seal(head, b"")[:12] for _ in range(1000)}) == 1000


@pytest.mark.parametrize("field", Head._fields)
def test_every_field_of_the_head_is_bound(field: str) -> None:
    cipher, head, blob = sealed()
    held = getattr(head, field)
    other = head._replace(**{field: b"X" * 16 if isinstance(held, bytes) else held + 1})
    with pytest.raises(Damaged):
        cipher.unseal(other, blob)


@given(st.data())
def test_any_flip_or_cut_is_noticed(data: st.DataObject) -> None:
    cipher, head, blob = sealed()
    place = data.draw(st.integers(0, len(blob) - 1))
    if data.draw(st.booleans()):
        wrong = blob[:place]
    else:
        changed = bytearray(blob)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        wrong = bytes(changed)
    with pytest.raises(Damaged):
        cipher.unseal(head, wrong)


def test_heads_beyond_all_range_are_damage_and_nothing_else() -> None:
    cipher, head, blob = sealed()
    for wrong in (head._replace(number=-1), head._replace(priority=300), head._replace(utc_ns=1 << 70)):
        with pytest.raises(Damaged):
            cipher.unseal(wrong, blob)


def test_another_key_does_not_open_it() -> None:
    _, head, blob = sealed()
    with pytest.raises(Damaged):
        Cipher(b"j" * 32).unseal(head, blob)


def test_wrapped_keys_open_only_with_their_own_key() -> None:
    wrapped = keys.wrap(KEK, b"d" * 32)
    assert keys.unwrap(KEK, wrapped) == b"d" * 32
    assert keys.unwrap(b"x" * 32, wrapped) is None
    assert keys.unwrap(KEK, wrapped[:-1]) is None
    assert keys.unwrap(KEK, b"") is None


def test_a_new_key_file_can_be_loaded_and_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    buffer.create_key_file(path)
    key = buffer.load_kek(f"file:{path}")
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o400
    with pytest.raises(buffer.KeyProblem, match="never overwritten"):
        buffer.create_key_file(path)
    assert buffer.load_kek(f"file:{path}") == key
    assert os.listdir(tmp_path) == ["kek"]
    with pytest.raises(buffer.KeyProblem, match="cannot be written"):
        buffer.create_key_file(tmp_path / "none" / "kek")


def write_key(path: Path, content: bytes, mode: int = 0o400) -> str:
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    return f"file:{path}"


def test_a_key_may_be_raw_or_hexadecimal(tmp_path: Path) -> None:
    assert buffer.load_kek(write_key(tmp_path / "a", KEK)) == KEK
    assert buffer.load_kek(write_key(tmp_path / "a", KEK.hex().encode() + b"\n", 0o600)) == KEK


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (b"", 0o400, "0 bytes.*half-written\n  restore"),
        (KEK[:17], 0o400, "17 bytes.*half-written\n  restore"),
        (KEK + b"x", 0o400, "33 bytes"),
        (KEK.hex().encode()[:60], 0o400, "60 bytes"),
        (b"z" * 64, 0o400, "64 bytes"),
        (b"\x00" * 32, 0o400, "one byte 32 times"),
        (KEK, 0o440, "mode 0440.*\n  chmod 0400"),
        (KEK, 0o644, "mode 0644"),
    ],
)
def test_a_bad_key_file_is_told_with_place_and_remedy(tmp_path: Path, content: bytes, mode: int, says: str) -> None:
    spec = write_key(tmp_path / "kek", content, mode)
    with pytest.raises(buffer.KeyProblem, match=says) as caught:
        buffer.load_kek(spec)
    assert str(tmp_path / "kek") in str(caught.value)


def test_missing_keys_and_strange_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe", 0o400)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    for spec, says in (
        (f"file:{tmp_path}/none", "missing"),
        (f"file:{tmp_path}", "not a regular file"),
        (f"file:{tmp_path}/pipe", "not a regular file"),
        ("credential:edge-agent.kek", "LoadCredentialEncrypted=edge-agent.kek"),
        ("credential:../x", "no slash"),
        ("vault:x", "no such provider"),
    ):
        with pytest.raises(buffer.KeyProblem, match=says):
            buffer.load_kek(spec)


def test_a_credential_is_read_from_the_folder_that_systemd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(tmp_path / "edge-agent.kek", KEK, 0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert buffer.load_kek("credential:edge-agent.kek") == KEK


def test_no_plain_text_and_no_key_reach_the_disk(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.commit(numeric(97.0))
    content = b"".join(path.read_bytes() for path in (tmp_path / "buffer").iterdir() if path.is_file())
    rig.close()
    for secret in (b"MRN-1", b"spo2", b"ICU-3", KEK):
        assert secret not in content
    assert b"gw-1" in content  # the search itself works: the gateway's name is no secret


def test_decoders_are_prepared_before_there_are_threads() -> None:
    """Two threads that each made their first decoder at the same moment crashed the process inside msgspec."""
    assert Unpacker()._decode == Unpacker()._decode == seal._DECODE
