"""What becomes of patients' identifiers: the pseudonym, the site's keys, and the gate that every record passes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from schema_registry import Registry as Served
from test_cloud_encode import EVERY, block, entry

from cloud_sync import avro, encode, pcd04, pseudonym
from cloud_sync.pseudonym import LEFT_OUT, Identities, KeyFault, SiteKey, site_keys
from cloud_sync.registry import Registry
from edge_agent import config, config_cloud, records

SECRET = bytes(range(32))
OTHER = bytes(range(1, 33))
KEY = SiteKey("p1", SECRET)
MARK = "ZQ-7731/Ü"  # stands in every field of a record that takes words


def marked(kind: type) -> records.Stored:
    """A record of the kind with the marker in every field that holds an identifier or words from outside."""
    record = next(one for one in EVERY.values() if type(one) is kind)
    words = {name: f"said of {MARK.lower()}, twice {MARK}" for name in pseudonym._TEXTS[kind]}
    return structs.replace(record, **words, **dict.fromkeys(pseudonym._IDENTIFIERS.get(kind, ()), MARK))


def words(value: Any) -> Iterator[str]:
    """Every text within a decoded message."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield str(key)
            yield from words(each)
    elif isinstance(value, list):
        for each in value:
            yield from words(each)
    elif isinstance(value, str):
        yield value


def tells(value: Any, mark: str = MARK) -> list[str]:
    return [text for text in words(value) if mark.lower() in text.lower()]


def config_of(folder: Path, told: str) -> config.Loaded:
    path = folder / "edge.toml"
    path.write_text(f'[gateway]\nid = "gw"\ndata_dir = "data"\n[[bed]]\nid = "ICU-1"\n[privacy]\n{told}\n')
    return config.load(path)


def key_file(folder: Path, text: str, mode: int = 0o400) -> str:
    path = folder / "site-key"
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return f'key = "file:{path.name}"'


def test_a_pseudonym_is_the_hmac_that_the_document_describes() -> None:
    digest = hmac.new(SECRET, b"bedside-edge patient 1\x00" + "Ü-17".encode(), hashlib.sha256).digest()
    expected = "p1:" + base64.b32encode(digest[:16]).decode().rstrip("=").lower()
    assert KEY.pseudonym("Ü-17") == expected == "p1:nnyachnodzoizrfmstbh2rdk4a"
    assert KEY.pseudonym(" U\u0308-17 ") == expected, "blanks and the spelling of an umlaut make no other patient"
    assert KEY.pseudonym("") == KEY.pseudonym("  ") == ""


def test_the_same_patient_has_one_pseudonym_and_other_keys_give_others() -> None:
    first, second = Identities("pseudonym", (KEY,)), Identities("pseudonym", (KEY,))
    assert first.name("MRN-1") == second.name("MRN-1") != first.name("MRN-2")
    assert first.name("MRN-1").startswith("p1:") and len(first.name("MRN-1")) == 3 + 26
    other = SiteKey("p1", OTHER).pseudonym("MRN-1")
    assert other.startswith("p1:") and other != first.name("MRN-1")


def test_the_last_key_is_used_and_the_old_ones_join_both_sides_of_a_rotation() -> None:
    keys = site_keys(f"# of the site\np1 {SECRET.hex()}\n\n p2\t{OTHER.hex().upper()} \n")
    assert keys == (KEY, SiteKey("p2", OTHER))
    rotated = Identities("pseudonym", keys)
    assert rotated.name("MRN-1") == keys[1].pseudonym("MRN-1")
    assert rotated.every("MRN-1") == {"p1": KEY.pseudonym("MRN-1"), "p2": keys[1].pseudonym("MRN-1")}
    assert rotated.told == "pseudonyms under key p2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no site key in it"),
        ("# nothing", "no site key in it"),
        (SECRET.hex(), "line 1 is no site key"),
        ("p1 secret", "line 1 is no site key"),
        (f"p1 {SECRET[:31].hex()}", "line 1 is no site key"),
        (f"p1 {SECRET.hex()}0", "line 1 is no site key"),
        (f"P1 {SECRET.hex()}", "line 1 is no site key"),
        (f"p:1 {SECRET.hex()}", "line 1 is no site key"),
        (f"p1 {'00' * 32}", "is not random"),
        (f"p1 {SECRET.hex()}\np1 {OTHER.hex()}", "line 2: the name 'p1' stands twice"),
    ],
)
def test_a_file_that_holds_no_key_is_refused_without_showing_it(text: str, said: str) -> None:
    with pytest.raises(KeyFault, match=said) as refused:
        site_keys(text)
    assert SECRET.hex()[:16] not in str(refused.value).lower()


