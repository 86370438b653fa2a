"""Presets: what is shipped, what a site may change, and what is refused with file, line and key."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edge_agent.__main__ import main
from edge_agent.config import ConfigError
from edge_agent.presets import BUILT_IN, DELAY_CEILING_S, EXPIRES_S, LIMIT_VERBS, ROW_KEYS, Preset, load_presets

# (preset, condition): as the public manuals state them, written down here independently of the shipped files
LIMITS = {
    ("adult", "heart_rate_high"): "above 120", ("adult", "heart_rate_low"): "below 50",
    ("paediatric", "heart_rate_high"): "above 160", ("paediatric", "heart_rate_low"): "below 75",
    ("neonate", "heart_rate_high"): "above 200", ("neonate", "heart_rate_low"): "below 100",
    ("adult", "pulse_rate_high"): "above 120", ("neonate", "pulse_rate_low"): "below 100",
    ("adult", "spo2_low"): "below 90", ("paediatric", "spo2_low"): "below 90", ("neonate", "spo2_low"): "below 85",
    ("neonate", "spo2_high"): "above 95",
    ("adult", "spo2_desaturation"): "below 80", ("neonate", "spo2_desaturation"): "below 80",
    ("adult", "resp_rate_high"): "above 30", ("adult", "resp_rate_low"): "below 8",
    ("neonate", "resp_rate_high"): "above 100", ("neonate", "resp_rate_low"): "below 30",
    ("adult", "nibp_sys_high"): "above 160", ("adult", "nibp_sys_low"): "below 90",
    ("paediatric", "nibp_sys_high"): "above 120", ("neonate", "nibp_sys_low"): "below 40",
    ("adult", "nibp_dia_high"): "above 90", ("adult", "nibp_mean_low"): "below 60",
    ("paediatric", "nibp_mean_high"): "above 90", ("neonate", "nibp_dia_low"): "below 20",
    ("adult", "temp_limits"): "outside 36 39", ("neonate", "temp_limits"): "outside 36 39",
    ("adult", "etco2_high"): "above 50", ("paediatric", "etco2_low"): "below 20", ("neonate", "etco2_low"): "below 30",
    ("adult", "heart_rate_extreme_low"): "below 40", ("adult", "heart_rate_extreme_high"): "above 140",
}  # fmt: skip


@pytest.fixture(scope="module")
def built_in() -> dict[str, Preset]:
    return load_presets()


@pytest.mark.alm("ALM-01")
def test_every_shipped_condition_has_exactly_one_priority() -> None:
    """Read as TOML, not through the loader: every row, and every row that extends another, in every shipped file."""
    rows: dict[str, dict[str, dict[str, object]]] = {}
    parents: dict[str, str] = {}
    for path in sorted(BUILT_IN.glob("*.toml")):
        read = tomllib.loads(path.read_text())
        ids = [row["id"] for row in read["condition"]]
        assert len(ids) == len(set(ids)), path
        rows[read["name"]] = {row["id"]: row for row in read["condition"]}
        parents[read["name"]] = read.get("extends", "")
    for name, own in rows.items():
        merged = {**rows.get(parents[name], {}), **own}
        for condition, row in merged.items():
            priorities = [row[key] for key in row if key == "priority"]
            assert len(priorities) == 1 and priorities[0] in ("high", "medium", "low"), (name, condition)
        loaded = load_presets()[name].conditions
        assert {row.id: row.priority for row in loaded} == {key: row["priority"] for key, row in merged.items()}


@pytest.mark.alm("ALM-01")
@pytest.mark.parametrize("priority", ['["high", "low"]', '""', '"none"', "1", '"HIGH"'])
def test_another_number_of_priorities_is_refused(tmp_path: Path, priority: str) -> None:
    with pytest.raises(ConfigError, match="exactly one priority"):
        load_presets([site(tmp_path, ROW.replace('"medium"', priority))])


@pytest.mark.alm("ALM-09")
@pytest.mark.parametrize(("priority", "ceiling"), [("high", 10), ("medium", 30), ("low", 30)])
def test_delay_ceilings(tmp_path: Path, priority: str, ceiling: float) -> None:
    text = ROW.replace('"medium"', f'"{priority}"\ntext = "t"') + "delay_s = {}\n"
    row = load_presets([site(tmp_path, text.format(ceiling))])["x"].by_id["a"]
    assert row.delay_s == ceiling == DELAY_CEILING_S[priority]
    with pytest.raises(ConfigError, match=f"over the ceiling of {ceiling}") as caught:
        load_presets([site(tmp_path, text.format(ceiling + 0.001))])
    assert (caught.value.line, caught.value.key) == (11, "condition[0].delay_s")


@pytest.mark.alm("ALM-09")
def test_delay_ceilings_hold_at_run_time_too(built_in: dict[str, Preset]) -> None:
    adult = built_in["adult"]
    for condition, ceiling in (("spo2_desaturation", 10), ("spo2_low", 30), ("temp_limits", 30)):
        present = adult.by_id[condition].present
        assert adult.with_row(condition, present, ceiling).by_id[condition].delay_s == ceiling
        with pytest.raises(ValueError, match=f"delay_s: .* is over the ceiling of {ceiling}"):
            adult.with_row(condition, present, ceiling + 0.001)


def test_shipped_presets_are_valid_and_complete(built_in: dict[str, Preset]) -> None:
    assert {"adult", "paediatric", "neonate", "bedside", "gateway"} == set(built_in)
    for preset in built_in.values():
        assert preset.population
        for row in preset.conditions:
            assert row.priority in ("high", "medium", "low")
            assert row.text and row.source and not row.source.startswith("site preset")
            assert row.delay_s <= DELAY_CEILING_S[row.priority]
            assert not (row.latching and row.kind == "technical")


@pytest.mark.parametrize(("preset", "condition"), LIMITS)
def test_shipped_limits(built_in: dict[str, Preset], preset: str, condition: str) -> None:
    assert built_in[preset].by_id[condition].present == LIMITS[preset, condition]


def test_shipped_delays_and_deadbands(built_in: dict[str, Preset]) -> None:
    expected = {
        "spo2_low": (2, 15), "heart_rate_low": (5, 10), "resp_rate_high": (2, 15), "nibp_sys_low": (5, 0),
        "temp_limits": (0.2, 30), "apnoea": (0, 0),
    }  # fmt: skip
    for name in ("adult", "paediatric", "neonate"):
        rows = built_in[name].by_id
        assert {key: (rows[key].deadband, rows[key].delay_s) for key in expected} == expected
        assert all(rows[key].off_delay_s == 5 for key in expected)
        assert rows["spo2_desaturation"].priority == "high" and rows["spo2_desaturation"].delay_s <= 5


def site(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def test_site_preset_extends_and_overrides(tmp_path: Path) -> None:
    path = site(
        tmp_path,
        """
