"""Philips IntelliVue monitors (MP, MX) over their Data Export interface: network (UDP) and MIB/RS-232.

Theory of operation. The monitor is a server for one client. The gateway associates with it, answers its MDS Create and
asks for numerics, waves and alerts once, which then come by themselves, and for patient and system every other second,
which also keeps the association alive. `wire` finds the messages, `replies` takes them apart, `association` is the
table of states and `polls` that of questions; `numerics`, `waves` and `alarms` turn answers into items with the codes
of `nomenclature`; `requests` is all that is ever sent: association, answers, polls, release, abort, and the choice of
waves. Nothing that changes a setting of the monitor, its limits or its alarms is among it.

Without a sum of its own a datagram is trusted as far as UDP's checksum goes; on the serial line every frame has one.

Source: Philips IntelliVue Data Export Interface Programming Guide (4535 645 88011, rev. L.0), chapters transport
protocols, protocol commands, association control protocol, attribute data types; IEEE 11073-10101.
"""

from __future__ import annotations

from drivers.contract import Driver, Line
from drivers.intellivue.decoder import IntelliVue
from drivers.intellivue.nomenclature import NUMERICS, WAVES

DRIVER = Driver(
    name="intellivue",
    decoder=IntelliVue,
    links=frozenset({"udp", "serial", "file"}),
    emits=tuple(sorted({term.name for table in (NUMERICS, WAVES) for term in table.values()})),
    silence_s=5.0,
    evidence="Requests: compared octet by octet with those of a public client. Answers: structures of the vendor's "
    "guide as public sources give them, played by a simulator of our own. No hardware yet.",
    lines=(Line(baud=115200),),
    options=("monitor", "waves", "listen"),
    tells_link="link",
)
