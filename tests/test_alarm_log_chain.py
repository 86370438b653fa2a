"""The chain of the alarm log: what is altered, removed, moved or forged is found and named by number."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alarm_log_rig import KEK, FakeClock, Rig, break_at, entries, event, run_sql
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.alarm_log import chain, reader
from edge_agent.alarm_log.store import Head, bound, entry_bound, open_box
from edge_agent.records import AlarmEvent

ENTRIES = 30


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log of a boot mark, 30 alarm events (entries 2 to 31) and a power-down mark."""
    rig = Rig(tmp_path, clock=FakeClock())
    rig.write(*(event(f"alert-{number}", at_ns=number) for number in range(ENTRIES)), patient="12345")
    rig.close()
    return rig.path


def test_an_entry_is_hashed_over_its_predecessor_and_its_canonical_bytes() -> None:
    entry = chain.Entry(
        1, 1_780_000_000_000_000_000, "synchronized", 5, "00" * 16, "run-1", "ICU-3", "0123456789abcdef", event("a-1")
    )
    plain = chain.canonical(entry)
    assert plain == (
        b'{"version":1,"number":1,"utc_ns":1780000000000000000,"clock":"synchronized","at_ns":5,'
        b'"boot":"00000000000000000000000000000000","run":"run-1","bed":"ICU-3","patient":"0123456789abcdef",'
        b'"alarm":{"alert_id":"a-1","condition":"spo2_low","kind":"physiological","priority":"medium",'
        b'"event":"start","state":"On","at_ns":1,"text":"SpO2 low","vital":"spo2","value":87.0,"limit":"below 90",'
        b'"source":"nonin@serial:///dev/ttyUSB0"}}'
    )
    assert chain.parse(plain) == entry
    assert hashlib.sha256(b"bedside-edge alarm log, version 1").digest() == chain.GENESIS
    assert chain.next_hash(chain.GENESIS, plain) == hashlib.sha256(chain.GENESIS + plain).digest()


@given(
    st.builds(
        AlarmEvent, st.text(max_size=8), st.text(max_size=8), st.sampled_from(["physiological", "technical"]),
        st.sampled_from(["high", "medium", "low", "none"]), st.text(max_size=8), st.text(max_size=8),
        st.integers(-(2**62), 2**62), st.text(max_size=8), st.text(max_size=8),
        st.none() | st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    ),
    st.text(max_size=8),
)  # fmt: skip
def test_every_event_comes_back_from_its_canonical_bytes(alarm: AlarmEvent, bed: str) -> None:
    entry = chain.Entry(7, 1, "unknown", 2, "", "", bed, "", alarm)
    assert chain.parse(chain.canonical(entry)) == entry
    assert chain.canonical(chain.parse(chain.canonical(entry))) == chain.canonical(entry)


@pytest.mark.parametrize("plain", [b"", b"{}", b"[]", b"\xff", b'{"version":1}', b'{"alarm":{"alert_id":3}}'])
def test_bytes_that_are_no_entry_are_refused(plain: bytes) -> None:
    with pytest.raises(chain.BadEntry):
        chain.parse(plain)


@pytest.mark.alm("ALM-21")
def test_a_log_as_written_verifies_and_is_in_order(log: Path) -> None:
    found = entries(log)
    assert [entry.number for entry in found] == list(range(1, ENTRIES + 3))
    assert [entry.alarm.at_ns for entry in found if entry.alarm] == list(range(ENTRIES))
    assert [entry.mark.kind for entry in found if entry.mark] == ["boot", "power_down"]