name = "icu"
extends = "adult"

[[condition]]
id = "spo2_low"
present = "below 88"

[[condition]]
id = "temp_limits"
enabled = false

[[condition]]
id = "cvp_high"
kind = "physiological"
vital = "cvp"
present = "above 15"
priority = "low"

[[condition]]
id = "cvp_stale"
kind = "technical"
vital = "cvp"
present = "silent 20"
priority = "low"
""",
    )
    presets = load_presets([path])
    icu, adult = presets["icu"], presets["adult"]
    row = icu.by_id["spo2_low"]
    assert (row.low, row.delay_s, row.priority, row.text) == (88, 15, "medium", "SpO2 low")
    assert adult.by_id["spo2_low"].low == 90
    assert "temp_limits" not in icu.by_id and icu.disabled == ("temp_limits",)
    assert icu.by_id["cvp_high"].source == "site preset site.toml" and icu.by_id["cvp_high"].text == "cvp high"
    assert len(icu.conditions) == len(adult.conditions) + 1
    assert icu.population == adult.population


def test_name_defaults_to_the_file_and_latching_is_a_switch(tmp_path: Path) -> None:
    preset = load_presets([site(tmp_path, 'extends = "adult"\n')])["site"]
    assert all(row.latching for row in preset.with_latching(True).conditions if row.kind == "physiological")
    assert not any(row.latching for row in preset.with_latching(True).conditions if row.kind == "technical")
    assert not any(row.latching for row in preset.with_latching(False).conditions)


def test_dynamic_ids_lead_to_their_row(built_in: dict[str, Preset]) -> None:
    assert built_in["adult"].row("source_lost:nonin@serial:///dev/ttyUSB0") is built_in["adult"].by_id["source_lost"]
    assert built_in["adult"].row("nothing") is None


ROW = """name = "x"
extends = "bedside"

