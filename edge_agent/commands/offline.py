"""Commands that look at drivers without an agent: `decode` and `drivers`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import drivers
from drivers.contract import Decoder, Driver, hex_uuid
from edge_agent.links.capture import CaptureError, read_capture
from edge_agent.records import Chunk, Item, shape

END_NS = 60_000_000_000  # decoders end an unfinished frame after a silence far shorter than this


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `decode` and `drivers`."""
    decode = subparsers.add_parser("decode", help="bytes of a device to one JSON line per item")
    decode.add_argument("--driver", required=True, metavar="NAME")
    decode.add_argument("--channel", default="", metavar="UUID16", help="BLE characteristic, for example 2a37")
    decode.add_argument("--hex", action="store_true", help="FILE holds hexadecimal digits instead of bytes")
    decode.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the driver")
    decode.add_argument("--chunk", type=int, default=0, metavar="N", help="feed N bytes at a time; 0: all at once")
    decode.add_argument("file", metavar="FILE", help="bytes, a capture (.cap), or - for standard input")
    decode.set_defaults(func=run_decode)

    registry = subparsers.add_parser("drivers", help="the drivers, with how each was verified")
    registry.add_argument("--json", action="store_true")
    registry.set_defaults(func=run_drivers)


# -- decode -----------------------------------------------------------------------------------------------------


def run_decode(arguments: argparse.Namespace) -> int:
    """Print what the driver makes of the bytes; exit code 0 whatever they hold."""
    try:
        driver = drivers.load(arguments.driver)
    except KeyError:
        print(f"decode: no driver {arguments.driver!r}; known: {', '.join(drivers.names())}", file=sys.stderr)
        return 2
    try:
        decoder = driver.decoder(**dict(_option(text) for text in arguments.option))
    except (TypeError, ValueError) as error:
        print(f"decode: option of driver {driver.name}: {error}", file=sys.stderr)
        return 2
    try:
        chunks = _chunks(arguments, driver)
    except (OSError, CaptureError, ValueError) as error:
        print(f"decode: {arguments.file}: {error}", file=sys.stderr)
        return 1
    for item in decode(decoder, chunks):
        print(json.dumps(shape(item), ensure_ascii=False))
    return 0


def decode(decoder: Decoder, chunks: Iterable[Chunk]) -> Iterator[Item]:
    """Every item of these chunks, and of the silence after them."""
    at_ns = 0
    for chunk in chunks:
        at_ns = chunk.at_ns
        yield from decoder.feed(chunk)
    yield from decoder.tick(at_ns + END_NS)


def _option(text: str) -> tuple[str, object]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    for number in (int, float):
        try:
            return key, number(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value, value)


def _chunks(arguments: argparse.Namespace, driver: Driver) -> list[Chunk]:
    if arguments.file.endswith(".cap") and not arguments.hex:
        return [chunk for direction, chunk in read_capture(Path(arguments.file)).entries if direction == "<"]
    data = sys.stdin.buffer.read() if arguments.file == "-" else Path(arguments.file).read_bytes()
    if arguments.hex:
        data = bytes.fromhex(data.decode("ascii"))
    channel = hex_uuid(arguments.channel)
    # a BLE payload is one message: it is never fed in pieces
    step = 0 if driver.message_oriented else arguments.chunk
    pieces = [data] if step <= 0 else [data[start : start + step] for start in range(0, len(data), step)]
    return [Chunk(number, piece, channel) for number, piece in enumerate(pieces)]


# -- drivers ----------------------------------------------------------------------------------------------------


def run_drivers(arguments: argparse.Namespace) -> int:
    """Print the registry."""
    rows = []
    for name in drivers.names():
        driver = drivers.load(name)
        rows.append(
            {
                "name": driver.name,
                "links": sorted(driver.links),
                "emits": list(driver.emits),
                "silence_s": driver.silence_s,
                "options": list(driver.options),
                "evidence": driver.evidence,
            }
        )
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        print(f"{row['name']}\n  links     {', '.join(map(str, row['links']))}")  # type: ignore[call-overload]
        print(f"  emits     {', '.join(map(str, row['emits']))}")  # type: ignore[call-overload]
        print(f"  silent    after {row['silence_s']:g} s")
        if row["options"]:
            print(f"  options   {', '.join(map(str, row['options']))}")  # type: ignore[call-overload]
        print(f"  evidence  {row['evidence']}")
    return 0
