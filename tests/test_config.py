"""The configuration: what is wrong is told with file, line and key, and nothing wrong gets through."""

from pathlib import Path

import pytest

from edge_agent.__main__ import main
from edge_agent.config import EXIT_CONFIG, ConfigError, key_lines, load

GOOD = """\
[gateway]
id = "icu-gw-1"
data_dir = "data"

[[bed]]
id = "ICU-3"
preset = "adult"
location = "ICU^^3"

[[source]]
driver = "nonin"
link = "serial:///dev/ttyUSB0?baud=9600"
bed = "ICU-3"

[[annunciator]]
kind = "record"
path = "edges.jsonl"

[cloud.kafka]
bootstrap = "broker:9093"
security = "tls"
ca = "/etc/edge-agent/ca.pem"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(text)
    return path


def test_a_good_file_is_loaded(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, GOOD))
    assert loaded.config.bed[0].location == "ICU^^3"
    assert loaded.resolve(loaded.config.gateway.data_dir) == tmp_path / "data"


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ('preset = "adult"', 'presett = "adult"', 7, "bed[0].presett"),
        ('bed = "ICU-3"', 'bed = "ICU-4"', 13, "source[0].bed"),
        ('bed = "ICU-3"', "", 10, "source[0].bed"),
        ('driver = "nonin"', 'driver = "noni"', 11, "source[0].driver"),
        ('link = "serial:///dev/ttyUSB0?baud=9600"', 'link = "serail:///dev/ttyUSB0"', 12, "source[0].link"),
        ('link = "serial:///dev/ttyUSB0?baud=9600"', 'link = "serial:///dev/ttyUSB0?baud=fast"', 12, "source[0].link"),
        ('link = "serial:///dev/ttyUSB0?baud=9600"', 'link = "ble://AA:BB:CC:DD:EE:FF"', 12, "source[0].link"),
        ('preset = "adult"', 'preset = "giant"', 7, "bed[0].preset"),
        ('id = "icu-gw-1"', "", 1, "gateway.id"),
        ('id = "icu-gw-1"', "id = 3", 2, "gateway.id"),
        ('kind = "record"', 'kind = "gpio"', 15, "annunciator[0]"),
        ('security = "tls"', 'security = "mtls"', 19, "cloud.kafka"),
        ("[gateway]", "[gateway", 1, ""),
        ('data_dir = "data"', 'data_dir = "data"\n[alarms]\naudio_pause_s = 181', 5, "alarms.audio_pause_s"),
        ('data_dir = "data"', 'data_dir = "data"\npresets = ["missing.toml"]', 4, "gateway.presets"),
    ],
)
def test_what_is_wrong_is_told_with_line_and_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: int, key: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    assert main(["check", str(path)]) == EXIT_CONFIG
    told = capsys.readouterr().err
    assert f"{path}:{line}: {key}" in told


def test_a_good_file_passes_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write(tmp_path, GOOD))]) == 0
    assert "valid" in capsys.readouterr().out


def test_two_beds_cannot_share_a_location(tmp_path: Path) -> None:
    text = GOOD + '\n[[bed]]\nid = "ICU-4"\nlocation = "ICU^^3"\n'
    with pytest.raises(ConfigError, match=r"bed\[1\]\.location"):
        load(write(tmp_path, text))


def test_a_missing_or_binary_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "binary.toml")


def test_key_lines_counts_arrays_of_tables() -> None:
    lines = key_lines('[a]\nb = 1\n[[c]]\nd = 2\n[c.e]\nf = 3\n[[c]] # again\n"d" = 4\ng.h = 5\n')
    assert lines[("a", "b")] == 2
    assert lines[("c", 0, "d")] == 4
    assert lines[("c", 0, "e", "f")] == 6
    assert lines[("c", 1)] == 7
    assert lines[("c", 1, "d")] == 8
    assert lines[("c", 1, "g", "h")] == 9