def test_pseudonyms_are_the_default_and_without_a_key_nothing_is_told(tmp_path: Path) -> None:
    without = pseudonym.identities(config_of(tmp_path, ""))
    assert (without.name("MRN-1"), without.told) == ("", "left out: [privacy] key is not set")
    found = pseudonym.identities(config_of(tmp_path, key_file(tmp_path, f"p1 {SECRET.hex()}")))
    assert found.name("MRN-1") == KEY.pseudonym("MRN-1")
    none = pseudonym.identities(config_of(tmp_path, 'identifiers = "none"\nkey = "file:not-there"'))
    assert (none.name("MRN-1"), none.told) == ("", "left out")
    clear = pseudonym.identities(config_of(tmp_path, 'identifiers = "clear"'))
    assert (clear.name("MRN-1"), clear.told) == ("MRN-1", "in the clear")


@pytest.mark.parametrize(
    ("told", "mode", "said"),
    [
        ("p1 short", 0o400, "line 1 is no site key"),
        (f"p1 {SECRET.hex()}", 0o644, "can be read by others"),
        (f"p1 {SECRET.hex()}", 0o440, "can be read by others"),
        ("\udcff", 0o400, "UTF-8"),
    ],
)
def test_a_key_that_cannot_be_used_ends_the_start(tmp_path: Path, told: str, mode: int, said: str) -> None:
    place = key_file(tmp_path, "", 0o600)
    (tmp_path / "site-key").write_bytes(told.encode("utf-8", "surrogateescape"))
    (tmp_path / "site-key").chmod(mode)
    with pytest.raises(config.ConfigError, match=said) as refused:
        pseudonym.identities(config_of(tmp_path, place))
    assert (refused.value.line, refused.value.key) == (7, "privacy.key")
    assert SECRET.hex() not in str(refused.value)


def test_a_key_that_is_not_there_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(config.ConfigError, match="No such file"):
        pseudonym.identities(config_of(tmp_path, 'key = "file:nowhere"'))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(config.ConfigError, match="not started by systemd"):
        pseudonym.identities(config_of(tmp_path, 'key = "credential:site"'))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "site").write_text(f"p1 {SECRET.hex()}\n")
    assert stat.S_IMODE((tmp_path / "site").stat().st_mode) & 0o044, "who may read a credential is systemd's affair"
    assert pseudonym.identities(config_of(tmp_path, 'key = "credential:site"')).name("M") == KEY.pseudonym("M")
    with pytest.raises(config.ConfigError, match="credential:NAME"):
        config_of(tmp_path, 'key = "hunter2"')


@pytest.mark.parametrize("kind", [type(record) for record in EVERY.values()], ids=list(EVERY))
@pytest.mark.parametrize("mode", ["pseudonym", "none", "no key"])
def test_no_message_of_any_kind_tells_an_identifier(kind: type, mode: str) -> None:
    def identities() -> Identities:
        return Identities("none") if mode == "none" else Identities("pseudonym", (KEY,) if mode == "pseudonym" else ())

    sealed = block(entry(marked(kind), patient=MARK))
    (message,) = encode.Encoder("gw", identities()).block(sealed)
    found = json.loads(message.value)
    assert not tells([found, message.topic, message.key, message.dedup])
    assert not tells([value.decode() for _, value in message.headers])
    assert found.get("patient", "") == (KEY.pseudonym(MARK) if mode == "pseudonym" else "")
    for field in pseudonym._IDENTIFIERS.get(kind, ()):
        assert found["record"].get(field, "") == (KEY.pseudonym(MARK) if mode == "pseudonym" else "")
    said = KEY.pseudonym(MARK) if mode == "pseudonym" else LEFT_OUT
    for field in pseudonym._TEXTS[kind]:
        assert found["record"][field] == f"said of {said}, twice {said}", "the rest of a text stays as it is"
    with Served() as served:
        (message,) = avro.AvroEncoder("gw", identities(), Registry(served.url), "ward").block(sealed)
        assert not tells(served.decode(message.value))
    assert tells(json.loads(encode.Encoder("gw", Identities("clear")).block(sealed)[0].value)), "the test can fail"


def test_every_field_of_every_record_is_known_to_the_gate() -> None:
    closed = {
        records.Observation: {"term", "validity", "device_time"},
        records.Waveform: {"term", "device_time"},
        records.DeviceStatus: {"kind", "state"},
        records.DeviceAlarm: {"priority", "device_time"},
        records.PatientEvent: {"event", "device_time"},
        records.Reject: set(),
        records.AlarmEvent: {"kind", "priority", "event", "state", "vital", "limit", "inactivation"},
        records.Score: {"name", "version"},
        records.Gap: {"reason", "instance"},
    }
    for kind, names in closed.items():
        texts = {
            field.name for field in structs.fields(kind) if "str" in str(field.type) or "Literal" in str(field.type)
        }
        known = {*pseudonym._TEXTS[kind], *pseudonym._IDENTIFIERS.get(kind, ())}
        assert texts == known | names and not known & names, kind.__name__


