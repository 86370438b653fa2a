"""`edge-agent doctor`: looks at everything the configuration needs and says what is wrong and what to do.

It only looks: no port is opened that the agent holds, no output is driven, nothing is sent. Exit code 0 when nothing
has failed, 1 when something has (with --strict also for a warning), 78 when the configuration itself is wrong. With
--nagios it is one line and the codes of a Nagios plugin: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path

from edge_agent import NOTICE, __version__
from edge_agent.commands import doctor_cloud
from edge_agent.commands.doctor_agent import check_agent, check_metrics, check_model
from edge_agent.commands.doctor_beds import check_acceptance
from edge_agent.commands.doctor_certificates import check_certificates
from edge_agent.commands.doctor_devices import check_gpio, check_ports, check_sound
from edge_agent.commands.doctor_host import check_clock, check_disk, check_hardware_watchdog, check_heat_and_power
from edge_agent.commands.doctor_release import check_release
from edge_agent.commands.doctor_service import check_credentials, check_modes, check_units, check_users
from edge_agent.commands.doctor_store import check_buffer, check_key
from edge_agent.commands.finding import Finding, as_service
from edge_agent.config import ConfigError, Loaded, load
from edge_agent.parts import Parts

Check = Callable[[Loaded], Iterator[Finding]]
STATES = ("ok", "warn", "FAIL")  # each worse than the one before
PLUGIN = ("OK", "WARNING", "CRITICAL", "UNKNOWN")  # source: Nagios plugin API, return codes 0 to 3


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `doctor`."""
    doctor = subparsers.add_parser(
        "doctor",
        help="say what is wrong with this gateway and what to do",
        epilog="Exit codes: 0 nothing has failed, 1 something has, 78 the configuration is wrong. "
        "With --nagios: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. As root it sees everything.",
    )
    doctor.add_argument("--config", type=Path, default=Path("/etc/edge-agent/edge-agent.toml"), metavar="FILE")
    doctor.add_argument("--quiet", action="store_true", help="only what is not ok")
    doctor.add_argument("--strict", action="store_true", help="a warning ends with 1, too")
    form = doctor.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object")
    form.add_argument("--nagios", action="store_true", help="one line and the exit codes of a Nagios plugin")
    doctor.set_defaults(func=run_doctor)


def run_doctor(arguments: argparse.Namespace) -> int:
    """Print one line a finding, with a remedy below what is wrong."""
    try:
        loaded = load(arguments.config)
        Parts(loaded)
    except ConfigError as error:
        if not arguments.nagios:
            raise
        print(f"BEDSIDE {PLUGIN[3]} - {' '.join(str(error).split())}")
        return 3
    if not (arguments.json or arguments.nagios):
        print(NOTICE)
    found = []
    for each in examine(loaded):
        found.append(each)
        if not (arguments.json or arguments.nagios or (arguments.quiet and each.state == "ok")):
            print(line(each), flush=True)  # at once: a receiver may take ten seconds to say no
    worst = max((STATES.index(each.state) for each in found), default=0)
    if arguments.json:
        told = [each._asdict() for each in found if not (arguments.quiet and each.state == "ok")]
        gateway = loaded.config.gateway.id
        print(
            json.dumps({"gateway": gateway, "version": __version__, "state": STATES[worst], "findings": told}, indent=1)
        )
    if arguments.nagios:
        print(_plugin_line(found, worst))
        return worst
    return int(worst == 2 or (arguments.strict and worst == 1))


def examine(loaded: Loaded) -> Iterator[Finding]:
    """What every check finds; one that breaks is a finding itself, and the others go on."""
    for check in CHECKS:
        try:
            yield from check(loaded)
        except ConfigError:
            raise
        except PermissionError as error:
            name = check.__name__.removeprefix("check_")
            detail = f"only root may look: {error.filename or error}"
            yield Finding(name, "warn", detail, "sudo edge-agent doctor")
        except Exception as error:  # a look at a strange machine may meet anything
            name = check.__name__.removeprefix("check_")
            detail = f"this could not be looked at: {type(error).__name__}: {error}"
            yield Finding(
                name, "FAIL", detail, "sudo edge-agent doctor; edge-agent support-bundle for whoever mends it"
            )


def line(found: Finding) -> str:
    """A finding as it is printed."""
    text = f"[{found.state:4}] {found.part}: {found.detail}"
    return f"{text}\n       do: {found.remedy}" if found.remedy and found.state != "ok" else text


def _plugin_line(found: list[Finding], worst: int) -> str:
    wrong = sorted((each for each in found if each.state != "ok"), key=lambda each: -STATES.index(each.state))
    first = "; ".join(f"{each.part}: {' '.join(each.detail.split())}" for each in wrong[:3]).replace("|", "/")
    more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
    counts = [sum(each.state == state for each in found) for state in STATES]
    told = f"{first}{more}" if wrong else f"{len(found)} checks"
    return f"BEDSIDE {PLUGIN[worst]} - {told} | ok={counts[0]} warnings={counts[1]} failures={counts[2]}"


def _as_forwarder(check: Check) -> Check:
    """The check with the eyes of cloud-sync: its user, its credentials."""

    @wraps(check)
    def looked(loaded: Loaded) -> Iterator[Finding]:
        with as_service("cloud-sync.service"):
            found = list(check(loaded))
        yield from found

    return looked


CHECKS: tuple[Check, ...] = (
    check_units, check_users, check_modes, check_credentials, check_release,
    check_agent, check_ports, check_key, check_buffer, check_disk, check_gpio, check_sound, check_clock,
    check_heat_and_power, check_hardware_watchdog, check_model, check_metrics, check_certificates,
    *(_as_forwarder(check) for check in doctor_cloud.CHECKS), check_acceptance,
)  # fmt: skip
