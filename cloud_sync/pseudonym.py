"""Patients' identifiers on their way out of the gateway: a keyed pseudonym, nothing, or, where that is wanted, as sent.

Theory of operation. A pseudonym is the key's id, a colon, and the first 128 bits of HMAC-SHA256 over the identifier,
keyed with a secret of the site: the same patient has the same one on every gateway of the site, after every restart,
and nobody without the key can tell whose it is or try identifiers until one fits. The file of keys may hold several;
the last is used, and the id in front says which key made a pseudonym, so that both sides of a rotation can be told
apart and joined by whoever holds the file (`every`). Without a key identifiers are left out: a key that could be
guessed would be worse than none.

`entry` is the one gate: every encoder sends what comes out of it, never the sealed entry itself. Beside the fields
that hold an identifier it goes through the free texts, because a device may repeat the identifier in an alarm's text
or name, and replaces what it knows: the identifiers of all records of the block, which `learn` takes in first, and
those that were lately seen. `leaving` does both for a whole block.

Source: RFC 2104, RFC 4231 (HMAC-SHA256); RFC 4648 section 6 (base32).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import structs

from edge_agent import config, records

KEY_BYTES = 32  # a site key; what is shorter is refused, a word or a number is no secret
_DOMAIN = b"bedside-edge patient 1\x00"  # the same key used elsewhere gives other values
_BITS = 128  # two patients of a lifetime do not meet, and it stays short enough for an HL7 identifier
_KNOWN_MAX = 512  # identifiers that are remembered and searched for in texts; beyond it the memory begins anew
_TEXTS_MAX = 4096  # texts that are remembered as searched
_SHORTEST = 4  # letters of an identifier that is searched for in texts: a shorter one would be found in any number
LEFT_OUT = "[patient]"  # in place of an identifier within a text, when there is no pseudonym

Mode = Literal["pseudonym", "clear", "none"]

_KEY_LINE = re.compile(r"([a-z0-9]{1,16})\s+([0-9A-Fa-f]+)")
_ESCAPED = {"\\F\\": "|", "\\S\\": "^", "\\T\\": "&", "\\R\\": "~", "\\E\\": "\\"}

# Fields that hold words a device, a person or a network has chosen. Those from closed lists, numbers and times do not.
_TEXTS: dict[type, tuple[str, ...]] = {
    records.Observation: ("location", "channel"),
    records.Waveform: ("location", "channel"),
    records.DeviceStatus: ("detail", "location"),
    records.DeviceAlarm: (
        "phase", "text", "event", "state", "inactivation", "type", "level", "alert_id", "location", "source",
    ),
    records.PatientEvent: ("location", "prior_location"),
    records.Reject: ("reason", "location"),
    records.AlarmEvent: ("alert_id", "condition", "text", "operator", "source", "detail"),
    records.Score: ("detail",),
    records.Gap: (),
}  # fmt: skip
_IDENTIFIERS: dict[type, tuple[str, ...]] = {
    records.Observation: ("subject",),
    records.Waveform: ("subject",),
    records.DeviceAlarm: ("subject",),
    records.PatientEvent: ("patient_id", "prior_patient_id"),
}


class KeyFault(Exception):
    """A file of site keys that cannot be used; `str` says where and what to do, and holds nothing of the key."""


class SiteKey(NamedTuple):
    """A secret of the site and the short name that its pseudonyms begin with."""

    name: str
    secret: bytes

    def pseudonym(self, identifier: str) -> str:
        """`<name>:<26 letters and digits>`; empty for no identifier."""
        text = unicodedata.normalize("NFC", identifier).strip()
        if not text:
            return ""
        digest = hmac.digest(self.secret, _DOMAIN + text.encode("utf-8", "surrogatepass"), hashlib.sha256)
        return f"{self.name}:{base64.b32encode(digest[: _BITS // 8]).decode('ascii').rstrip('=').lower()}"


def site_keys(text: str) -> tuple[SiteKey, ...]:
    """The keys of a file, oldest first: a line for each, its name and at least 64 hexadecimal digits.

    Raises: KeyFault when there is none, or a line is no key.
    """
    keys: dict[str, SiteKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _KEY_LINE.fullmatch(line.strip())
        if found is None or len(found[2]) < 2 * KEY_BYTES or len(found[2]) % 2:
            raise KeyFault(
                f"line {number} is no site key: write a name of lower-case letters and digits, a space, "
                f"and {2 * KEY_BYTES} hexadecimal digits or more"
            )
        secret = bytes.fromhex(found[2])
        if len(set(secret)) < 8:  # 32 random bytes with so few different ones do not happen
            raise KeyFault(
                f"line {number}: the key {found[1]!r} is not random; `openssl rand -hex 32` gives one that is"
            )
        if found[1] in keys:
            raise KeyFault(f"line {number}: the name {found[1]!r} stands twice; a name belongs to one key for ever")
        keys[found[1]] = SiteKey(found[1], secret)
    if not keys:
        raise KeyFault("no site key in it: write a line such as `p1 ` and the output of `openssl rand -hex 32`")
    return tuple(keys.values())


class Identities:
    """What becomes of patients' identifiers. Used by one thread each."""

    def __init__(self, mode: Mode = "none", keys: tuple[SiteKey, ...] = ()) -> None:
        """The last of `keys` makes the pseudonyms; without any, `pseudonym` is `none`."""
        self._keys = keys
        self._clear = mode == "clear"
        self._key = keys[-1] if keys and mode == "pseudonym" else None
        if self._clear:
            self.told = "in the clear"
        elif self._key is not None:
            self.told = f"pseudonyms under key {self._key.name}"
        elif mode == "none":
            self.told = "left out"
        else:
            self.told = "left out: [privacy] key is not set"
        self._known: dict[str, str] = {"": ""}
        self._forms: list[tuple[re.Pattern[str], str]] = []
        self._searched: dict[str, str] = {}

    def name(self, identifier: str) -> str:
        """What stands for an identifier outside; empty when it is left out."""
        if self._clear:
            return identifier
        known = self._known.get(identifier)
        return self._learn(identifier) if known is None else known

    def every(self, identifier: str) -> dict[str, str]:
        """The pseudonym of an identifier under each key, by the key's name: what joins both sides of a rotation."""
        return {key.name: key.pseudonym(identifier) for key in self._keys}

    def leaving(self, entries: Sequence[records.Entry]) -> list[records.Entry]:
        """The entries of a block as they may leave the gateway."""
        self.learn(entries)
        return [self.entry(entry) for entry in entries]

    def learn(self, entries: Sequence[records.Entry]) -> None:
        """Takes in whom a block is about, before the first of its entries leaves.

        All at once, because an alarm stands before the device's message that caused it.
        """
        if self._clear:
            return
        seen = {entry.patient for entry in entries}
        for entry in entries:
            record = entry.record
            if type(record) is records.Observation:  # by far the most frequent
                seen.add(record.subject)
                continue
            for field in _IDENTIFIERS.get(type(record), ()):
                seen.add(getattr(record, field))
        for identifier in seen:
            self.name(identifier)

    def entry(self, entry: records.Entry) -> records.Entry:
        """One entry as it may leave the gateway, after `learn` has met its block."""
        if self._clear:
            return entry
        patient, record = self.name(entry.patient), entry.record
        kind = type(record)
        changed: dict[str, str] = {}
        for field in _IDENTIFIERS.get(kind, ()):
            identifier = getattr(record, field)
            if identifier:
                changed[field] = self.name(identifier)
        if self._forms:
            for field in _TEXTS[kind]:
                text = getattr(record, field)
                if text:
                    cleaned = self.text(text)
                    if cleaned != text:
                        changed[field] = cleaned
        if changed:
            record = structs.replace(record, **changed)
        elif patient == entry.patient:
            return entry
        return records.Entry(entry.bed, entry.source, patient, record)

    def text(self, text: str) -> str:
        """A text with every identifier that was lately seen replaced, in capitals or not."""
        found = self._searched.get(text)
        if found is None:
            found = text
            for pattern, said in self._forms:
                found = pattern.sub(said, found)
            if len(self._searched) >= _TEXTS_MAX:
                self._searched.clear()
            self._searched[text] = found
        return found

    def _learn(self, identifier: str) -> str:
        name = self._key.pseudonym(identifier) if self._key is not None else ""
        if len(self._known) >= _KNOWN_MAX:
            self._known = {"": ""}
            self._forms.clear()
        self._known[identifier] = name
        self._searched.clear()
        spelt = identifier
        for escape, letter in _ESCAPED.items():
            spelt = spelt.replace(escape, letter)
        for form in {identifier.strip(), spelt.strip()}:
            if len(form) >= _SHORTEST:
                self._forms.append((re.compile(re.escape(form), re.IGNORECASE), name or LEFT_OUT))
        self._forms.sort(key=lambda pair: -len(pair[0].pattern))  # the longer first: one may be part of another
        return name


def identities(loaded: config.Loaded) -> Identities:
    """What the configuration wants.

    Raises: config.ConfigError when it names a key that cannot be read or is none; nothing leaves under a wrong one.
    """
    privacy = loaded.config.privacy
    keys: tuple[SiteKey, ...] = ()
    if privacy.key and privacy.identifiers == "pseudonym":
        remedy = "docs/privacy.md says how to make one; until then nothing is sent and everything is kept"
        try:
            provider, _, path = privacy.key.partition(":")
            if provider == "file":
                place = loaded.resolve(Path(path))
                if stat.S_IMODE(place.stat().st_mode) & 0o077:
                    raise KeyFault(f"{place} can be read by others: chmod 0400 it, and make a new key")
            keys = site_keys(config.secret(loaded, privacy.key))
        except (OSError, KeyFault) as error:
            raise loaded.error(("privacy", "key"), str(error), remedy) from error
    return Identities(privacy.identifiers, keys)
