"""The Masimo decoder against lines of own values."""

from __future__ import annotations

import pytest

from drivers.masimo import Masimo
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject

SECOND_NS = 1_000_000_000


def decode(text: str, decoder: Masimo | None = None, at_ns: int = 0) -> list[Item]:
    return (decoder or Masimo()).feed(Chunk(at_ns, text.encode("latin-1")))


def numbers(items: list[Item]) -> dict[str, tuple[float | None, str]]:
    return {item.term: (item.value, item.validity) for item in items if isinstance(item, Observation)}


def verdicts(exceptions: str, value: str = "095", key: str = "PR") -> set[tuple[float | None, str]]:
    return set(numbers(decode(f"SpO2={value} {key}={value} PI=01.50 EXC={exceptions}\r\n")).values())


@pytest.mark.parametrize("bit", ["001", "002", "020", "080"])
def test_exceptions_that_drop_every_value(bit: str) -> None:
    for exceptions in (bit, f"{bit}:Word,SET", f"{int(bit, 16) | 0x800:03X}", f"000{bit}"):
        assert verdicts(exceptions) == {(None, "not_available")}


@pytest.mark.parametrize("bit", ["004", "008", "010", "040", "400", "C00", "c04"])
def test_exceptions_that_cast_doubt(bit: str) -> None:
    assert verdicts(bit) == {(95.0, "questionable"), (1.5, "questionable")}


@pytest.mark.parametrize("bits", ["000", "800", "800:SET", "100", "200", "B00", "000800", "00F800"])
def test_exceptions_that_change_nothing(bits: str) -> None:
    assert verdicts(bits) == {(95.0, "valid"), (1.5, "valid")}


@pytest.mark.parametrize("exceptions", ["800", "808", "820", "828:Search,OffPat,SET", "000"])
def test_000_is_no_value(exceptions: str) -> None:
    found = numbers(decode(f"SpO2=000 PR=000 PI=00.00 EXC={exceptions}\n"))
    assert set(found.values()) == {(None, "not_available")}


def test_pulse_search_drops_only_what_is_000() -> None:
    found = numbers(decode("SpO2=000 PR=064 PI=00.90 EXC=808:Search,SET\n"))
    assert found["spo2"] == (None, "not_available")
    assert found["pulse_rate"] == (64.0, "questionable")


def test_order_and_case_do_not_matter_and_both_pulse_keys_count() -> None:
    expected = {"spo2": (88.0, "valid"), "pulse_rate": (151.0, "valid"), "perfusion_index": (12.34, "valid")}
    assert numbers(decode("exc=000800 pi=12.34% bpm=151 alarm=0000 sp02=1 spo2=088% sn=7\r")) == expected
    assert numbers(decode("03/09/24 01:02:03 SpO2=088 PR=151 PI=12.34 EXC=800:SET\n")) == expected


def test_device_time_is_iso() -> None:
    items = decode("12/31/23 23:59:58 SpO2=097 PR=069 PI=04.69 EXC=800:SET\r\n")
    assert {item.device_time for item in items if isinstance(item, Observation)} == {"2023-12-31T23:59:58"}
    items = decode("13/31/23 23:59:58 SpO2=097 PR=069 PI=04.69 EXC=800:SET\r\n")
    assert {item.device_time for item in items if isinstance(item, Observation)} == {None}


@pytest.mark.parametrize("dashes", ["SPO2=---% BPM=--- PI=--.--%", "SpO2=--- PR=--- PI=--.--", "SpO2=-- PR=-- PI=--"])
def test_dashes_are_no_value(dashes: str) -> None:
    assert set(numbers(decode(f"{dashes} EXC=800\r\n")).values()) == {(None, "not_available")}


def test_impossible_numbers_are_invalid() -> None:
    found = numbers(decode("SpO2=101 PR=351 PI=99.99 EXC=800\n"))
    assert found["spo2"] == found["pulse_rate"] == (None, "invalid")
    assert numbers(decode("SpO2=999 PR=069 PI=01.00 EXC=800\n"))["spo2"] == (None, "invalid")


