"""Sealed blocks in SQLite: what was acknowledged survives power cuts, full disks and damage, and only its key opens it.

The agent writes through `Buffer`; cloud-sync reads through `Reader` and notes what it delivered in `Marks`. How it
works and what it promises: docs/buffer.md.
"""

from edge_agent.buffer.files import STREAMS
from edge_agent.buffer.intake import FAULTS, Buffer
from edge_agent.buffer.keys import KeyProblem, create_key_file, load_kek
from edge_agent.buffer.marks import ALERT_MANAGER, MQTT, REST, Marks, Position, receiver_mark, receivers
from edge_agent.buffer.reader import Block, Reader

__all__ = [
    "ALERT_MANAGER",
    "FAULTS",
    "MQTT",
    "REST",
    "STREAMS",
    "Block",
    "Buffer",
    "KeyProblem",
    "Marks",
    "Position",
    "Reader",
    "create_key_file",
    "load_kek",
    "receiver_mark",
    "receivers",
]