@pytest.mark.parametrize("mode", ["pseudonym", "none"])
def test_an_alert_manager_hears_no_identifier(mode: pseudonym.Mode) -> None:
    identities = Identities(mode, (KEY,))
    settings = config_cloud.AlertManager(link="mllp://h:1", technical=True)
    encoder = pcd04.AlertEncoder("gw", settings, {"ICU-1": "ICU^^1"}, identities=identities)
    (message,) = encoder.block(block(entry(marked(records.AlarmEvent), patient=MARK)))
    text = message.value.decode()
    assert MARK.lower() not in text.lower() and "7731" not in text
    pid = next(line for line in text.split("\r") if line.startswith("PID"))
    assert pid == (f"PID|||{KEY.pseudonym(MARK)}^^^^PI||^^^^^^U" if mode == "pseudonym" else "PID|||||^^^^^^U")
    default = pcd04.AlertEncoder("gw", settings, {})
    assert "7731" not in default.block(block(entry(marked(records.AlarmEvent), patient=MARK)))[0].value.decode()


def test_an_encoder_that_was_told_nothing_tells_nothing() -> None:
    (message,) = encode.Encoder("gw").block(block(entry(marked(records.DeviceAlarm), patient=MARK)))
    assert not tells(json.loads(message.value)) and "patient" not in json.loads(message.value)


def test_texts_are_searched_for_patients_of_other_records_too() -> None:
    identities = Identities("pseudonym", (KEY,))
    names = "A\\T\\B-99", "1234", "12345678", "77"
    for name in names:
        identities.name(name)
    amp, short, long = (KEY.pseudonym(name) for name in names[:3])
    assert identities.text("of a&b-99 and A\\T\\B-99") == f"of {amp} and {amp}", "as it was sent, and as it is read"
    assert identities.text("12345678, 1234") == f"{long}, {short}", "the longer one first"
    assert identities.text("SpO2 77 %") == "SpO2 77 %", "a short identifier would be found in every number"
    event = records.DeviceStatus("link", "lost", 5, "monitor of 12345678")
    assert identities.entry(entry(event)).record == structs.replace(event, detail=f"monitor of {long}")


def test_what_says_nothing_of_a_patient_goes_through_as_it_is() -> None:
    identities = Identities("pseudonym", (KEY,))
    for record in EVERY.values():
        if type(record) not in pseudonym._IDENTIFIERS:
            sealed = entry(record)
            assert identities.entry(sealed) is sealed


@pytest.mark.parametrize("name", EVERY)
def test_nothing_but_identifiers_changes_on_the_way_out(name: str) -> None:
    sealed = entry(EVERY[name], patient="MRN-0815")
    identities = Identities("pseudonym", (KEY,))
    (leaving,) = identities.leaving([sealed])
    assert leaving == identities.entry(sealed), "a record alone leaves as one in its block does"
    restored = {each: getattr(sealed.record, each) for each in pseudonym._IDENTIFIERS.get(type(sealed.record), ())}
    assert structs.replace(leaving.record, **restored) == sealed.record
    assert (leaving.bed, leaving.source) == (sealed.bed, sealed.source)


def test_an_alarm_that_stands_before_its_cause_does_not_tell_either() -> None:
    before = entry(structs.replace(EVERY["alarm_event"], text=f"pump of {MARK}"))
    (first, _) = encode.Encoder("gw").block(block(before, entry(marked(records.DeviceAlarm))))
    assert json.loads(first.value)["record"]["text"] == f"pump of {LEFT_OUT}"


def test_memory_does_not_grow_with_patients() -> None:
    identities = Identities("pseudonym", (KEY,))
    for number in range(3_000):
        name = f"MRN-{number}"
        found = identities.entry(entry(records.DeviceStatus("link", "up", 5, f"of {name}"), patient=name))
        assert found.record == records.DeviceStatus("link", "up", 5, f"of {KEY.pseudonym(name)}")
        identities.text(f"text {number}")
    assert len(identities._known) <= 513 and len(identities._forms) <= 512 and len(identities._searched) <= 4096


@given(st.text(min_size=3, max_size=40), st.text(max_size=10))
def test_no_identifier_however_it_is_written_leaves(name: str, rest: str) -> None:
    identifier = f"¤{name}¤"
    record = structs.replace(EVERY["device_alarm"], text=f"{rest}{identifier}{rest}", subject=identifier)
    (message,) = encode.Encoder("gw", Identities("pseudonym", (KEY,))).block(block(entry(record, patient=identifier)))
    assert not tells(json.loads(message.value), identifier.strip())


def test_the_command_joins_keys_and_repeats_no_identifier(tmp_path: Path) -> None:
    place = key_file(tmp_path, f"p1 {SECRET.hex()}\np2 {OTHER.hex()}\n")
    config_of(tmp_path, place)
    command = [sys.executable, "-m", "cloud_sync", "pseudonym", "--config", str(tmp_path / "edge.toml")]
    done = subprocess.run(command, input="MRN-1\nMRN-2\n", capture_output=True, text=True, timeout=60, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"p1": KEY.pseudonym(name), "p2": SiteKey("p2", OTHER).pseudonym(name)} for name in ("MRN-1", "MRN-2")
    ]
    assert "MRN" not in done.stdout + done.stderr