@pytest.mark.parametrize(
    "line",
    [
        "SpO2=97 PR=069 PI=01.00 EXC=800",
        "SPO2=97% BPM=069 PI=01.00% EXC=000800",
        "SpO2=0097 PR=069 PI=01.00 EXC=800",
        "SpO2=097 PR=69 PI=01.00 EXC=800",
        "SpO2=097 PR=069 PI=01.00 EXC=80",
        "SpO2=097 PR=069 PI=01.00 EXC=8x0",
        "SpO2=097 PR=069 PI=01.00 EXC=0008000",
        "SpO2=09SpO2=097 PR=069 EXC=800",
        "SpO2=097 PR=0 SpO2=096 PR=070 EXC=800",
        "SpO2=097 PR=069 BPM=070 EXC=800",
        "Welcome",
        "SPCO=01.0% PVI=014",
    ],
)
def test_lines_that_are_rejected_whole(line: str) -> None:
    items = decode(line + "\r\n")
    assert [(type(item), item.size) for item in items] == [(Reject, len(line))]  # type: ignore[union-attr]


def test_a_damaged_perfusion_index_is_invalid_alone() -> None:
    found = numbers(decode("SpO2=097 PR=069 PI=1.00 EXC=800\n"))
    assert found == {"spo2": (97.0, "valid"), "pulse_rate": (69.0, "valid"), "perfusion_index": (None, "invalid")}


def test_a_line_without_exceptions_is_questionable() -> None:
    assert numbers(decode("SpO2=097 PR=069\n"))["spo2"] == (97.0, "questionable")


def test_states_and_the_alarm_field_are_told_when_they_change() -> None:
    decoder = Masimo()
    line = "SPO2=---% BPM=--- PI=--.--% ALARM=0010 EXC=000029\r\n"
    states = [item for item in decode(line, decoder) if isinstance(item, DeviceStatus)]
    assert states == [
        DeviceStatus("sensor", "disconnected", 0),
        DeviceStatus("signal", "pulse_search", 0),
        DeviceStatus("device", "alarm", 0, "ALARM=0010"),
    ]
    assert not [item for item in decode(line, decoder) if isinstance(item, DeviceStatus)]
    ended = decode("SPO2=097% BPM=069 PI=01.00% ALARM=0000 EXC=000800\r\n", decoder)
    assert {(item.kind, item.state) for item in ended if isinstance(item, DeviceStatus)} == {
        ("sensor", "ok"),
        ("signal", "ok"),
        ("device", "ok"),
    }


def test_a_last_line_without_end_counts_only_when_it_is_whole() -> None:
    for text, counts in (
        ("SpO2=097 PR=069 PI=01.00 EXC=800:SET", True),
        ("SPO2=097% BPM=069 PI=01.00% EXC=000800", True),
        ("SPO2=097% BPM=069 PI=01.00% EXC=000", False),  # 000020 cut off would look like this
        ("SpO2=097 PR=069 PI=01.0", False),
    ):
        decoder = Masimo()
        assert decode(text, decoder) == []
        assert decoder.tick(SECOND_NS) == []
        assert bool(numbers(list(decoder.tick(3 * SECOND_NS)))) is counts, text


def test_a_line_without_end_is_capped() -> None:
    decoder = Masimo()
    items = decode("x" * 1_000_000, decoder)
    assert all(isinstance(item, Reject) for item in items)
    assert len(decoder._lines) <= 512
    rest = decode(" SpO2=097 PR=069 EXC=800\r\nSpO2=096 PR=070 PI=01.00 EXC=800\r\n", decoder)
    values = [item.value for item in rest if isinstance(item, Observation)]
    assert values == [96.0, 70.0, 1.0], "the end of the long line is no line of its own"
