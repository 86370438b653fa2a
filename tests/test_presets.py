"""Presets: what is shipped, what a site may change, and what is refused with file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.config import ConfigError
from edge_agent.presets import DELAY_CEILING_S, Preset, load_presets

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
