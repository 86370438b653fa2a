"""The record on one sheet of paper: HTML without anything from elsewhere, readable in black and white, with signatures.

Everything that is said is escaped; outcomes are words and borders, never colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_STYLE = """
@page { size: A4; margin: 12mm }
* { box-sizing: border-box }
body { font: 9pt/1.3 "DejaVu Sans", Arial, sans-serif; color: #000; background: #fff; margin: 0 auto; max-width: 186mm }
h1 { font-size: 14pt; margin: 0 0 1mm } p { margin: 1mm 0 }
.notice { border: 0.4mm solid #000; padding: 1.5mm; font-weight: bold }
.verdict { border: 1mm solid #000; padding: 2mm; margin: 2mm 0; font-size: 12pt; font-weight: bold }
.refused { border-style: double }
table { border-collapse: collapse; width: 100%; margin: 2mm 0 }
th, td { border: 0.2mm solid #000; padding: 0.8mm 1.2mm; text-align: left; vertical-align: top }
td { overflow-wrap: anywhere } .facts th { width: 32mm } .failed, .skipped { font-weight: bold }
.small { font-size: 7pt } .sign td { height: 14mm; width: 50%; border: 0; border-bottom: 0.3mm solid #000 }
.sign th { border: 0; font-weight: normal }
"""
_MARK = {"passed": "passed", "failed": "FAILED", "skipped": "SKIPPED"}


def page(record: Mapping[str, Any], fingerprint: str, sha256: str) -> str:
    """The sheet for a record whose file has this SHA-256 and was signed by the key with this fingerprint."""
    accepted = record["verdict"]["accepted"]
    word = "ACCEPTED" if accepted else "NOT ACCEPTED"
    title = f"Acceptance of bed {record['bed']}"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="notice">{escape(record["notice"])}</p>
<p class="verdict{"" if accepted else " refused"}">{word}: {escape(record["verdict"]["reason"])}</p>
<table class="facts">
{_facts(record)}
</table>
<table>
<tr><th>Step</th><th>Result</th><th>What was seen; what to do</th><th>Time (UTC)</th></tr>
{"".join(_row(step) for step in record["steps"])}</table>
{_values(record)}
<p class="small">Signed with Ed25519 by the gateway's acceptance key {escape(fingerprint)}.
SHA-256 of the record's file: {escape(sha256)}.
Check: edge-agent provision verify RECORD --key acceptance.pub. The file is what counts; this sheet is its copy.</p>
<table class="sign">
<tr><td></td><td></td></tr>
<tr><th>{escape(record["engineer"]["name"])} ({escape(record["engineer"]["id"])}), date, signature</th>
<th>For the ward: name, date, signature</th></tr>
</table>
</body>
</html>
"""


def _facts(record: Mapping[str, Any]) -> str:
    versions, hardware, configuration = record["versions"], record["hardware"], record["configuration"]
    devices = "; ".join(_device(device) for device in record["devices"]) or "none"
    rows = (
        ("Gateway", f"{record['gateway']}; {hardware['board']}, serial {hardware['serial']}, {hardware['machine']}"),
        ("Software", f"bedside-edge {versions['bedside-edge']}, {versions['system']}, Python {versions['python']}"),
        ("Configuration", f"{configuration['file']}, SHA-256 {configuration['sha256']}"),
        ("Devices", devices),
        ("From, to (UTC)", f"{record['started']} to {record['ended']}; clock {record['clock']}"),
        ("Engineer", f"{record['engineer']['name']} ({record['engineer']['id']})"),
    )
    return "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(str(text))}</td></tr>" for name, text in rows)


def _device(device: Mapping[str, Any]) -> str:
    return ", ".join(str(device[key]) for key in ("driver", "link", "adapter", "serial") if device.get(key))


def _row(step: Mapping[str, Any]) -> str:
    outcome = step["outcome"]
    needed = "" if step["mandatory"] or outcome == "passed" else " (not needed here)"
    what = step["seen"] + (f". To do: {step['remedy']}" if step["remedy"] and outcome != "passed" else "")
    return (
        f'<tr><td>{escape(step["title"])}</td><td class="{escape(outcome)}">{escape(_MARK[outcome])}{needed}</td>'
        f"<td>{escape(what)}</td><td>{escape(step['at'][11:19])}</td></tr>\n"
    )


def _values(record: Mapping[str, Any]) -> str:
    compared: list[Mapping[str, Any]] = next(
        (step["details"].get("vitals", []) for step in record["steps"] if step["step"] == "values"), []
    )
    if not compared:
        return ""
    rows = "".join(
        f"<tr><td>{escape(each['term'])}</td><td>{_signed(each['deviation'])} {escape(each['unit'])}</td>"
        f"<td>{each['tolerance']:g} {escape(each['unit'])}</td><td>{escape(each['outcome'])}</td></tr>\n"
        for each in compared
    )
    head = "<tr><th>Vital sign</th><th>Gateway minus screen</th><th>Allowed</th><th>Result</th></tr>"
    return f"<table>\n{head}\n{rows}</table>"


def _signed(deviation: float | None) -> str:
    return "not compared" if deviation is None else f"{deviation:+g}"
