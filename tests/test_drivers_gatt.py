"""The GATT decoder against payloads of own values, written out in hexadecimal."""

from __future__ import annotations

import pytest

from drivers.gatt import DRIVER, Gatt
from edge_agent.records import Chunk, DeviceStatus, Item, Observation, Reject


def decode(channel: str, payload: str, decoder: Gatt | None = None) -> list[Item]:
    return (decoder or Gatt()).feed(Chunk(0, bytes.fromhex(payload), channel))


def numbers(items: list[Item]) -> list[tuple[str, float | None, str]]:
    return [(item.term, item.value, item.validity) for item in items if isinstance(item, Observation)]


def first(channel: str, payload: str) -> tuple[float | None, str]:
    return numbers(decode(channel, payload))[0][1:]


@pytest.mark.parametrize(
    ("payload", "value", "validity"),
    [
        ("00 3d", 61.0, "valid"),
        ("00 ff", 255.0, "valid"),
        ("01 2c 01", 300.0, "valid"),
        ("01 5f 01", None, "invalid"),  # 351
        ("01 ff ff", None, "invalid"),
        ("00 00", None, "not_available"),
        ("06 3d", 61.0, "valid"),
        ("02 3d", 61.0, "valid"),  # bit 1 alone: contact is not supported
        ("04 3d", None, "not_available"),  # supported, not detected
        ("18 3d 10 00 00 04", 61.0, "valid"),
        ("19 3d 00 10 00 00 04 00 05", 61.0, "valid"),
    ],
)
def test_heart_rate(payload: str, value: float | None, validity: str) -> None:
    assert numbers(decode("2a37", payload)) == [("heart_rate", value, validity)]


def test_lost_contact_is_a_state_of_the_sensor() -> None:
    decoder = Gatt()
    told = [item for payload in ("063d", "043d", "0400", "063e") for item in decode("2a37", payload, decoder)]
    assert [item for item in told if isinstance(item, DeviceStatus)] == [
        DeviceStatus("sensor", "off_patient", 0, "2a37"),
        DeviceStatus("sensor", "ok", 0, "2a37"),
    ]


@pytest.mark.parametrize(
    ("channel", "payload"),
    [
        ("2a37", "00"), ("2a37", "01 50"), ("2a37", "08 50 01"), ("2a37", "10 50"), ("2a37", "10 50 00"),
        ("2a37", "00 50 00"), ("2a37", "10 50 00 04 01"),
        ("2a5f", "00 62 00 48"), ("2a5f", "00 62 00 48 00 00"), ("2a5f", "04 62 00 48 00"),
        ("2a5e", "01 62 00 48 00 e9 07 01 01 01 01"),
        ("2a35", "00 78 00 50 00 5d"), ("2a35", "00 78 00 50 00 5d 00 00"), ("2a36", "00 78 00"),
        ("2a1c", "00 6c 01 00"), ("2a1c", "04 6c 01 00 ff"), ("2a1c", "00 6c 01 00 ff 01"),
        ("2a19", "4b 00"), ("2a9d", "00 b0"), ("2a9d", "00 b0 36 00"), ("2a9d", "08 b0 36 f5 00"),
        ("2a18", "00"), ("", "00 50"), ("2a38", "01"),
    ],
)  # fmt: skip
def test_payloads_that_are_rejected_whole(channel: str, payload: str) -> None:
    (item,) = decode(channel, payload)
    assert isinstance(item, Reject)
    assert item.size == len(bytes.fromhex(payload))


def test_full_uuids_and_upper_case_name_the_same_characteristic() -> None:
    for name in ("2A37", "00002a37-0000-1000-8000-00805f9b34fb", "00002A37-0000-1000-8000-00805F9B34FB"):
        assert first(name, "003d") == (61.0, "valid")


@pytest.mark.parametrize(
    ("sfloat", "value", "validity"),
    [
        ("60 00", 96.0, "valid"),
        ("c0 f3", 96.0, "valid"),  # 960e-1
        ("09 10", 90.0, "valid"),  # 9e1
        ("ff 07", None, "not_available"),  # NaN
        ("00 08", None, "invalid"),  # NRes
        ("fe 07", None, "invalid"),  # +INF
        ("02 08", None, "invalid"),  # -INF
        ("01 08", None, "invalid"),  # reserved
        ("ff 0f", None, "invalid"),  # -1
        ("65 00", None, "invalid"),  # 101
        ("61 e0", None, "invalid"),  # 0.97: a fraction, not per cent
        ("00 00", None, "invalid"),
    ],
)
def test_sfloat(sfloat: str, value: float | None, validity: str) -> None:
    assert first("2a5f", f"00 {sfloat} 48 00") == (value, validity)


@pytest.mark.parametrize(
    ("float32", "value", "validity"),
    [
        ("72 01 00 ff", 37.0, "valid"),
        ("88 0e 00 fe", 37.2, "valid"),
        ("25 00 00 00", 37.0, "valid"),
        ("ff ff 7f 00", None, "not_available"),
        ("00 00 80 00", None, "invalid"),
        ("fe ff 7f 00", None, "invalid"),
        ("02 00 80 00", None, "invalid"),
        ("20 75 38 7b", None, "invalid"),  # 3700000e123
        ("8e fe ff ff", None, "invalid"),  # -37.0
    ],
)
def test_float(float32: str, value: float | None, validity: str) -> None:
    assert first("2a1c", f"00 {float32}") == (value, validity)


