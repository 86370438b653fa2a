"""The plan of the house held against the code: one door for each package, no nameless rooms, files of one thought."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("edge_agent", "drivers", "cloud_sync", "models_tflite")

# third-party package -> the files, or folders ending in /, that may import it
DOORS: dict[str, tuple[str, ...]] = {
    "serial": ("edge_agent/links/serial.py",),
    "bleak": ("edge_agent/links/ble",),
    "bumble": ("edge_agent/demo/", "edge_agent/links/ble_hci.py"),
    "hl7": ("drivers/hl7/",),
    "pydantic": ("edge_agent/config.py", "edge_agent/config_cloud.py", "edge_agent/presets.py"),
    "cryptography": (
        "edge_agent/buffer/keys.py",
        "edge_agent/buffer/seal.py",
        "edge_agent/certificates.py",
        "edge_agent/provisioning/signing.py",
        "models_tflite/bundle.py",
        "models_tflite/training/train.py",
    ),
    "zstandard": ("edge_agent/buffer/seal.py",),
    "sqlite_utils": ("edge_agent/buffer/",),
    "sqlite3": ("edge_agent/buffer/", "edge_agent/alarm_log/"),
    "paho": ("cloud_sync/sinks/mqtt.py",),
    "confluent_kafka": ("cloud_sync/sinks/kafka", "cloud_sync/embedded.py"),
    "fastavro": ("cloud_sync/avro.py",),
    "httpx": ("cloud_sync/registry.py", "cloud_sync/sinks/rest.py"),
    "gpiod": (
        "edge_agent/gpio_chips.py",
        "edge_agent/annunciators/gpio.py",
        "edge_agent/button.py",
        "edge_agent/last_gasp.py",
    ),
    "matplotlib": ("edge_agent/burden/plot.py", "models_tflite/training/"),
    "pyarrow": ("edge_agent/burden/", "models_tflite/training/"),
    "numpy": ("models_tflite/", "edge_agent/risk/"),
    "ai_edge_litert": ("models_tflite/runtime.py", "models_tflite/training/quantize.py"),
    "tflite_runtime": ("models_tflite/runtime.py",),
    "xgboost": ("models_tflite/training/",),
    "sklearn": ("models_tflite/training/",),
    "tensorflow": ("models_tflite/training/",),
    "mlflow": ("models_tflite/training/tracking.py",),
    "rich": ("edge_agent/view.py", "edge_agent/view_beds.py"),
}
NAMELESS = {"utils", "helpers", "common", "manager", "base", "misc"}


def sources() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", DOORS)
def test_each_package_has_one_door(package: str) -> None:
    users = {str(path.relative_to(ROOT)) for path in sources() if package in imported(path)}
    strangers = {user for user in users if not user.startswith(DOORS[package])}
    assert users, f"{package} has a door and nobody uses it: remove the dependency"
    assert not strangers, f"{package} is imported outside its door {DOORS[package]}"


def test_no_other_third_party_package_is_imported() -> None:
    known = {*DOORS, *ROOMS, "msgspec", *sys.stdlib_module_names}
    for path in sources():
        assert imported(path) <= known, f"{path.relative_to(ROOT)} imports {imported(path) - known}"


def test_nothing_is_named_for_having_no_owner() -> None:
    for path in sources():
        assert path.stem not in NAMELESS and path.parent.name not in NAMELESS, path


def test_files_hold_one_thought() -> None:
    for path in sources():
        lines = len(path.read_text().splitlines())
        assert lines <= 500, f"{path.relative_to(ROOT)} has {lines} lines: it wants to be two"


def test_imports_point_downward() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_agent_does_not_carry_the_terminal_view() -> None:
    heavy = ("rich", "bumble", "sqlite_utils", "hl7")
    code = f"import sys, edge_agent.commands.run; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
