"""`edge-agent detect` and `edge-agent provision`: what the biomedical engineer needs at a new bed; docs/biomed.md."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edge_agent import NOTICE
from edge_agent.commands import doctor
from edge_agent.commands.doctor_beds import FOLDER, check_acceptance
from edge_agent.config import Loaded, load
from edge_agent.control import ControlClient, Refused
from edge_agent.links import LinkError
from edge_agent.links.address import Address, parse
from edge_agent.provisioning import record as records
from edge_agent.provisioning import signing
from edge_agent.provisioning.answers import Answers, read_answers
from edge_agent.provisioning.page import page
from edge_agent.provisioning.proposal import DATA_DIR, publish
from edge_agent.provisioning.session import Session, Wanted, clock_quality, now, undisturbed
from edge_agent.provisioning.steps import NAMES, STEPS, verdict
from edge_agent.provisioning.talk import Scripted, Talk, Terminal

_CONFIG = Path("/etc/edge-agent/edge-agent.toml")
_NOBODY = (
    "edge-agent provision: there is no terminal to ask at, and no file of answers\n"
    "  run it in a terminal (ssh -t), or with --answers FILE; docs/biomed.md lists the answers"
)


class _Stop(Exception):
    """Provisioning cannot begin; `str` says why and what to do."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    _add_provision(subparsers)
    _add_detect(subparsers)


