"""Bill of materials of a gateway, CycloneDX 1.6: `python -m supply.sbom [--out FILE]`, in the locked environment.

cyclonedx-py describes what is installed beside the running Python. Of that this keeps what requirements.lock names, and
adds what cyclonedx-py cannot know: the hashes of the lock, libraries inside the wheels, the model bundle, and the
packages of the operating system. The result is validated strictly against the schema. It is the same every time, for
one tree and one Python: its serial number is made from its content, and it has a time only with SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from supply.licences import declared, parts
from supply.lock import ROOT, LockError, Pin, canonical, pins, version

SPEC = "1.6"
ROOT_REF = "bedside-edge"
# What the role installs on Debian 12, and systemd, which is there; versions are those of the gateway and its updates.
DEBIAN = {
    "python3": "the interpreter", "python3-venv": "makes the release's environment",
    "openssl": "checks a release's signature",
    "systemd": "starts, restrains and watches the two services", "bluez": "Bluetooth Low Energy",
    "libasound2": "sound",
}  # fmt: skip

Json = dict[str, Any]


def scanned(root: Path) -> Json:
    """What cyclonedx-py tells of the running environment."""
    program = Path(sys.executable).parent / "cyclonedx-py"
    if not program.exists():
        raise LockError(f"{program} is missing: run make sbom, which installs it")
    done = subprocess.run(
        [program, "environment", "--pyproject", root / "pyproject.toml", "--mc-type", "application",
         "--spec-version", SPEC, "--output-reproducible", "--output-format", "JSON", sys.executable],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise LockError(f"cyclonedx-py failed:\n{done.stderr[-2000:]}")
    found: Json = json.loads(done.stdout)
    return found


def licence(expression: str) -> list[Json]:
    """CycloneDX's form of an SPDX expression."""
    return [{"expression": expression, "acknowledgement": "declared"}]


def library(found: Json, pin: Pin, said: Json) -> Json:
    """The component of one package: as scanned, with the lock's hashes, one licence, and where it runs."""
    expression, _ = declared(pin.name, said)
    component: Json = {
        "type": "library", "bom-ref": pin.name, "name": found["name"], "version": pin.version,
        "purl": f"pkg:pypi/{pin.name}@{pin.version}",
        "scope": "excluded" if said.get("left_out") else "required", "licenses": licence(expression),
    }  # fmt: skip
    if "description" in found:
        component["description"] = found["description"]
    references = [each for each in found.get("externalReferences", []) if each["type"] != "other"]
    component["externalReferences"] = [
        *references,
        *({"type": "distribution", "url": component["purl"], "comment": "one of the files of this version",
           "hashes": [{"alg": "SHA-256", "content": each}]} for each in pin.hashes),
    ]  # fmt: skip
    component["properties"] = [{"name": "bedside-edge:runs-in", "value": said["where"]}]
    inside = [_carried(pin, each) for each in said.get("inside", [])]
    if inside:
        component["components"] = inside
    return component


def _carried(pin: Pin, each: Json) -> Json:
    component: Json = {
        "type": "library", "bom-ref": f"{pin.name}/{each['name']}", "name": each["name"],
        "licenses": licence(each["licence"]),
    }  # fmt: skip
    if "version" in each:
        component["version"] = found = _version_inside(pin, each)
        component["purl"] = f"pkg:generic/{each['name']}@{found}"
    return component


def _version_inside(pin: Pin, each: Json) -> str:
    pattern = re.compile(each["version"].encode())
    for file in importlib.metadata.files(pin.name) or []:
        if ".so" in file.name and (match := pattern.search(Path(str(file.locate())).read_bytes())):
            return match[1].decode()
    raise LockError(
        f"{pin.name} {pin.version}: no binary of it tells the version of {each['name']} any more: "
        "correct supply/parts.toml"
    )


def bundles(root: Path) -> Iterator[Json]:
    """The models that come with the package."""
    for folder in sorted((root / "models_tflite" / "bundles").iterdir()):
        name, _, number = folder.name.rpartition("-")
        model = folder / "model.tflite"
        if model.exists():
            digest = hashlib.sha256(model.read_bytes()).hexdigest()
            yield {
                "type": "machine-learning-model", "bom-ref": folder.name, "name": name, "version": number,
                "description": "advisory risk model; a signed bundle", "licenses": licence("Apache-2.0"),
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }  # fmt: skip