def test_fahrenheit_kilopascal_and_pounds_are_converted() -> None:
    assert first("2a1c", "01 da 03 00 ff") == (37.0, "valid")  # 98.6
    pressures = numbers(decode("2a35", "01 a0 f0 6b f0 7c f0"))  # 16.0, 10.7 and 12.4 kPa
    assert [round(value or 0, 2) for _, value, _ in pressures] == [120.01, 80.26, 93.01]
    assert first("2a9d", "01 10 27") == (45.359237, "valid")  # 100 lb
    assert first("2a9d", "00 10 27") == (50.0, "valid")
    assert first("2a9d", "00 ff ff") == (None, "invalid")


def test_temperature_knows_its_site_and_is_doubtful_before_its_end() -> None:
    (item,) = decode("2a1c", "04 72 01 00 ff 01")
    assert isinstance(item, Observation)
    assert item.channel == "armpit"
    assert first("2a1e", "00 72 01 00 ff") == (37.0, "questionable")


def test_blood_pressure_with_every_field() -> None:
    payload = "1e 87 00 55 00 66 00 e9 07 0c 1f 17 3b 3a 41 00 02 00 00"
    items = decode("2a35", payload)
    assert numbers(items) == [
        ("nibp_sys", 135.0, "valid"),
        ("nibp_dia", 85.0, "valid"),
        ("nibp_mean", 102.0, "valid"),
        ("nibp_pulse_rate", 65.0, "valid"),
    ]
    assert {item.device_time for item in items if isinstance(item, Observation)} == {"2025-12-31T23:59:58"}


@pytest.mark.parametrize("time", ["00 00 0c 1f 17 3b 3a", "e9 07 00 1f 17 3b 3a", "e9 07 02 1e 17 3b 3a"])
def test_a_time_with_an_unknown_or_impossible_part_is_none(time: str) -> None:
    items = decode("2a35", f"02 87 00 55 00 66 00 {time}")
    assert {item.device_time for item in items if isinstance(item, Observation)} == {None}
    assert numbers(items)[0] == ("nibp_sys", 135.0, "valid")


@pytest.mark.parametrize(
    ("status", "validity"), [("01", "questionable"), ("02", "questionable"), ("04", "valid"), ("20", "questionable")]
)
def test_blood_pressure_status(status: str, validity: str) -> None:
    items = decode("2a35", f"10 87 00 55 00 66 00 {status} 00")
    assert {verdict for _, _, verdict in numbers(items)} == {validity}
    assert [item for item in items if isinstance(item, DeviceStatus)]


def test_a_pressure_that_no_cuff_measures_is_invalid() -> None:
    assert [value for _, value, _ in numbers(decode("2a35", "00 78 80 50 80 5a 80"))] == [None, None, None]
    assert numbers(decode("2a35", "00 78 00 50 00 ff 07"))[2] == ("nibp_mean", None, "not_available")


def test_the_pressure_in_the_cuff_is_no_result() -> None:
    assert decode("2a36", "00 a1 00 ff 07 ff 07") == []


MEASUREMENT = {6: "questionable", 9: "questionable", 10: "invalid", 11: "invalid", 12: "questionable"}
MEASUREMENT |= {13: "not_available", 14: "questionable", 15: "invalid"}
SENSOR = dict.fromkeys((0, 2, 3, 4, 5, 6, 8, 9, 10), "questionable")
SENSOR |= dict.fromkeys((1, 12, 14), "invalid") | dict.fromkeys((7, 11, 13, 15), "not_available")


@pytest.mark.parametrize("bit", range(16))
def test_measurement_status_of_the_oximeter(bit: int) -> None:
    validity = MEASUREMENT.get(bit, "valid")
    status = (1 << bit).to_bytes(2, "little").hex()
    for channel, flags in (("2a5f", "04"), ("2a5e", "02")):
        found = numbers(decode(channel, f"{flags} 60 00 48 00 {status}"))
        shown = validity in ("valid", "questionable")
        assert found == [("spo2", 96.0 if shown else None, validity), ("pulse_rate", 72.0 if shown else None, validity)]


@pytest.mark.parametrize("bit", range(24))
def test_sensor_status_of_the_oximeter(bit: int) -> None:
    validity = SENSOR.get(bit, "valid")
    status = (1 << bit).to_bytes(3, "little").hex()
    for channel, flags in (("2a5f", "08"), ("2a5e", "04")):
        items = decode(channel, f"{flags} 60 00 48 00 {status}")
        assert {verdict for _, _, verdict in numbers(items)} == {validity}
        assert bool([item for item in items if isinstance(item, DeviceStatus)]) is (bit < 16)


def test_oximeter_with_every_field() -> None:
    continuous = "1f 60 00 48 00 5f 00 49 00 5e 00 4a 00 80 00 00 00 00 0c f0"
    assert numbers(decode("2a5f", continuous)) == [
        ("spo2", 96.0, "valid"),
        ("pulse_rate", 72.0, "valid"),
        ("perfusion_index", 1.2, "valid"),
    ]
    for clock_not_set, device_time in (("0f", "2025-02-03T04:05:06"), ("1f", None)):
        items = decode("2a5e", f"{clock_not_set} 60 00 48 00 e9 07 02 03 04 05 06 80 00 00 00 00 0c f0")
        assert {item.device_time for item in items if isinstance(item, Observation)} == {device_time}


def test_battery() -> None:
    assert first("2a19", "64") == (100.0, "valid")
    assert first("2a19", "00") == (0.0, "valid")
    assert first("2a19", "65") == (None, "invalid")


def test_a_payload_in_pieces_is_never_a_number() -> None:
    assert DRIVER.message_oriented
    decoder = Gatt()
    for channel, payload in (
        ("2a37", "105a00080010"),
        ("2a5f", "0062004800"),
        ("2a35", "00780050005d00"),
        ("2a9d", "00b036"),
    ):
        pieces = [item for byte in bytes.fromhex(payload) for item in decode(channel, f"{byte:02x}", decoder)]
        assert pieces
        assert all(isinstance(item, Reject) for item in pieces)