def _add_provision(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = subparsers.add_parser("provision", help="from a bare device to an accepted bed, with a signed record")
    run.add_argument("--config", type=Path, default=_CONFIG, metavar="FILE")
    run.add_argument("--bed", metavar="BED", help="its id in the configuration")
    run.add_argument("--answers", type=Path, metavar="FILE", help="TOML or JSON: ask nobody")
    run.add_argument("--port", action="append", default=[], metavar="DEVICE", help="where the monitor is")
    run.add_argument("--only", metavar="STEPS", help="these steps, with commas between; nothing is accepted")
    run.add_argument("--steps", action="store_true", help="list the steps and end")
    run.add_argument("--write", type=Path, metavar="FILE", help="where a configuration goes that lacked something")
    run.add_argument("--replace", action="store_true", help="also over an existing FILE")
    run.add_argument("--record", type=Path, metavar="FILE.json", help="the record, by default the bed's in data_dir")
    run.add_argument("--record-values", action="store_true", help="values of the simulator too, not deviations alone")
    run.add_argument("--acceptance-key", metavar="SPEC", help="file:PATH or credential:NAME; in data_dir, if not told")
    run.add_argument("--listen-seconds", type=_seconds, default=10.0, metavar="S", help="at most, for the protocol")
    run.add_argument("--press-seconds", type=_seconds, default=30.0, metavar="S", help="for the button")
    run.add_argument("--scan-seconds", type=_seconds, default=8.0, metavar="S", help="for Bluetooth")
    run.add_argument("--adapter", default="", metavar="NAME", help="of Bluetooth, for example hci1")
    run.add_argument("--hci", default="", metavar="tcp-client:HOST:PORT", help="a controller behind a socket instead")
    run.set_defaults(func=run_provision)
    commands = run.add_subparsers(metavar="COMMAND", required=False)
    verify = commands.add_parser("verify", help="whether a record is what was signed")
    verify.add_argument("record", type=Path, metavar="RECORD")
    verify.add_argument("--key", type=Path, metavar="PUB", help="and by this key: the gateway's acceptance.pub")
    verify.add_argument("--against", type=Path, metavar="FILE", help="and whether this is the configuration accepted")
    verify.add_argument("--page", type=Path, metavar="FILE.html", help="write its page anew")
    verify.set_defaults(func=run_verify)


def run_provision(arguments: argparse.Namespace) -> int:
    """Go through the steps; 0 when the bed is accepted, or all steps of --only passed, else 1."""
    if arguments.steps:
        for step in STEPS:
            print(f"{step.name:14} {step.title}")
        return 0
    steps = _steps(arguments.only)
    if steps is None:
        print(f"edge-agent provision: --only {arguments.only}: known steps: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    partial = arguments.only is not None
    answers = read_answers(arguments.answers, steps) if arguments.answers is not None else None
    if answers is None and not sys.stdin.isatty() and not set(steps) <= {"ports"}:
        print(_NOBODY, file=sys.stderr)
        return 2
    talk: Talk = Terminal(sys.stdin, sys.stdout) if answers is None else Scripted(answers, sys.stdout)
    try:
        with undisturbed():
            return _provision(arguments, steps, talk, answers, partial=partial)
    except (_Stop, signing.SigningError) as error:
        print(f"edge-agent provision: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        print("edge-agent provision: nobody reads what is said; nothing was accepted", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: lights and sound are off, nothing was written.", file=sys.stderr)
        return 130


def _steps(only: str | None) -> tuple[str, ...] | None:
    """The steps that are wanted, in their order; None when one of them does not exist."""
    if only is None:
        return NAMES
    names = {name.strip() for name in only.split(",")}
    return tuple(name for name in NAMES if name in names) if names <= set(NAMES) else None


def _provision(
    arguments: argparse.Namespace, steps: tuple[str, ...], talk: Talk, answers: Answers | None, *, partial: bool
) -> int:
    print(NOTICE)
    present = load(arguments.config) if arguments.config.exists() else None
    looks_only = set(steps) <= {"ports", "protocol", "bluetooth"}
    bed = _bed(arguments, talk, answers, present) if not looks_only else arguments.bed or ""
    keeps = not partial or arguments.record is not None
    place, signer = None, None
    if keeps:
        place = _place(arguments, present, bed)
        signer = signing.open_signer(_key_spec(arguments, present))
    if arguments.write is not None and arguments.write.exists() and not arguments.replace:
        raise _Stop(f"{arguments.write} exists already\n  give another FILE, or add --replace")
    if not looks_only:
        _nobody_lies_there(talk, present, bed)
    engineer = {}
    if keeps:
        engineer = {"name": talk.text("Your name", "engineer", "name"), "id": talk.text("Your id", "engineer", "id")}
    wanted = Wanted(
        arguments.config, bed, steps, arguments.port, arguments.write, arguments.listen_seconds,
        press_s=arguments.press_seconds, scan_s=arguments.scan_seconds, adapter=arguments.adapter, hci=arguments.hci,
        with_values=arguments.record_values,
    )  # fmt: skip
    checks = [check for check in doctor.CHECKS if check is not check_acceptance]  # which this run is about
    session = Session(wanted, talk, checks)
    started = now()
    try:
        session.run()
        print()
        if arguments.write is not None and session.proposal is not None and session.devices():
            with _telling(arguments.write):
                session.proposal.publish(arguments.write, replace=arguments.replace)
            print(f"configuration: {arguments.write}")
    finally:
        session.close()
    if place is None:
        ok = all(each.outcome != "failed" for each in session.results if each.step in steps)
        print("partial run: " + ("all of these steps passed" if ok else "not all of these steps passed"))
        return 0 if ok else 1
    signer = signer or signing.make_signer(Path(_key_spec(arguments, present).partition(":")[2]))
    return _write_record(arguments, session, place, signer, engineer, started)


def _write_record(
    arguments: argparse.Namespace, session: Session, place: Path, signer: signing.Signer, engineer: dict[str, str],
    started: str,
) -> int:  # fmt: skip
    loaded, bed = session.loaded, session.wanted.bed
    said = records.build(
        gateway=loaded.config.gateway.id if loaded is not None else "",
        bed=bed, engineer=engineer, results=session.results, devices=session.devices(), clock=clock_quality(),
        configuration={
            "file": str((arguments.write or arguments.config).absolute()),
            "sha256": session.proposal.sha256 if session.proposal is not None else "",
        },
        started=started, ended=now(), with_values=arguments.record_values,
    )  # fmt: skip
    text = records.signed(said, signer)
    digest = hashlib.sha256(text.encode()).hexdigest()
    sheet = place.with_suffix(".html")
    with _telling(place):
        _make_way(place)
    for path, content in ((place, text), (sheet, page(said, signer.fingerprint, digest))):
        with _telling(path):
            publish(content, path, replace=False, mode=0o644)  # it holds no secret, and doctor reads it as anybody
    accepted, reason = verdict(session.results)
    print(f"record: {place}\npage to print and sign: {sheet}\nacceptance key: {signer.fingerprint}")
    if accepted and (session.agent() is None or arguments.write is not None):
        print("Now put this configuration in place and start the agent; edge-agent doctor says whether it is the one.")
    print(f"\nBed {bed}: {'ACCEPTED' if accepted else 'NOT ACCEPTED'}: {reason}")
    return 0 if accepted else 1


def _bed(arguments: argparse.Namespace, talk: Talk, answers: Answers | None, present: Loaded | None) -> str:
    said = answers.get("bed") if answers is not None else None
    if arguments.bed and said and arguments.bed != said:
        raise _Stop(f"--bed {arguments.bed}, but {arguments.answers} is for bed {said}\n  take the file of this bed")
    known = [each.id for each in present.config.bed] if present is not None else []
    if not (arguments.bed or said) and known:
        print(f"Beds of this gateway: {', '.join(known)}")
    return str(arguments.bed or said or talk.text("Which bed", "bed"))


def _place(arguments: argparse.Namespace, present: Loaded | None, bed: str) -> Path:
    """Where the record goes. One that was named may not be there already; the bed's own one makes way for the new."""
    if arguments.record is None:
        place = _data_dir(present) / FOLDER / f"{bed.replace('/', '-')}.json"
    else:
        place = arguments.record
        if place.suffix != ".json":
            raise _Stop(f"--record {place}: the record is a .json file\n  give a name that ends in .json")
        for path in (place, place.with_suffix(".html")):
            if path.exists():
                raise _Stop(f"{path} exists already: a record is never overwritten\n  give another name with --record")
    folder = next(each for each in place.absolute().parents if each.exists())
    if not os.access(folder, os.W_OK):
        raise _Stop(f"{folder}: nothing can be written there\n  run as root, or give a place for the record: --record")
    return place


def _make_way(place: Path) -> None:
    """Keep the bed's present record and its page under names with their time."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for path in (place, place.with_suffix(".html")):
        if path.exists():
            stamp = datetime.fromtimestamp(path.stat().st_mtime, UTC).strftime("%Y%m%dT%H%M%SZ")
            path.rename(path.with_name(f"{path.stem}-{stamp}{path.suffix}"))


def _data_dir(present: Loaded | None) -> Path:
    return present.resolve(present.config.gateway.data_dir) if present is not None else Path(DATA_DIR)


def _key_spec(arguments: argparse.Namespace, present: Loaded | None) -> str:
    return arguments.acceptance_key or f"file:{_data_dir(present) / signing.KEY}"


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Say which file could not be written, and why. Raises: _Stop."""
    try:
        yield
    except FileExistsError as error:
        raise _Stop(f"{path} exists already\n  it was not overwritten; give another name") from error
    except OSError as error:
        raise _Stop(f"{path} cannot be written: {error.strerror}\n  check the folder and the disk") from error


def _nobody_lies_there(talk: Talk, present: Loaded | None, bed: str) -> None:
    """Ask before anything is lit or sounded. Raises: _Stop when a patient may be there."""
    if present is not None:
        try:
            with ControlClient(present.resolve(present.config.control.socket)) as client:
                beds = client.call("status")["status"]["beds"]
            if any(each["id"] == bed and each["patient"] for each in beds):
                talk.say(f"The running agent knows a patient at bed {bed}: is it the simulator's?")
        except (ConnectionError, Refused, OSError):
            pass  # no agent, no patient that it would know
    if not talk.yes("Is the monitor connected to a simulator, and is no patient at this bed?", "simulator"):
        raise _Stop(
            "a bed is provisioned with a simulator only: lights and sounds are tried, and values are looked at\n"
            "  connect a simulator, and come back when no patient is at the bed"
        )


def run_verify(arguments: argparse.Namespace) -> int:
    """0 when the record is what was signed and says that the bed was accepted, else 1."""
    try:
        key = signing.public_key(arguments.key) if arguments.key is not None else None
        told = records.verify(arguments.record, key)
    except (signing.SigningError, records.RecordError) as error:
        print(f"edge-agent provision verify: {arguments.record}: {error}", file=sys.stderr)
        return 1
    record = told.record
    accepted = record["verdict"]["accepted"] is True
    print(f"{arguments.record}: as it was signed by {told.fingerprint}")
    if key is None:
        print("  with --key PUB it is also checked that this is the gateway's key; anybody can sign with another")
    print(f"gateway {record['gateway']}, bed {record['bed']}, {record['ended']}, engineer {record['engineer']['id']}")
    print(f"{'ACCEPTED' if accepted else 'NOT ACCEPTED'}: {record['verdict']['reason']}")
    same = True
    if arguments.against is not None:
        try:
            found = hashlib.sha256(arguments.against.read_bytes()).hexdigest()
        except OSError as error:
            print(f"edge-agent provision verify: {arguments.against}: {error.strerror}", file=sys.stderr)
            return 1
        same = found == record["configuration"]["sha256"]
        print(f"{arguments.against}: {'the configuration accepted' if same else 'CHANGED since: accept the bed anew'}")
    if arguments.page is not None:
        try:
            with _telling(arguments.page):
                publish(page(record, told.fingerprint, told.sha256), arguments.page, replace=False)
        except _Stop as error:
            print(f"edge-agent provision verify: {error}", file=sys.stderr)
            return 1
    return 0 if accepted and same else 1


def _add_detect(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from edge_agent.provisioning.detect import BUDGET_S

    found = subparsers.add_parser("detect", help="which driver and settings a serial line has, by listening only")
    found.add_argument("link", metavar="LINK", help="serial:///dev/..., socket://HOST:PORT, or the path of a port")
    found.add_argument("--seconds", type=_seconds, default=BUDGET_S, metavar="S", help="at most, by default 10")
    found.add_argument("--json", action="store_true", help="as one JSON object")
    found.set_defaults(func=run_detect)


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 600:
        raise argparse.ArgumentTypeError("a number from 1 to 600")
    return value


def run_detect(arguments: argparse.Namespace) -> int:
    """Listen and say what was found, with the lines for the configuration; 1 when nobody can be named."""
    from edge_agent.provisioning import detect
    from edge_agent.provisioning.listener import ListenError, open_listener

    try:
        address = parse(arguments.link if "://" in arguments.link else f"serial://{arguments.link}")
        listener = open_listener(address)
    except (LinkError, ListenError) as error:
        print(f"edge-agent detect: {error}", file=sys.stderr)
        return 1
    try:
        search = detect.Search(
            listener,
            detect.serial_drivers(),
            now_ns=time.monotonic_ns,
            budget_s=arguments.seconds,
            only=detect.told_line(address),
        )
        found = search.run()
    except ListenError as error:
        print(f"edge-agent detect: {error}", file=sys.stderr)
        return 1
    finally:
        listener.close()
    if arguments.json:
        print(json.dumps(_as_json(address, found)))
    else:
        _tell(address, found)
    return 0 if found.state == "found" else 1


def _as_json(address: Address, found: Any) -> dict[str, Any]:
    from edge_agent.provisioning import detect

    named = found.state == "found"
    return {
        "state": found.state,
        "driver": found.drivers[0] if named else None,
        "link": detect.source_link(address, found.line) if named else None,
        "drivers": list(found.drivers),
        "reason": found.reason,
        "seconds": round(found.seconds, 1),
        "tried": [each.said() for each in found.tried],
    }


def _tell(address: Address, found: Any) -> None:
    from edge_agent.provisioning import detect

    for each in found.tried:
        print(f"  {each.said()}")
    print(found.reason)
    if found.state == "found":
        link = detect.source_link(address, found.line)
        print(f'\n[[source]]\ndriver = "{found.drivers[0]}"\nlink = "{link}"\nbed = "..."')
