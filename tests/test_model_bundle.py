"""Bundles are read only when signature, hashes, description and names are right; every refusal says what to do."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_bundles
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from models_tflite import bundle
from models_tflite.bundle import BundleRefused
from models_tflite.description import Calibration, Goldens, Thresholds
from models_tflite.runner import Runner

FILES = ("model.json", "model.json.sig", "model.tflite")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return model_bundles.write(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(made[0], tmp_path / made[0].name)
    return tmp_path / made[0].name, made[1]


def signed_again(folder: Path, change: Callable[[str], str]) -> None:
    """Change the description and sign what came out, as an issuer with a faulty program would."""
    text = change((folder / "model.json").read_text()).encode()
    (folder / "model.json").write_bytes(text)
    (folder / "model.json.sig").write_bytes(model_bundles.KEY.sign(text))


def edited(path: str, value: Any) -> Callable[[str], str]:
    def change(text: str) -> str:
        content = json.loads(text)
        *parents, last = path.split(".")
        part = content
        for parent in parents:
            part = part[int(parent)] if isinstance(part, list) else part[parent]
        if value is ...:
            del part[last]
        else:
            part[last] = value
        return json.dumps(content)

    return change


def test_a_bundle_comes_back_as_it_was_written(made: tuple[Path, Path]) -> None:
    folder, key = made
    found = bundle.read(folder, [key])
    assert found.model == model_bundles.model()
    assert msgspec.structs.replace(found.description, model=model_bundles.describe(found.model).model) == (
        model_bundles.describe(found.model)
    )
    assert found.identity == f"small-lstm-1.2.3 {found.description.model.sha256[:12]}"
    assert found.signer == bundle.fingerprint(model_bundles.KEY.public_key())
    assert {path.name for path in folder.iterdir()} == set(FILES)


def test_every_single_flipped_byte_is_refused(copied: tuple[Path, Path]) -> None:
    folder, key = copied
    chance = random.Random(1)
    tried = 0
    for name in FILES:
        path = folder / name
        whole = path.read_bytes()
        # every byte of the signature, and of the two larger files enough to hit each of their parts
        places = range(len(whole)) if len(whole) < 100 else sorted(chance.sample(range(len(whole)), 400))
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(BundleRefused):
                bundle.read(folder, [key])
            tried += 1
        path.write_bytes(whole)
    assert tried == 64 + 400 + 400
    bundle.read(folder, [key])


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_lengthened_missing_or_replaced_by_a_link_is_refused(
    copied: tuple[Path, Path], name: str
) -> None:
    folder, key = copied
    path = folder / name
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(BundleRefused):
            bundle.read(folder, [key])
    path.unlink()
    with pytest.raises(BundleRefused, match="cannot be opened") as refused:
        bundle.read(folder, [key])
    assert refused.value.where == path
    elsewhere = folder.parent / "elsewhere"
    elsewhere.write_bytes(whole)
    path.symlink_to(elsewhere)
    with pytest.raises(BundleRefused, match="cannot be opened"):
        bundle.read(folder, [key])
    path.unlink()
    os.mkfifo(path)  # opening a pipe without a writer would wait for ever
    with pytest.raises(BundleRefused, match="not a regular file"):
        bundle.read(folder, [key])


@pytest.mark.parametrize(("name", "limit"), [("model.json", 1 << 20), ("model.tflite", 4 << 20)])
def test_a_huge_file_is_refused_without_being_read_whole(copied: tuple[Path, Path], name: str, limit: int) -> None:
    folder, key = copied
    if name == "model.json":
        signed_again(folder, lambda text: text + " " * limit)
    else:
        os.truncate(folder / name, 1 << 33)  # sparse: reading it whole would not end in time, nor fit
    with pytest.raises(BundleRefused, match=f"longer than {limit} bytes"):
        bundle.read(folder, [key])


def test_another_issuers_signature_is_refused_and_names_the_keys_that_count(copied: tuple[Path, Path]) -> None:
    folder, key = copied
    stranger = Ed25519PrivateKey.generate()
    (folder / "model.json.sig").write_bytes(stranger.sign((folder / "model.json").read_bytes()))
    with pytest.raises(BundleRefused, match="no signature") as refused:
        bundle.read(folder, [key])
    assert bundle.fingerprint(model_bundles.KEY.public_key()) in str(refused.value)
    assert refused.value.remedy
    other = folder.parent / "stranger.pub"
    other.write_bytes(bundle.public_pem(stranger))
    assert bundle.read(folder, [key, other]).signer == bundle.fingerprint(stranger.public_key())


def test_without_any_key_nothing_is_trusted(copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "TRUSTED", copied[0].parent / "none")
    with pytest.raises(BundleRefused, match="no public key is trusted"):
        bundle.read(copied[0])


def test_a_key_file_must_hold_an_ed25519_key(copied: tuple[Path, Path]) -> None:
    folder, _ = copied
    path = folder.parent / "wrong.pub"
    with pytest.raises(BundleRefused, match="cannot be opened") as refused:
        bundle.read(folder, [path])
    assert refused.value.where == path and "key file" in refused.value.remedy
    other = ec.generate_private_key(ec.SECP256R1())
    for content, what in (
        (b"hello", "no public key in PEM"),
        (other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "not Ed25519"),
    ):
        path.write_bytes(content)
        with pytest.raises(BundleRefused, match=what) as refused:
            bundle.read(folder, [path])
        assert "openssl" in refused.value.remedy
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(BundleRefused, match="not Ed25519"):
        bundle.private_key(path)
    path.write_bytes(model_bundles.KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert bundle.private_key(path).public_key() == model_bundles.KEY.public_key()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (edited("goldens", ...), "missing required field `goldens`"),
        (edited("goldens.steps", []), "goldens are missing"),
        (edited("goldens.windows", []), "goldens are missing"),
        (edited("goldens.tolerance", 0.5), "tolerance"),
        (edited("schema", 2), "has schema 2, this version reads 1"),
        (edited("schema", ...), "has schema None"),
        (edited("surprise", 1), "unknown field `surprise`"),
        (edited("features.surprise", 1), r"unknown field `surprise` - at `\$.features`"),
        (edited("features.mean", [1.0]), "features.mean has 1 numbers for 11"),
        (edited("features.std", [0.0] * 11), "features.std is not above zero"),
        (edited("features.names", ["age"] * 11), "names one twice"),
        (edited("window.steps", 10**6), "window.steps"),
        (edited("window.steps", "24"), r"Expected `int`, got `str` - at `\$.window.steps`"),
        (edited("quality.least_vitals", 8), "quality"),
        (edited("state", {}), "state"),
        (edited("state", {"x": 4}), "state"),
        (edited("vitals.0.low", 500), "heart_rate has no range"),
        (edited("thresholds.off", 0.9), "thresholds"),
        (edited("calibration.kind", "magic"), "calibration.kind"),
        (edited("calibration.a", -1), "calibration.a"),
        (edited("runtime", {}), "runtime"),
        (edited("runtime", {"ai-edge-litert": "new"}), "is no version"),
        (edited("model.sha256", "00"), "64 hexadecimal digits"),
        (edited("model.sha256", "00" * 32), "SHA-256"),
        (edited("model.bytes", 1), "described are 1"),
        (edited("name", "../elsewhere"), "is not like"),
        (edited("name", "small-lstm/../x"), "is not like"),
        (edited("version", "1.2"), "is not like"),
        (edited("version", "1.2.4"), "holds small-lstm-1.2.4"),
        (lambda text: text.replace('"schema"', '"schema":1,"schema"', 1), "the key 'schema' stands twice"),
        (lambda text: text.replace('"a":0.9', '"a":NaN'), "NaN is no number"),
        (lambda text: text.replace('"a":0.9', '"a":-Infinity'), "-Infinity is no number"),
        (lambda text: text.replace('"a":0.9', '"a":1e999'), "not finite"),
        (lambda text: text + "{}", "is not strict JSON"),
        (lambda text: "[" * 100_000, "is not strict JSON"),
        (lambda text: "[]", "has schema None"),
        (lambda text: "", "is not strict JSON"),
    ],
)  # fmt: skip
def test_a_description_that_is_signed_but_wrong_is_refused(
    copied: tuple[Path, Path], change: Callable[[str], str], what: str
) -> None:
    folder, key = copied
    signed_again(folder, change)
    with pytest.raises(BundleRefused, match=what) as refused:
        bundle.read(folder, [key])
    assert folder in {refused.value.where, refused.value.where.parent}
    assert refused.value.remedy


def damaged(content: Any, chance: random.Random) -> Any:
    """The description with one value replaced by something else, or one key gone."""
    strange = [None, True, -1, 0, 10**30, 1e308, "", "x" * 300, [], {}, [[]], float("inf")]
    if isinstance(content, dict) and content and chance.random() < 0.9:
        key = chance.choice(sorted(content))
        if chance.random() < 0.1:
            return {name: value for name, value in content.items() if name != key}
        return {**content, key: damaged(content[key], chance)}
    if isinstance(content, list) and content and chance.random() < 0.9:
        at = chance.randrange(len(content))
        return [*content[:at], damaged(content[at], chance), *content[at + 1 :]]
    return chance.choice(strange)


def test_descriptions_that_are_signed_and_damaged_are_refused_or_sound(copied: tuple[Path, Path]) -> None:
    """Whatever an issuer's program may write: no other exception, and what is accepted still computes its goldens."""
    folder, key = copied
    whole = json.loads((folder / "model.json").read_text())
    chance = random.Random(7)
    refused = 0
    for _ in range(300):
        text = json.dumps(damaged(whole, chance))
        signed_again(folder, lambda _, text=text: text)
        try:
            Runner(bundle.read(folder, [key]))
        except BundleRefused:
            refused += 1
    assert 150 < refused < 300  # the rest changed a word of the training, a threshold, a limit that no golden meets


