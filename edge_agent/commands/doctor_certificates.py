"""What `edge-agent doctor` looks at of client certificates: dates, key, authority, modes."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent import certificates
from edge_agent.certificates import Certificate, Named, Unreadable
from edge_agent.commands.finding import FORWARDER, SYSTEM, Finding, installed, user
from edge_agent.config import Loaded

SOON_DAYS = 30  # long enough for a hospital's authority to answer
RENEW = (
    "ansible-playbook playbooks/site.yml --limit GATEWAY has the site's authority make a new one: docs/it.md, section 3"
)


def check_certificates(loaded: Loaded, root: Path = SYSTEM) -> Iterator[Finding]:
    """Every client certificate that a receiver is shown."""
    for each in certificates.named(loaded):
        try:
            chain = certificates.read(each.certificate)
        except Unreadable as error:
            yield Finding("certificate", "FAIL", f"cloud.{each.receiver}.certificate: {error}", RENEW)
            continue
        wrong = [*_dates(each, chain[0]), *_key(each, chain[0], root), *_authority(each, chain)]
        yield from wrong
        if not wrong:
            days, name = certificates.days_left(chain[0]), chain[0].subject
            yield Finding("certificate", "ok", f"{each.receiver}: {name}, {days:.0f} days left, fits key and authority")


def _dates(each: Named, own: Certificate) -> Iterator[Finding]:
    left, name = certificates.days_left(own), f"{each.receiver}: {each.certificate}"
    if left <= 0:
        yield Finding("certificate", "FAIL", f"{name} has ended on {certificates.day(own.not_after)}", RENEW)
    elif left < SOON_DAYS:
        detail = f"{name} ends on {certificates.day(own.not_after)}, in {left:.0f} days"
        yield Finding("certificate", "warn", detail, RENEW)
    if own.not_before > time.time():
        remedy = "is this machine's clock right? timedatectl"
        yield Finding("certificate", "FAIL", f"{name} begins on {certificates.day(own.not_before)}", remedy)


def _key(each: Named, own: Certificate, root: Path) -> Iterator[Finding]:
    name = f"{each.receiver}: {each.private_key}"
    try:
        found = each.private_key.stat()
    except OSError as error:
        yield Finding("certificate", "FAIL", f"{name}: {error.strerror}", f"a certificate without its key: {RENEW}")
        return
    mode, service = stat.S_IMODE(found.st_mode), user(FORWARDER, root) if installed(root) else None
    if mode & 0o077:
        renew = "ansible-playbook playbooks/rotate-keys.yml --limit GATEWAY"
        remedy = f"chmod 0600 {each.private_key}; others may have read it: {renew} makes a new one"
        yield Finding("certificate", "FAIL", f"{name} has mode {mode:04o}", remedy)
    if service is not None and not service.may(found, 4):
        remedy = f"chown {FORWARDER} {each.private_key}; chmod 0600 {each.private_key}"
        yield Finding("certificate", "FAIL", f"{name} cannot be read by {FORWARDER}", remedy)
    try:
        if not certificates.matches(own, each.private_key):
            yield Finding("certificate", "FAIL", f"{name} is not the key of {each.certificate}", RENEW)
    except Unreadable as error:
        yield Finding("certificate", "FAIL", f"{each.receiver}: {error}", RENEW)
    except PermissionError:
        remedy = "sudo edge-agent doctor"
        yield Finding("certificate", "warn", f"{name} can only be read by the service: not compared", remedy)


def _authority(each: Named, chain: list[Certificate]) -> Iterator[Finding]:
    if each.ca is None:
        return
    try:
        authorities = certificates.read(each.ca)
    except Unreadable as error:
        yield Finding("certificate", "FAIL", f"cloud.{each.receiver}.ca: {error}", "put the site's authority there")
        return
    if not certificates.issued_by(chain, authorities):
        detail = f"{each.receiver}: {each.certificate} was not issued by an authority in {each.ca}"
        remedy = f"it names {chain[0].issuer}: the broker refuses it unless it trusts that one too; else {RENEW}"
        yield Finding("certificate", "warn", detail, remedy)
    for authority in authorities:
        left = certificates.days_left(authority)
        if left < SOON_DAYS:
            state = "FAIL" if left <= 0 else "warn"
            detail = (
                f"{each.receiver}: the authority {authority.subject} ends on {certificates.day(authority.not_after)}"
            )
            yield Finding("certificate", state, detail, f"put the site's new authority into {each.ca}")
