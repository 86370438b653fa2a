"""HL7 v2 from patient monitors, monitoring gateways and the hospital's patient administration.

`framing` cuts messages out of the stream, `tokens` makes text and fields of them, `decoder` sends each to `rows`
(vital signs, with `waves`), `alarms` or `adt` and owes it an answer from `acknowledge`; `dialects` holds what the
vendors' codes mean, `values` what is a number.

Source: HL7 v2.3.1 to v2.7; IHE PCD-01 and PCD-04; vendor manuals named in the modules.
"""

from __future__ import annotations

from drivers.contract import Driver, Line
from drivers.hl7.decoder import Hl7
from edge_agent.terms import TERMS

DRIVER = Driver(
    "hl7",
    Hl7,
    links=frozenset({"tcp", "mllp", "serial", "file"}),
    emits=tuple(term.name for term in TERMS),
    silence_s=30.0,  # monitors send every 1 to 10 s, central stations also every 15 s; a site may set less
    evidence=(
        "IHE reference messages (PCD-01, PCD-04) and messages printed in vendor manuals (GE B40, Philips Efficia) "
        "decode as printed; Mindray and Comen after public message structures; Nihon Kohden and Edan from code tables "
        "only; no hardware"
    ),
    options=("charset", "acknowledge"),
    per_channel=True,
    lines=(Line(9600), Line(19200), Line(38400), Line(115200)),  # no standard names one; these are what menus offer
    poll_s=0.25,  # an unframed message ends by a second of silence: looked at often, it waits little longer
)