@pytest.mark.alm("ALM-21")
def test_a_flipped_bit_anywhere_in_a_sealed_entry_is_named(log: Path) -> None:
    with closing(sqlite3.connect(log)) as connection:
        (blob,) = connection.execute("SELECT blob FROM entries WHERE number = 12").fetchone()
    assert len(blob) > 300
    for place in range(len(blob)):
        flipped = bytearray(blob)
        flipped[place] ^= 1 << place % 8
        run_sql(log, ("UPDATE entries SET blob = ? WHERE number = 12", (bytes(flipped),)))
        assert break_at(log)[0] == 12, place
    run_sql(log, ("UPDATE entries SET blob = ? WHERE number = 12", (blob,)))
    assert break_at(log) == (-1, "")


@pytest.mark.alm("ALM-21")
@pytest.mark.parametrize(
    ("first", "last", "bad"),
    [(12, 12, 12), (5, 9, 5), (1, 1, 1), (1, 20, 1), (32, 32, 32), (20, 32, 20), (1, 32, 1)],
)
def test_deleted_rows_are_named_also_at_either_end(log: Path, first: int, last: int, bad: int) -> None:
    run_sql(log, ("DELETE FROM entries WHERE number BETWEEN ? AND ?", (first, last)))
    assert break_at(log)[0] == bad


@pytest.mark.alm("ALM-21")
def test_swapped_rows_are_named(log: Path) -> None:
    run_sql(
        log,
        ("UPDATE entries SET number = 100 WHERE number = 7", ()),
        ("UPDATE entries SET number = 7 WHERE number = 9", ()),
        ("UPDATE entries SET number = 9 WHERE number = 100", ()),
    )
    number, reason = break_at(log)
    assert number == 7
    assert "seal does not open" in reason, "a row is bound to its number"


@pytest.mark.alm("ALM-21")
def test_renumbered_rows_that_close_a_hole_are_named(log: Path) -> None:
    run_sql(log, ("DELETE FROM entries WHERE number = 10", ()))
    for number in range(11, ENTRIES + 3):
        run_sql(log, ("UPDATE entries SET number = ? WHERE number = ?", (number - 1, number)))
    assert break_at(log)[0] == 10


@pytest.mark.alm("ALM-21")
def test_a_row_forged_with_the_key_and_hashed_again_is_found_at_its_successor(log: Path) -> None:
    with closing(sqlite3.connect(log, isolation_level=None)) as connection:
        box, _, _ = open_box(connection, KEK)
        (before,) = connection.execute("SELECT hash FROM entries WHERE number = 11").fetchone()
        (blob,) = connection.execute("SELECT blob FROM entries WHERE number = 12").fetchone()
        plain = box.unseal(blob, entry_bound(12)).replace(b'"value":87.0', b'"value":91.0')
        row = (chain.next_hash(before, plain), box.seal(plain, entry_bound(12)))
        connection.execute("UPDATE entries SET hash = ?, blob = ? WHERE number = 12", row)
    number, reason = break_at(log)
    assert number == 13
    assert "one of the two was altered" in reason


@pytest.mark.alm("ALM-21")
def test_a_forged_row_with_its_old_hash_is_named(log: Path) -> None:
    with closing(sqlite3.connect(log, isolation_level=None)) as connection:
        box, _, _ = open_box(connection, KEK)
        (blob,) = connection.execute("SELECT blob FROM entries WHERE number = 12").fetchone()
        plain = box.unseal(blob, entry_bound(12)).replace(b'"value":87.0', b'"value":91.0')
        connection.execute("UPDATE entries SET blob = ? WHERE number = 12", (box.seal(plain, entry_bound(12)),))
    assert break_at(log)[0] == 12


def test_a_hash_that_was_changed_is_named(log: Path) -> None:
    run_sql(log, ("UPDATE entries SET hash = zeroblob(32) WHERE number = 12", ()))
    assert break_at(log)[0] == 12


