"""Builds HL7 messages and feeds them to a decoder; shared by the tests of the hl7 driver."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from drivers.hl7.decoder import Hl7
from edge_agent.records import Chunk, Item, Observation, Reject, Reply

SECOND = 1_000_000_000
MMHG = "266016^MDC_DIM_MMHG^MDC"
PER_MIN = "264864^MDC_DIM_BEAT_PER_MIN^MDC"
PERCENT = "262688^MDC_DIM_PERCENT^MDC"
HEART_RATE = "147842^MDC_ECG_HEART_RATE^MDC"
SPO2 = "150456^MDC_PULS_OXIM_SAT_O2^MDC"


def msh(
    kind: str = "ORU^R01^ORU_R01", control: str = "C1", commit: str = "", application: str = "", charset: str = ""
) -> str:
    return (
        f"MSH|^~\\&|MON^1^X|WARD|GATEWAY|HOSPITAL|20250401101500+0200||{kind}|{control}|P|2.6|||"
        f"{commit}|{application}||{charset}"
    )


def obx(
    code: str, value: str, unit: str = "", *, place: str = "", kind: str = "NM", status: str = "R", flags: str = ""
) -> str:
    return f"OBX|1|{kind}|{code}|{place}|{value}|{unit}||{flags}|||{status}"


def message(*segments: str, header: str | None = None) -> bytes:
    return ("\r".join([header or msh(), *segments]) + "\r").encode()


def framed(payload: bytes) -> bytes:
    return b"\x0b" + payload + b"\x1c\r"


def vitals(*rows: str, location: str = "ICU^^3") -> bytes:
    """A framed ORU^R01 of these OBX rows."""
    return framed(message("PID|||P1", f"PV1||I|{location}", "OBR|1|||V|||20250401101500", *rows))


def decode(*chunks: bytes, decoder: Hl7 | None = None, silence_s: float = 60.0, **options: Any) -> list[Item]:
    """Items of these chunks and of the silence behind them."""
    decoder = decoder or Hl7(**options)
    out: list[Item] = []
    for number, data in enumerate(chunks):
        out += decoder.feed(Chunk(number, data))
    out += decoder.tick(len(chunks) + int(silence_s * SECOND))
    return out


def readings(items: Iterable[Item]) -> list[tuple[str, float | None, str]]:
    return [(item.term, item.value, item.validity) for item in items if isinstance(item, Observation)]


def rejects(items: Iterable[Item]) -> list[tuple[str, int]]:
    return [(item.reason, item.size) for item in items if isinstance(item, Reject)]


def replies(items: Iterable[Item]) -> list[str]:
    return [item.data.decode("latin-1") for item in items if isinstance(item, Reply)]