[[condition]]
id = "a"
kind = "physiological"
vital = "spo2"
present = "below 90"
priority = "medium"
"""


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        (ROW.replace("below 90", "under 90"), 8, "condition[0].present", "unknown verb 'under'"),
        (ROW.replace("below 90", "below"), 8, "condition[0].present", "needs 1 number"),
        (ROW.replace("below 90", "below ninety"), 8, "condition[0].present", "is not a number"),
        (ROW.replace("below 90", "below nan"), 8, "condition[0].present", "finite"),
        (ROW.replace("below 90", "outside 95 90"), 8, "condition[0].present", "first limit"),
        (ROW.replace("below 90", "below 190"), 8, "condition[0].present", "outside the plausible range of spo2"),
        (ROW.replace('"spo2"', '"spo"'), 7, "condition[0].vital", "no vital is named 'spo'"),
        (ROW.replace('"medium"', '"urgent"'), 9, "condition[0].priority", "is not one of"),
        (ROW.replace('"medium"', '["high", "low"]'), 9, "condition[0].priority", "is not one of"),
        (ROW.replace('priority = "medium"\n', ""), 4, "condition[0].priority", "missing"),
        (ROW.replace('kind = "physiological"\n', ""), 4, "condition[0].kind", "missing"),
        (ROW.replace('"medium"', '"high"'), 4, "condition[0]", "needs a text"),
        (ROW.replace('"medium"', '"high"\ntext = "t"\ndelay_s = 11'), 11, "condition[0].delay_s", "ceiling of 10"),
        (ROW + "delay_s = 31\n", 10, "condition[0].delay_s", "ceiling of 30"),
        (ROW + "delay_s = -1\n", 10, "condition[0].delay_s", "negative"),
        (ROW + "delay_s = true\n", 10, "condition[0].delay_s", "must be a number"),
        (ROW + "deadband = -2\n", 10, "condition[0].deadband", "negative"),
        (ROW + 'latching = "yes"\n', 10, "condition[0].latching", "true or false"),
        (ROW + "dealy_s = 1\n", 10, "condition[0].dealy_s", "unknown key"),
        (ROW + 'arming = "later"\n', 10, "condition[0].arming", "unknown arming"),
        (ROW.replace('id = "a"', 'id = "A B"'), 5, "condition[0].id", "is not an id"),
        (ROW + ROW[ROW.index("\n[[") :], 12, "condition[1].id", "stands twice"),
        (ROW.replace('"bedside"', '"nobody"'), 2, "extends", "no preset is named 'nobody'"),
        (ROW.replace('"bedside"', '"x"'), 2, "extends", "circle"),
        (ROW.replace('"x"', '"adult"'), 1, "name", "already exists"),
        (ROW.replace('extends = "bedside"\n', ""), 3, "condition[0]", "how old a value of spo2"),
        (ROW.replace('"physiological"', '"technical"'), 6, "condition[0].kind", "is a physiological condition"),
        (ROW.replace("below 90", "score_above 0.5").replace('"spo2"', '"risk"'), 6, "condition[0].kind", "advisory"),
        (ROW.replace("below 90", "outside 90 92") + "deadband = 1\n", 10, "condition[0].deadband", "would end"),
        (ROW.replace('"bedside"', '"adult"').replace('"a"', '"spo2_desaturation"').replace("below 90", "below 92")
         .replace('"medium"', '"high"'), 8, "condition[0].present", "low limit 92 of 'spo2_desaturation'"),
        ('extends = "adult"\n[[condition]]\nid = "spo2_low"\npresent = "below 75"\n', 4, "condition[0].present",
         "lies inside 75"),
        ('extends = "adult"\n[[condition]]\nid = "source_lost"\nenabled = false\n', 4, "condition[0].enabled",
         "technical"),
        ('extends = "adult"\n[[condition]]\nid = "source_lost"\nlatching = true\n', 4, "condition[0].latching",
         "never"),
        ('extends = "adult"\n[[condition]]\nid = "spo2_stale"\ndelay_s = 3\n', 4, "condition[0].delay_s",
         "are the delay"),
        (ROW + 'severity = "50"\n', 10, "condition[0].severity", "must be a number"),
        (ROW + "severity = -1\n", 10, "condition[0].severity", "negative"),
        (ROW + "severity = nan\n", 10, "condition[0].severity", "must be a number"),
        (ROW + "expires_s = 60\n", 10, "condition[0].expires_s", "no meaning for `below`"),
        (ROW + "severty = 60\n", 10, "condition[0].severty", "unknown key"),
        ('extends = "adult"\n[[condition]]\nid = "device_alarm"\nexpires_s = 0\n', 4, "condition[0].expires_s",
         "would end every alarm at once"),
        ('extends = "adult"\n[[condition]]\nid = "device_alarm"\nexpires_s = 3601\n', 4, "condition[0].expires_s",
         "over the ceiling of 3600"),
        ('extends = "adult"\n[[condition]]\nid = "device_alarm"\nseverity = 5\n', 4, "condition[0].severity",
         "no meaning for `device_alarm`"),
        ('extends = "adult"\n[[condition]]\nid = "spo2_stale"\nseverity = 5\n', 4, "condition[0].severity",
         "no meaning for `silent`"),
        (ROW.replace("below 90", "score_above 90").replace('"physiological"', '"advisory"'), 7, "condition[0].vital",
         "'spo2' is measured, not scored"),
        (ROW.replace("below 90", "score_above 9").replace('"physiological"', '"advisory"')
         .replace('"spo2"', '"resp_rate_co2"'), 7, "condition[0].vital", "is measured, not scored"),
        (ROW.replace("below 90", "score_above 0.5").replace('"physiological"', '"advisory"')
         .replace('"spo2"', '"risk"'), 4, "condition[0]", "how old a value of risk"),
        (ROW.replace("below 90", "score_above 0.5").replace('"physiological"', '"advisory"')
         .replace('"spo2"', '"risk"').replace('"medium"', '"high"'), 9, "condition[0].priority", "medium at most"),
        ("colour = 3\n", 1, "colour", "unknown key"),
        ("name = \n", 1, "", "not valid TOML"),
    ],
)  # fmt: skip
def test_refused_with_place_and_reason(tmp_path: Path, text: str, line: int, key: str, says: str) -> None:
    path = site(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_presets([path])
    assert says in str(caught.value)
    if line:
        assert (caught.value.path, caught.value.line, caught.value.key) == (path, line, key)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (ROW.replace("below 90", "under 90"), 8, "condition[0].present: unknown verb 'under'"),
        (ROW.replace("below 90", "below 190"), 8, "condition[0].present: limit 190 lies outside the plausible range"),
        (ROW + "delay_s = 31\n", 10, "condition[0].delay_s: 31 is over the ceiling of 30"),
        (ROW.replace('"medium"', '"high"'), 4, "condition[0]: a HIGH condition needs a text"),
        (ROW + ROW[ROW.index("\n[[") :], 12, "condition[1].id: condition 'a' stands twice"),
        (ROW + "severity = -1\n", 10, "condition[0].severity: -1 is negative"),
        (ROW + "expires_s = 60\n", 10, "condition[0].expires_s: has no meaning for `below`"),
    ],
)
def test_edge_agent_check_refuses_a_bad_preset_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, says: str
) -> None:
    path = site(tmp_path, text)
    configuration = tmp_path / "edge.toml"
    configuration.write_text(
        f'[gateway]\nid = "gw"\ndata_dir = "{tmp_path}/data"\npresets = ["site.toml"]\n'
        '[[bed]]\nid = "ICU-3"\npreset = "x"\n[[annunciator]]\nkind = "console"\n'
    )
    assert main(["check", str(configuration)]) == 78
    said = capsys.readouterr().err
    assert f"{path}:{line}: {says}" in said, said
    path.write_text(ROW)
    assert main(["check", str(configuration)]) == 0
    assert "site.toml" not in capsys.readouterr().err, "the same file without its fault"


# -- one limit changed at run time -------------------------------------------------------------------------------------


def test_a_changed_row_is_what_a_file_with_it_would_give(tmp_path: Path, built_in: dict[str, Preset]) -> None:
    read = load_presets([site(tmp_path, 'extends = "adult"\n[[condition]]\nid = "spo2_low"\npresent = "below 88.5"\n'
                                        "delay_s = 7\nseverity = 50\n")])["site"]  # fmt: skip
    row = read.by_id["spo2_low"]
    changed = read.with_row("spo2_low", "below 90", 15).with_row("spo2_low", "  below   88.5 ", 7)
    assert changed == read and changed.by_id["spo2_low"].severity == 50 and changed.row("spo2_low") == row
    assert built_in["adult"].with_row("spo2_low", "below 88").by_id["spo2_low"].delay_s == 15
    assert built_in["adult"].by_id["spo2_low"].present == "below 90", "the preset itself is as it was"


def test_every_shipped_limit_can_be_stated_again(built_in: dict[str, Preset]) -> None:
    for name in ("adult", "paediatric", "neonate"):
        preset = built_in[name].with_latching(True)
        for row in preset.conditions:
            if row.verb in LIMIT_VERBS:
                assert preset.with_row(row.id, row.present) == preset
                assert preset.with_row(row.id, row.present, row.delay_s) == preset


@pytest.mark.parametrize(
    ("condition", "present", "delay_s", "says"),
    [
        ("spo2_low", "below 190", None, "present: limit 190 lies outside the plausible range of spo2; 0 to 100 %"),
        ("spo2_low", "below ninety", None, "present: 'ninety' is not a number"),
        ("spo2_low", "below nan", None, "present: must be a finite number"),
        ("spo2_low", "below", None, "present: needs 1 number, has 0"),
        ("spo2_low", "", None, "a limit keeps its verb: write `below`"),
        ("spo2_low", "above 88", None, "a limit keeps its verb: write `below`"),
        ("spo2_low", "below 75", None, "present: low limit 80 of 'spo2_desaturation' (high) lies inside 75"),
        ("spo2_desaturation", "below 91", None, "present: low limit 91 of 'spo2_desaturation' (high) lies inside 90"),
        ("heart_rate_high", "above 150", None, "present: high limit 140 of 'heart_rate_extreme_high'"),
        ("temp_limits", "outside 39 36", None, "present: the first limit must be under the second"),
        ("temp_limits", "outside 36 36.3", None, "deadband: leaves no value that would end the condition"),
        ("spo2_low", "below 88", -1, "delay_s: -1 is negative"),
        ("spo2_low", "below 88", float("nan"), "delay_s: must be a number"),
        ("spo2_low", "below 88", True, "delay_s: must be a number"),
        ("spo2_stale", "silent 300", None, "'spo2_stale' is not a limit: its row is `silent 30`"),
        ("source_lost", "reported", None, "'source_lost' is not a limit"),
        ("device_alarm", "device_alarm high", None, "'device_alarm' is not a limit"),
        ("nothing", "below 5", None, "preset 'adult' has no condition 'nothing'"),
    ],
)
def test_a_change_is_refused_with_the_words_of_the_file(
    built_in: dict[str, Preset], condition: str, present: str, delay_s: float | None, says: str
) -> None:
    with pytest.raises(ValueError) as caught:
        built_in["adult"].with_row(condition, present, delay_s)
    assert says in str(caught.value) and not isinstance(caught.value, ConfigError)


def test_a_row_that_is_taken_out_says_so(tmp_path: Path) -> None:
    text = 'extends = "adult"\n[[condition]]\nid = "temp_limits"\nenabled = false\n'
    with pytest.raises(ValueError, match=r"no condition 'temp_limits' \(it is taken out\)"):
        load_presets([site(tmp_path, text)])["site"].with_row("temp_limits", "outside 36 39")


def test_keys_of_the_new_rows(tmp_path: Path, built_in: dict[str, Preset]) -> None:
    assert {row.id: row.expires_s for row in built_in["adult"].conditions if row.expires_s} == {
        "device_alarm": EXPIRES_S, "device_technical": EXPIRES_S,
    }  # fmt: skip
    assert not any(row.severity for preset in built_in.values() for row in preset.conditions), "see docs/alarms.md"
    text = ROW + ROW[ROW.index("\n[[") :].replace('"a"', '"b"').replace('vital = "spo2"\n', "").replace(
        "below 90", "device_alarm high"
    )
    rows = load_presets([site(tmp_path, text + "expires_s = 3600\n")])["x"].by_id
    assert (rows["a"].expires_s, rows["b"].expires_s, rows["a"].severity) == (0, 3600, 0)
    assert load_presets([site(tmp_path, text)])["x"].by_id["b"].expires_s == EXPIRES_S


def test_every_key_of_a_row_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "alarms.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| `")]
    assert [
        key for key in ROW_KEYS if key != "enabled" and not any(f"`{key}`" in line.split("|")[1] for line in table)
    ] == []


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load_presets([tmp_path / "absent.toml"])


def test_the_documentation_shows_every_shipped_row(built_in: dict[str, Preset]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "alarms.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    for column, name in enumerate(("adult", "paediatric", "neonate"), 1):
        limits = [row for row in built_in[name].conditions if row.kind == "physiological" and row.vital]
        for limit in limits:
            (shown,) = [row for row in rows if row[0] == f"`{limit.id}`"]
            latching = "yes" if limit.latching else "no"
            expected = [f"{limit.deadband:g}", f"{limit.delay_s:g} s", limit.priority, latching]
            assert [shown[column], *shown[4:]] == [limit.present, *expected], limit.id
    for name, where in (("bedside", "bed"), ("gateway", "gateway")):
        for row in built_in[name].conditions:
            assert any(shown[:4] == [f"`{row.id}`", where, row.text, row.priority] for shown in rows), row.id