def system() -> list[Json]:
    """The packages of the operating system, without versions."""
    return [
        {"type": "library", "bom-ref": f"deb/{name}", "name": name, "description": what, "scope": "required",
         "purl": f"pkg:deb/debian/{name}",
         "properties": [{"name": "bedside-edge:provided-by", "value": "the operating system, with its updates"}]}
        for name, what in sorted(DEBIAN.items())
    ]  # fmt: skip


def made(root: Path = ROOT) -> Json:
    """The whole bill. Raises: LockError when the environment is not what the lock says."""
    found, said, locked = scanned(root), parts(root), {pin.name: pin for pin in pins(root)}
    named = {canonical(each["name"]): each for each in found["components"]}
    for pin in locked.values():
        has = named.get(pin.name, {}).get("version", "not installed")
        if has != pin.version:
            raise LockError(f"{pin.name} is locked at {pin.version}, here it is {has}: run make sbom")
        if pin.name not in said:
            raise LockError(f"{pin.name} is not in supply/parts.toml: say there what it is for")
    names = {each["bom-ref"]: canonical(each["name"]) for each in found["components"]}
    own = found["metadata"]["component"]
    edges = {
        names.get(each["ref"], ROOT_REF): sorted(
            names[other] for other in each.get("dependsOn", []) if names.get(other) in locked
        )
        for each in found["dependencies"]
    }
    wanted = {pin.name for pin in locked.values() if ROOT_REF in pin.via}
    edges[ROOT_REF] = sorted(wanted)
    models, debian = list(bundles(root)), system()
    others = [each["bom-ref"] for each in (*models, *debian)]
    graph = [{"ref": ROOT_REF, "dependsOn": [*edges[ROOT_REF], *others]}]
    graph += [{"ref": name, "dependsOn": edges.get(name, [])} for name in sorted(locked)]
    bill: Json = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
        "bomFormat": "CycloneDX", "specVersion": SPEC, "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": ROOT_REF, "name": "bedside-edge", "version": version(root),
                "description": own["description"], "licenses": licence("Apache-2.0"),
                "purl": f"pkg:pypi/bedside-edge@{version(root)}",
            },
            "lifecycles": [{"phase": "build"}],
            "properties": [
                {"name": "bedside-edge:python", "value": ".".join(platform.python_version_tuple()[:2])},
                {"name": "bedside-edge:lock-sha256",
                 "value": hashlib.sha256((root / "requirements.lock").read_bytes()).hexdigest()},
            ],
            "tools": {"components": [{"type": "application", "name": "cyclonedx-bom",
                                      "version": importlib.metadata.version("cyclonedx-bom")}]},
        },
        "components": [*(library(named[name], locked[name], said[name]) for name in sorted(locked)), *models, *debian],
        "dependencies": graph,
    }  # fmt: skip
    content = json.dumps(bill, sort_keys=True).encode()
    bill["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(content).hexdigest())}"
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        moment = datetime.fromtimestamp(int(epoch), UTC)
        bill["metadata"]["timestamp"] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return bill


def wrong(text: str) -> str:
    """What CycloneDX's own library has against a bill, empty when it is valid."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.from_version(SPEC)).validate_str(text)
    return "" if error is None else str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when a valid bill was written, else 1."""
    parser = argparse.ArgumentParser(prog="python -m supply.sbom", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: dist/bedside-edge-VERSION.cdx.json")
    options = parser.parse_args(arguments)
    try:
        bill = made()
        text = json.dumps(bill, indent=2) + "\n"
        if problem := wrong(text):
            raise LockError(f"the bill is not valid CycloneDX {SPEC}: {problem}")
    except LockError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    target = options.out or ROOT / "dist" / f"bedside-edge-{version()}.cdx.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text)
    partial.rename(target)
    sys.stdout.write(f"{target}: {len(bill['components'])} components, valid CycloneDX {SPEC}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
