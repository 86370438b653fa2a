"""`edge-agent alarms whatif`: what a change of limits and delays would have done to recorded patients."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent import NOTICE, presets, terms
from edge_agent.burden import compare, recorded, replay, tables, words
from edge_agent.config import ConfigError, Loaded, load
from edge_agent.presets import Preset

Pair = tuple[Preset, Preset]
EXPORTS = (".jsonl", ".json", ".ndjson")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `whatif` to the commands of `alarms`."""
    whatif = subparsers.add_parser(
        "whatif",
        help="replay recorded vital signs under another preset: alarms before and after",
        description="Replays recorded vital signs through the real watch and alarm rooms, under the presets of now and "
        "under another one, and reports what would have been raised, shortened and lost. Nothing is changed.",
        epilog=NOTICE,
    )
    whatif.add_argument(
        "--preset", type=Path, required=True, metavar="FILE", help="preset file to try (docs/alarms.md)"
    )
    whatif.add_argument("--baseline", metavar="NAME", help="preset of before; the beds' own, or what FILE extends")
    whatif.add_argument("--bed-preset", metavar="NAME", help="with --config: only beds that have this preset now")
    data = whatif.add_mutually_exclusive_group(required=True)
    data.add_argument("--config", type=Path, metavar="FILE", help="what this gateway's sealed buffer holds")
    data.add_argument(
        "--data", type=Path, nargs="+", metavar="FILE", help=".jsonl of `buffer export`, or .csv or .parquet tables"
    )
    whatif.add_argument(
        "--column", type=_column, action="append", default=[], metavar="NAME=TERM", help="what a table's column is"
    )
    whatif.add_argument("--plot", type=_plot_path, metavar="OUT", help="draw it too, .svg or .png (extra `report`)")
    whatif.add_argument("--json", action="store_true", help="one JSON object instead of text")
    whatif.set_defaults(func=run)


def _column(text: str) -> tuple[str, str]:
    name, _, term = text.rpartition("=")
    if not name or term not in terms.BY_NAME or terms.BY_NAME[term].kind == "waveform":
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=TERM with a numeric term, for example SBP=nibp_sys")
    return name, term


def _plot_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".svg", ".png"):
        raise argparse.ArgumentTypeError("the name of the picture ends in .svg or .png")
    return path


def run(arguments: argparse.Namespace) -> int:
    """Replay, print, draw; 1 when the data or the extra is missing, 78 when a preset or the configuration is wrong."""
    draw = None
    if arguments.plot is not None:
        from edge_agent.burden import plot

        fault = plot.missing()
        if fault:
            print(f"edge-agent alarms whatif: {fault}", file=sys.stderr)
            return 1
        draw = plot.draw
    if arguments.bed_preset and arguments.config is None:
        print("edge-agent alarms whatif: --bed-preset needs --config: other data knows no beds", file=sys.stderr)
        return 2
    try:
        if arguments.config is None:
            names, choose = _from_file(arguments)
            moments: Iterator[recorded.Heard] = itertools.chain.from_iterable(
                _opened(path, dict(arguments.column)) for path in arguments.data
            )
        else:
            loaded = load(arguments.config)
            names, choose = _from_config(arguments, loaded)
            moments = _buffered(loaded)
        comparison = compare.compare(replay.replay(moments, choose))
    except ConfigError:
        raise
    except (recorded.DataError, OSError) as error:
        print(f"edge-agent alarms whatif: {error}", file=sys.stderr)
        return 1
    if not comparison.beds:
        print("edge-agent alarms whatif: no vital signs in this data for the beds asked for", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(comparison.shape(names), indent=2))
    else:
        print("\n".join(words.report(comparison, names)))
    if draw is not None:
        draw(comparison, names, arguments.plot)
        print(f"drawn to {arguments.plot}", file=sys.stderr)
    return 0


def _opened(path: Path, given: dict[str, str]) -> Iterator[recorded.Heard]:
    if path.suffix.lower() in EXPORTS:
        return recorded.export_moments(path)
    unused, moments = tables.table_moments(path, given)
    if unused:
        print(f"not used: columns {', '.join(unused)} of {path}", file=sys.stderr)
    return moments


def _buffered(loaded: Loaded) -> Iterator[recorded.Heard]:
    from edge_agent.buffer import KeyProblem, load_kek

    try:
        key = load_kek(loaded.buffer_key)
        yield from recorded.buffer_moments(loaded.resolve(loaded.config.gateway.data_dir), key)
    except KeyProblem as error:
        raise recorded.DataError(str(error)) from error


def _from_file(arguments: argparse.Namespace) -> tuple[tuple[str, str], Callable[[str], Pair | None]]:
    """The presets for data without a configuration: every bed has the baseline."""
    known = presets.load_presets([arguments.preset])
    name, parent = _named(arguments.preset)
    before = _known(known, arguments.baseline or parent or "adult", arguments.preset)
    pair = (before, known[name])
    return (before.name, name), lambda _bed: pair


def _from_config(arguments: argparse.Namespace, loaded: Loaded) -> tuple[tuple[str, str], Callable[[str], Pair | None]]:
    """The presets for the beds of a configuration: each its own before; a preset file may be an edited copy."""
    from edge_agent.parts import Parts  # with all drivers: only where a configuration is read

    now = Parts(loaded).presets
    paths = [loaded.resolve(path) for path in loaded.config.gateway.presets]
    known = presets.load_presets(paths)
    name, _ = _named(arguments.preset)
    others = [path for path in paths if _named(path)[0] != name]
    after = presets.load_presets([*others, arguments.preset])[name]
    baseline = _known(known, arguments.baseline, arguments.preset) if arguments.baseline else None
    if arguments.bed_preset:
        _known(known, arguments.bed_preset, arguments.preset)
    pairs: dict[str, Pair] = {}
    for bed in loaded.config.bed:
        if arguments.bed_preset in (None, bed.preset):
            pair = (baseline or now[bed.id], after)
            pairs[bed.id] = (
                pair
                if bed.latching is None
                else (pair[0].with_latching(bed.latching), pair[1].with_latching(bed.latching))
            )
    before = sorted({pair[0].name for pair in pairs.values()})
    return (", ".join(before) or "-", name), pairs.get


def _named(path: Path) -> tuple[str, str]:
    """Name of a preset file, and of the one it extends; what is wrong with the file is the loader's to say."""
    try:
        text = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return path.stem, ""
    return str(text.get("name", path.stem)), str(text.get("extends", ""))


def _known(known: dict[str, Preset], name: str, path: Path) -> Preset:
    if name not in known:
        raise ConfigError(path, None, "", f"no preset is named {name!r}", f"known presets: {', '.join(sorted(known))}")
    return known[name]