def test_bytes_that_are_no_text_are_refused(copied: tuple[Path, Path]) -> None:
    folder, key = copied
    (folder / "model.json").write_bytes(b"\xff\xfe{}")
    (folder / "model.json.sig").write_bytes(model_bundles.KEY.sign(b"\xff\xfe{}"))
    with pytest.raises(BundleRefused, match="not strict JSON"):
        bundle.read(folder, [key])


def test_a_folder_that_is_none_or_a_link_is_refused(copied: tuple[Path, Path]) -> None:
    folder, key = copied
    (folder.parent / "link").symlink_to(folder)
    for place in (folder.parent / "absent", folder / "model.json", folder.parent / "link"):
        with pytest.raises(BundleRefused, match="not a folder"):
            bundle.read(place, [key])


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"name": "../../etc"}, "is not like"),
        ({"thresholds": Thresholds(on=0.1, off=0.2, cool_down_s=0.0)}, "thresholds"),
        ({"thresholds": Thresholds(on=float("nan"), off=0.2, cool_down_s=0.0)}, "NaN"),
        ({"calibration": Calibration(kind="points", x=(0.0, 0.5, 0.5), y=(0.0, 0.1, 0.2))}, "x must rise"),
        ({"calibration": Calibration(kind="points", x=(0.0, 1.0), y=(0.0, 1.2))}, "not within 0 to 1"),
        ({"goldens": Goldens(tolerance=1e-4, steps=(), windows=())}, "goldens are missing"),
    ],
)
def test_the_writer_refuses_what_the_reader_would(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    about = msgspec.structs.replace(model_bundles.describe(model_bundles.model()), **changes)
    with pytest.raises(BundleRefused, match=what):
        bundle.write(tmp_path / "out", model_bundles.model(), about, model_bundles.KEY)
    assert not (tmp_path / "out").exists()


def test_the_writer_refuses_a_model_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match="the limit is"):
        about = model_bundles.describe(model_bundles.model())
        bundle.write(tmp_path, bytes(bundle.MODEL_LIMIT + 1), about, model_bundles.KEY)


def test_openssl_verifies_the_signature_too(made: tuple[Path, Path]) -> None:
    """So that IT need not trust this program's own word; the commands stand in docs/model.md."""
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder, key = made
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", folder / "model.json"]
    done = subprocess.run(
        [*command, "-sigfile", folder / "model.json.sig"], capture_output=True, text=True, check=False
    )
    assert "Signature Verified Successfully" in done.stdout, done.stderr
