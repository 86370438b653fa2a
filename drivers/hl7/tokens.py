"""Bytes to text, text to segments and fields: character sets, encoding characters, escapes.

Only one notation goes further down the path: a message that declares other encoding characters than `|^~\\&` is
rewritten into these once, with its own literal `|^~\\&` turned into escapes. What follows splits on constants.
"""

from __future__ import annotations

import re
from typing import NamedTuple

STANDARD = "|^~\\&"  # field, component, repetition, escape, sub-component
_PLAIN_START = "MSH|^~\\&|"

# MSH-18, HL7 table 0211, to Python codecs. Keys are compared in upper case without spaces.
_CHARSETS = {
    "ASCII": "ascii",
    "ISOIR6": "ascii",
    "UNICODEUTF-8": "utf-8",
    "UNICODE": "utf-8",
    "UTF-8": "utf-8",
    "UTF8": "utf-8",
    "GB18030-2000": "gb18030",
    "GB18030": "gb18030",
    "GB2312": "gb18030",
    "BIG-5": "big5",
    "KSX1001": "euc_kr",
    "ISOIR14": "shift_jis",
    "ISOIR87": "iso2022_jp_2",
    "ISOIR159": "iso2022_jp_2",
    **{f"8859/{part}": f"iso8859_{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 15)},
}
_ESC = 0x1B  # switches alphabets in the Japanese character sets


class Text(NamedTuple):
    """A message as text in the standard notation; `delimiters` are those that it came with in `original`."""

    text: str
    delimiters: str
    original: str


def charset(declared: str) -> str | None:
    """The Python codec of an MSH-18; None when it names none that is known."""
    known = [_CHARSETS.get(name.upper().replace(" ", "")) for name in declared.split("~")]
    if "iso2022_jp_2" in known:  # declared as an alternative to ASCII, which it includes
        return "iso2022_jp_2"
    return next((codec for codec in known if codec), None)


def decode_text(payload: bytes, fallback: str) -> tuple[str, str]:
    """The text and the codec that gave it; never fails.

    Plain ASCII needs no look at MSH-18. Text that is not what MSH-18 says, or says nothing, is tried as UTF-8 and
    then read as `fallback`, a codec that knows every byte.
    """
    if payload.isascii() and _ESC not in payload:
        return payload.decode("ascii"), "ascii"
    header = re.split(rb"[\r\n]", payload.lstrip(), maxsplit=1)[0].decode("latin-1")
    fields = header.split(header[3:4] or "|")
    declared = charset(fields[17]) if len(fields) > 17 else None
    for codec in (declared, "utf-8"):
        if codec:
            try:
                return payload.decode(codec), codec
            except UnicodeDecodeError:
                continue
    return payload.decode(fallback, "replace"), fallback


def standard(text: str) -> Text | None:
    """The message in the standard notation; None when MSH-1 and MSH-2 cannot separate anything."""
    if text.startswith(_PLAIN_START):
        return Text(text, STANDARD, text)
    header = text.split("\r", 1)[0]
    if not header.startswith("MSH") or len(header) < 5:
        return None
    field = header[3]
    end = header.find(field, 4)
    encoding = header[4 : end if end >= 0 else len(header)]
    delimiters = field + (encoding[:4] + STANDARD[1 + len(encoding) :] if len(encoding) < 4 else encoding[:4])
    if len(set(delimiters)) != 5 or len(encoding) > 5 or not all(_is_delimiter(letter) for letter in delimiters):
        return None
    if delimiters == STANDARD:
        return Text(text, STANDARD, text)
    return Text(_rewritten(text, delimiters), delimiters, text)


def _rewritten(text: str, delimiters: str) -> str:
    """The text in the standard notation: its delimiters exchanged, and what it escaped or wrote literally kept."""
    escape = re.escape(delimiters[3])
    escaped = dict(zip("FSRET", delimiters, strict=True))
    literal = {letter: f"\\{code}\\" for letter, code in zip(STANDARD, "FSRET", strict=True)}
    exchanged = {**literal, **dict(zip(delimiters, STANDARD, strict=True))}

    def letter(found: re.Match[str]) -> str:
        if found[1]:
            meant = escaped[found[1]]  # stands for the sender's own delimiter, which is an ordinary letter here
            return literal.get(meant, meant)
        return exchanged[found[0]]

    return re.sub(f"{escape}([FSRET]){escape}|[{re.escape(delimiters + STANDARD)}]", letter, text)


def _is_delimiter(letter: str) -> bool:
    return letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " "


_ESCAPE = re.compile(r"\\([^\\\r]{0,200})\\")
_ESCAPED = {"F": "|", "S": "^", "T": "&", "R": "~", "E": "\\", ".br": "\n", ".BR": "\n"}
_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")
_HEX = re.compile(r"X(?:[0-9A-Fa-f]{2})+")


def unescape(text: str, codec: str = "latin-1") -> str:
    """Text with its HL7 escapes resolved; highlighting and other sequences that have no letter disappear."""
    if "\\" not in text:
        return text

    def letter(found: re.Match[str]) -> str:
        code = found[1]
        if _HEX.fullmatch(code):
            return bytes.fromhex(code[1:]).decode(codec if codec != "ascii" else "latin-1", "replace")
        return _ESCAPED.get(code, "")

    return _ESCAPE.sub(letter, text)


def shown(text: str, codec: str = "latin-1", longest: int = 500) -> str:
    """Text for a person, on one line: escapes resolved, control characters blanked, of bounded length."""
    return unescape(text[: 4 * longest], codec).translate(_CONTROL).strip()[:longest]


def fields(line: str, last: int) -> list[str]:
    """Fields 0 (the segment's name) to `last` of a segment, the missing ones empty; element n is field n."""
    found = line.split("|", last + 1)
    del found[last + 1 :]
    if len(found) <= last:
        found += [""] * (last + 1 - len(found))
    return found


def header_fields(line: str, separator: str = "|") -> list[str]:
    """MSH-0 to MSH-18, numbered as HL7 does: MSH-1 is the field separator itself."""
    found = line.split(separator, 18)
    if len(found) < 18:
        found += [""] * (18 - len(found))
    found.insert(1, separator)
    return found


def component(field: str, number: int) -> str:
    """Component `number` (from 1) of a field's first repetition, its first sub-component."""
    parts = field.split("~", 1)[0].split("^", number)
    return parts[number - 1].split("&", 1)[0] if len(parts) >= number else ""


_LONGEST_NAME = 250  # characters of an identifier; HL7 allows 250 for the longest


def named(text: str) -> str:
    """An identifier as it was sent, of bounded length and without control characters."""
    return text[:_LONGEST_NAME] if text.isprintable() else text[:_LONGEST_NAME].translate(_CONTROL)


def place(field: str) -> str:
    """A location (PV1-3, PV1-6) as it was sent; empty when only its separators were."""
    first = field.split("~", 1)[0]
    return named(first) if first.strip('^& "') else ""


def patient(line: str) -> str:
    """The patient identifier of a PID: PID-3.1, else another of PID-3, else PID-2 or PID-18.

    Never PID-4 or PID-5: some monitors write the name there.
    """
    pid = fields(line, 18)
    for field in (pid[3], pid[2], pid[18]):
        for repetition in field.split("~"):
            name = component(repetition, 1)
            if name and name != '""':
                return named(name)
    return ""
