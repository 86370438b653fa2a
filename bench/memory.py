"""Resident memory of the agent with eight beds, and its growth over a simulated day.

The day is 86,400 messages a bed, sent as fast as they are acknowledged, with the device's time advancing a second a
message. Growth is measured between the end of the first tenth, when caches and windows are full, and the end.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from bench.gateway import Gateway, connect
from bench.messages import frame

BEDS = 8
DAY_S = 86_400
WINDOW = 32
IDLE_S = 5.0


def _send(port: int, bed: int, first: int, count: int) -> None:
    client = connect(port)
    sent = acknowledged = 0
    tail = b""
    while acknowledged < count:
        room = min(WINDOW - (sent - acknowledged), count - sent)
        if room > 0:
            client.sendall(b"".join(frame(first + sent + step, bed) for step in range(room)))
            sent += room
        data = tail + client.recv(65536)
        acknowledged += data.count(b"|AA|")
        tail = data[-3:]
    client.close()


def _all_beds(port: int, first: int, count: int) -> None:
    with ThreadPoolExecutor(BEDS) as pool:
        list(pool.map(lambda bed: _send(port, bed, first, count), range(BEDS)))


def run() -> list[dict[str, object]]:
    """Memory at a bedside pace, after a tenth of the day, after the day."""
    with Gateway(beds=BEDS) as gateway:
        clients = [connect(gateway.port) for _ in range(BEDS)]
        end = time.monotonic() + IDLE_S
        number = 0
        while time.monotonic() < end:  # one message a bed and second, as at the bedside
            for bed, client in enumerate(clients):
                client.sendall(frame(number, bed))
            number += 1
            time.sleep(1.0)
        bedside = gateway.resident_kb()
        for client in clients:
            client.close()
        _all_beds(gateway.port, number, DAY_S // 10)
        tenth = gateway.resident_kb()
        start = time.monotonic()
        _all_beds(gateway.port, number + DAY_S // 10, DAY_S - DAY_S // 10)
        day = gateway.resident_kb()
        elapsed = time.monotonic() - start
    return [
        {
            "beds": BEDS,
            "bedside_mb": round(bedside / 1024, 1),
            "tenth_of_day_mb": round(tenth / 1024, 1),
            "day_mb": round(day / 1024, 1),
            "growth_mb": round((day - tenth) / 1024, 1),
            "day_took_s": round(elapsed),
        }
    ]
