"""What-if on recorded tables: counts, lost and raised alarms, HIGH one by one, against figures worked out by hand."""

import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent import presets
from edge_agent.__main__ import main
from edge_agent.burden import replay, tables
from edge_agent.burden.recorded import NS, Heard
from edge_agent.records import DeviceAlarm, Observation

SITE = 'name = "site"\nextends = "adult"\n'


def row(condition: str, **keys: object) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return f'[[condition]]\nid = "{condition}"\n' + "\n".join(lines) + "\n"


class Bench:
    """A folder with a table and a preset, and the command on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.error = ""

    def table(self, series: dict[str, list[Any]], name: str = "table.csv") -> Path:
        """SpO2 a second for each bed."""
        path = self.folder / name
        lines = [
            f"{at},{bed},{'' if value is None else value}" for bed in series for at, value in enumerate(series[bed])
        ]
        path.write_text("time_s,bed,spo2\n" + "".join(f"{line}\n" for line in lines))
        return path

    def preset(self, *rows: str) -> Path:
        path = self.folder / "site.toml"
        path.write_text(SITE + "".join(rows))
        return path

    def run(self, *words: object) -> tuple[int, str]:
        code = main(["alarms", "whatif", *map(str, words)])
        captured = self._capsys.readouterr()
        self.error = captured.err
        return code, captured.out

    def report(self, preset: Path, table: Path, *words: object) -> dict[str, Any]:
        code, out = self.run("--preset", preset, "--data", table, "--json", *words)
        assert code == 0, self.error
        found: dict[str, Any] = json.loads(out)
        return found

    def line(self, report: dict[str, Any], condition: str) -> dict[str, Any]:
        (found,) = [line for line in report["conditions"] if line["condition"] == condition]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def spell(value: float, seconds: int, *, before: int = 60, after: int = 60) -> list[float]:
    return [97.0] * before + [value] * seconds + [97.0] * after


def test_a_limit_that_is_lowered_loses_what_lies_between(bench: Bench) -> None:
    table = bench.table({"A": spell(89.0, 40), "B": spell(86.0, 40), "C": spell(97.0, 40)})
    report = bench.report(bench.preset(row("spo2_low", present="below 88")), table)
    line = bench.line(report, "spo2_low")
    # out of limits from 60 s, present at 75 s, back at 100 s, over at 105 s
    rate = pytest.approx(2 / (3 * 159 / 86400), abs=0.01)
    assert line["before"] == {"alarms": 2, "per_bed_day": rate, "total_s": 60.0, "median_s": 30.0}
    assert (line["after"]["alarms"], line["after"]["total_s"]) == (1, 30.0)
    assert (line["lost"], line["raised"]) == (1, 0)
    assert line["shortened"]["events"] == line["later"]["events"] == 0
    assert report["beds"] == 3
    assert report["bed_days"] == pytest.approx(3 * 159 / 86400, abs=1e-6)
    assert (report["baseline"], report["preset"]) == ("adult", "site")
    assert report["high_lost"] == []


def test_a_longer_delay_comes_later_and_loses_the_short_ones(bench: Bench) -> None:
    table = bench.table({"A": spell(85.0, 20) + spell(85.0, 50)})
    line = bench.line(bench.report(bench.preset(row("spo2_low", delay_s=30)), table), "spo2_low")
    assert (line["before"]["alarms"], line["after"]["alarms"], line["lost"]) == (2, 1, 1)
    assert line["later"] == {"events": 1, "total_s": 15.0, "median_s": 15.0}
    assert line["shortened"] == {"events": 1, "total_s": 15.0, "median_s": 15.0}
    assert line["earlier"]["events"] == line["lengthened"]["events"] == 0


def test_a_limit_that_is_raised_brings_new_and_longer_alarms(bench: Bench) -> None:
    table = bench.table({"A": spell(91.0, 60), "B": [97.0] * 30 + [91.0] * 20 + [85.0] * 30 + [97.0] * 30})
    line = bench.line(bench.report(bench.preset(row("spo2_low", present="below 93")), table), "spo2_low")
    assert (line["before"]["alarms"], line["after"]["alarms"], line["raised"], line["lost"]) == (1, 2, 1, 0)
    assert line["earlier"] == line["lengthened"] == {"events": 1, "total_s": 20.0, "median_s": 20.0}


def test_one_alarm_that_falls_into_two_is_one_event(bench: Bench) -> None:
    # 91 is not back inside the deadband of 2, so before it holds the alarm up; with deadband 0 it ends
    table = bench.table({"A": [97.0] * 30 + [85.0] * 30 + [91.0] * 20 + [85.0] * 30 + [97.0] * 30})
    line = bench.line(bench.report(bench.preset(row("spo2_low", deadband=0)), table), "spo2_low")
    assert (line["before"]["alarms"], line["after"]["alarms"]) == (1, 2)
    assert (line["lost"], line["raised"], line["shortened"]["events"], line["later"]["events"]) == (0, 0, 1, 0)


def test_each_high_that_is_lost_is_named_with_its_worst_value(bench: Bench) -> None:
    deep = [97.0] * 3600 + [79.0, 77.0, 76.0, 78.0] + [79.0] * 30 + [97.0] * 60
    table = bench.table({"ICU-2": deep, "ICU-1": spell(70.0, 30)})
    preset = bench.preset(row("spo2_desaturation", present="below 75"))
    report = bench.report(preset, table)
    (lost,) = report["high_lost"]
    assert lost == {
        "bed": "ICU-2", "at": "1:00:05", "at_s": 3605.0, "condition": "spo2_desaturation",
        "text": "SpO2 desaturation", "worst": 76.0, "unit": "%", "duration_s": 34.0, "becomes": "lost",
        "covered_by": [{"condition": "spo2_low", "priority": "medium"}],
    }  # fmt: skip
    _, text = bench.run("--preset", preset, "--data", table)
    assert "bed ICU-2  1:00:05  spo2_desaturation, worst 76 %, 34 s: lost; still rings: spo2_low (medium)" in text, text


def test_a_high_that_becomes_medium_is_named_too(bench: Bench) -> None:
    table = bench.table({"A": spell(70.0, 30)})
    report = bench.report(bench.preset(row("spo2_desaturation", priority="medium")), table)
    (lost,) = report["high_lost"]
    assert lost["becomes"] == "medium"
    found = [(line["priority"], line["before"]["alarms"], line["after"]["alarms"], line["lost"], line["raised"])
             for line in report["conditions"] if line["condition"] == "spo2_desaturation"]  # fmt: skip
    assert found == [("high", 1, 0, 0, 0), ("medium", 0, 1, 0, 0)]


def test_a_high_that_stays_is_not_listed(bench: Bench) -> None:
    table = bench.table({"A": spell(70.0, 30)})
    assert bench.report(bench.preset(row("spo2_low", present="below 85")), table)["high_lost"] == []
    _, text = bench.run("--preset", bench.folder / "site.toml", "--data", table)
    assert text.rstrip().endswith("HIGH alarms lost: none")


def test_data_that_stops_is_a_technical_alarm_in_both(bench: Bench) -> None:
    table = bench.table({"A": [97.0] * 30 + [None] * 60 + [97.0] * 30})
    line = bench.line(bench.report(bench.preset(row("spo2_low", delay_s=5)), table), "spo2_stale")
    # the last value is of 29 s, its age is over at 59 s, and data is back at 90 s
    assert line["kind"] == "technical"
    assert (line["before"]["alarms"], line["before"]["total_s"], line["after"]["total_s"]) == (1, 31.0, 31.0)


def test_another_patient_in_the_bed_begins_anew(bench: Bench) -> None:
    path = bench.folder / "two.csv"
    rows = [(at, "p1" if at < 100 else "p2", 85.0) for at in range(200)]
    path.write_text("time,bed,patient,SpO2\n" + "".join(f"{at},A,{patient},{value}\n" for at, patient, value in rows))
    line = bench.line(bench.report(bench.preset(row("temp_limits", enabled=False)), path), "spo2_low")
    # 15 to 100 s for the first, 115 s to the last value at 199 s for the second
    assert (line["before"]["alarms"], line["before"]["total_s"]) == (2, 85.0 + 84.0)


def test_the_baseline_is_what_the_file_extends_or_what_is_asked_for(bench: Bench) -> None:
    table = bench.table({"A": spell(87.0, 40)})
    preset = bench.preset()
    preset.write_text('name = "site"\nextends = "neonate"\n')
    report = bench.report(preset, table)  # 97 is too much for a neonate, 87 is not too little
    assert report["baseline"] == "neonate"
    assert {line["condition"] for line in report["conditions"]} == {"spo2_high"}
    report = bench.report(preset, table, "--baseline", "adult")
    assert (report["baseline"], bench.line(report, "spo2_low")["lost"]) == ("adult", 1)


def test_columns_are_told_by_name_or_by_the_command_line(bench: Bench) -> None:
    path = bench.folder / "named.csv"
    path.write_text("t_s,rec,HR,SBP,Age\n" + "".join(f"{at},1,150,190,60\n" for at in range(60)))
    report = bench.report(bench.preset(row("spo2_low", delay_s=5)), path, "--column", "SBP=nibp_sys")
    assert {line["condition"] for line in report["conditions"]} == {
        "heart_rate_high", "heart_rate_extreme_high", "nibp_sys_high",
    }  # fmt: skip
    assert "not used: columns Age" in bench.error


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bed,spo2\nA,97\n", "no column of times"),
        ("time,bed,age\n0,A,97\n", "no column is a vital sign"),
        ("time,HR,heart_rate\n0,60,60\n", "are both heart_rate"),
        ("time,spo2\n0,97\n1\n", "bad.csv:3: 1 fields in a row of 2 columns"),
        ("time,spo2\n0,97\n1,high\n", "bad.csv: row 3: could not convert"),
        ("time,spo2\n5,97\n1,97\n", "time runs backwards, from 0:00:05 to 0:00:01"),
        ("", "no column of times"),
        ("time,spo2\n", "no vital signs in this data"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_place(bench: Bench, text: str, words: str) -> None:
    path = bench.folder / "bad.csv"
    path.write_text(text)
    code, out = bench.run("--preset", bench.preset(), "--data", path)
    assert (code, out) == (1, "")
    assert words in bench.error


def test_a_preset_that_cannot_be_used_ends_with_78_and_the_line(bench: Bench) -> None:
    table = bench.table({"A": [97.0]})
    code, _ = bench.run("--preset", bench.preset(row("spo2_desaturation", delay_s=20)), "--data", table)
    assert code == 78
    assert "site.toml:5" in bench.error
    assert "over the ceiling of 10" in bench.error
    assert bench.run("--preset", bench.folder / "none.toml", "--data", table)[0] == 78
    assert bench.run("--preset", bench.preset(), "--data", table, "--baseline", "nobody")[0] == 78
    assert "known presets: adult" in bench.error


def test_a_bed_preset_needs_a_configuration(bench: Bench) -> None:
    assert bench.run("--preset", bench.preset(), "--data", "x.csv", "--bed-preset", "adult")[0] == 2


def test_parquet_gives_what_csv_gives(bench: Bench) -> None:
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    table = bench.table({"A": spell(85.0, 50), "B": spell(70.0, 50), "C": [97.0] * 20 + [None] * 60 + [85.0] * 60})
    packed = bench.folder / "table.parquet"
    parquet.write_table(arrow_csv.read_csv(table), packed)
    preset = bench.preset(row("spo2_low", delay_s=30))
    assert bench.report(preset, packed) == bench.report(preset, table)


def adult() -> presets.Preset:
    return presets.load_presets()["adult"]


def by_hand(values: list[float], limit: float, delay: int, off: int) -> list[tuple[int, int]]:
    """Onsets and ends of a low limit without deadband, in s: each second looked at by itself, as with a pencil."""
    out: list[tuple[int, int]] = []
    turned = 0  # when the value last crossed the limit
    onset: int | None = None
    for at, value in enumerate(values):
        before = at - turned  # how long it has been on the side that it was on up to now
        was_low = at > 0 and values[at - 1] < limit
        if onset is None and was_low and before >= delay:
            onset = turned + delay
        elif onset is not None and not was_low and before >= off:
            out.append((onset, turned + off))
            onset = None
        if (value < limit) != was_low:
            turned = at
    if onset is not None:
        out.append((onset, len(values) - 1))
    return out


@pytest.mark.parametrize("seed", range(25))
def test_the_replay_agrees_with_working_it_out_by_hand(bench: Bench, seed: int) -> None:
    chance = random.Random(seed)
    values, value = [], 93.0
    for _ in range(3000):
        value = min(98.0, max(84.0, value + chance.choice((-1.0, 0.0, 0.0, 1.0))))
        values.append(value)
    moments = [
        Heard("A", at * NS, "s", "", (Observation("spo2", each, "valid", at * NS),)) for at, each in enumerate(values)
    ]
    preset = presets.load_presets([bench.preset(row("spo2_low", deadband=0))])["site"]
    found = replay.replay(moments, lambda _bed: (preset, preset))
    spans = [(each.start_ns // NS, each.end_ns // NS) for each in found.before]
    assert spans == by_hand(values, 90.0, 15, 5)
    assert [each.start_ns for each in found.after] == [each.start_ns for each in found.before]
    assert len(spans) >= 3
    for each in found.before:
        first = next(at for at in range(each.start_ns // NS - 1, -1, -1) if values[at] >= 90.0)
        assert each.worst == min(values[first : each.end_ns // NS + 1])


def test_alarms_of_the_monitor_ring_in_both(bench: Bench) -> None:
    def moments() -> Iterator[Heard]:
        for at in range(100):
            yield Heard("A", at * NS, "m", "", (Observation("spo2", 97.0, "valid", at * NS),))
            if at in (20, 50):
                phase = "start" if at == 20 else "end"
                yield Heard("A", at * NS, "m", "", (DeviceAlarm("high", phase, "VT", at * NS, alert_id="7"),))

    preset = adult()
    found = replay.replay(moments(), lambda _bed: (preset, preset))
    (alarm,) = found.after
    assert (alarm.condition, alarm.priority, alarm.seconds) == ("device_alarm:7", "high", 30.0)


def test_a_bed_without_presets_is_left_out() -> None:
    preset = adult()
    moments = [Heard(bed, 0, "s", "", (Observation("spo2", 97.0, "valid", 0),)) for bed in ("A", "B")]
    assert set(replay.replay(moments, lambda bed: (preset, preset) if bed == "A" else None).observed_s) == {"A"}


def test_memory_does_not_grow_with_the_observations(bench: Bench) -> None:
    preset = adult()

    def peak(hours: int) -> int:
        path = bench.folder / f"{hours}.csv"
        with path.open("w") as file:
            file.write("time_s,bed,spo2\n")
            file.writelines(f"{at},A,{96 + at % 3}\n" for at in range(hours * 3600))
        tracemalloc.start()
        replay.replay(tables.table_moments(path, {})[1], lambda _bed: (preset, preset))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)  # imports and caches
    assert peak(6) < 1.2 * peak(1) + 100_000