def test_a_dropped_beginning_needs_a_mark_that_bears_it_out(log: Path) -> None:
    """Even one who holds the key and moves the head's anchor leaves the missing mark behind."""
    import msgspec

    with closing(sqlite3.connect(log, isolation_level=None)) as connection:
        box, _, head = open_box(connection, KEK)
        (start,) = connection.execute("SELECT hash FROM entries WHERE number = 5").fetchone()
        moved = Head(head.number, head.hash, 5, start)
        connection.execute("DELETE FROM entries WHERE number <= 5")
        connection.execute("UPDATE head SET blob = ?", (box.seal(msgspec.msgpack.encode(moved), bound("head", "")),))
    number, reason = break_at(log)
    assert number == 5
    assert "no mark in the log says" in reason


def _exported(lines: list[bytes]) -> int:
    try:
        return len(list(reader.exported(lines)))
    except chain.Broken as error:
        return -error.number


@pytest.mark.alm("ALM-21")
def test_an_export_is_verified_without_a_key_and_by_plain_sha256(log: Path) -> None:
    with reader.snapshot(log, KEK) as found:
        lines = [line.encode() + b"\n" for line in reader.export_lines(found)]
    assert _exported(lines) == ENTRIES + 2
    previous = bytes.fromhex(json.loads(lines[0])["hash"])
    assert previous == chain.GENESIS
    for line in lines[1:-1]:  # what anyone can do with the description in the documentation
        plain = line.rstrip()[len('{"hash":"') + 64 + len('","entry":') : -1]
        previous = hashlib.sha256(previous + plain).digest()
        assert previous.hex() == json.loads(line)["hash"]
    assert json.loads(lines[-1]) == {"through": ENTRIES + 2, "hash": previous.hex()}


def test_an_altered_export_is_named_by_number(log: Path) -> None:
    with reader.snapshot(log, KEK) as found:
        lines = [line.encode() + b"\n" for line in reader.export_lines(found)]
    altered = lines[12].replace(b"87.0", b"91.0")
    assert altered != lines[12]
    assert _exported([*lines[:12], altered, *lines[13:]]) == -12
    assert _exported([*lines[:12], *lines[13:]]) == -12  # removed
    assert _exported([*lines[:12], lines[13], lines[12], *lines[14:]]) == -12  # swapped
    assert _exported(lines[:-1]) == -(ENTRIES + 3)  # cut after a line
    assert _exported([*lines[:20], lines[20][:50]]) == -20  # cut within a line
    assert _exported([*lines[:20], lines[-1]]) == -20  # the last line set behind a shorter log
    assert _exported([*lines, lines[-2]]) == -(ENTRIES + 3)  # something behind the last line
    assert _exported([lines[0], *lines[2:]]) == -1
    for place in range(0, len(lines[12]) - 1, 7):
        flipped = bytearray(lines[12])
        flipped[place] ^= 1
        assert _exported([*lines[:12], bytes(flipped), *lines[13:]]) == -12, place


@pytest.mark.parametrize("lines", [[], [b"hello\n"], [b'{"hash":"00"}\n'], [b"\xff\xfe"], [b"[]"]])
def test_what_is_no_export_is_said_to_be_none(lines: list[bytes]) -> None:
    with pytest.raises(reader.Unreadable, match="not an export"):
        list(reader.exported(lines))


def test_an_entry_whose_content_bears_another_number_is_named() -> None:
    plain = chain.canonical(chain.Entry(2, 1, "unknown", 1, "", "", mark=chain.Mark("settings", {})))
    row = chain.Row(1, chain.next_hash(chain.GENESIS, plain), plain)
    with pytest.raises(chain.Broken, match="its content is that of entry 2") as found:
        list(chain.walk([row]))
    assert found.value.number == 1


def test_a_row_of_the_wrong_number_and_a_head_that_names_another_hash_are_named(log: Path) -> None:
    row = chain.Row(0, b"", None)
    with pytest.raises(chain.Broken, match="stands where 1 belongs"):
        list(chain.walk([row]))
    with reader.snapshot(log, KEK) as found:
        found.head = found.head._replace(hash=bytes(32))
        with pytest.raises(chain.Broken, match="not the one that the head of the log names"):
            list(found.entries())
