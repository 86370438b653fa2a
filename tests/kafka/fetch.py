"""Fetches the real broker's jars ahead of the tests; without Java or Maven it only says so, except in CI."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kafka_broker

why = kafka_broker.missing()
if why:
    print(f"tests that need a real Kafka will be skipped: {why}", file=sys.stderr)
    sys.exit(69 if os.environ.get("CI") else 0)  # sysexits.h EX_UNAVAILABLE
print(kafka_broker.fetch())
