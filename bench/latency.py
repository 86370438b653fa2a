"""Alarm latency: from the client's last byte to the `record` edge, against an asyncio echo of the same bytes.

Client, agent and echo server are separate processes. Every second message is out of limits with delay 0, so it must
raise the alarm, and the one after it must end it. Rounds of echo and agent alternate, so that both see the same noise.
The client's clock is read before the send; the edge's stands in the record line, taken when the alarm loop puts the
edge out, where a GPIO line would be set (the line itself reaches the file through a thread a little later). Both are
CLOCK_MONOTONIC.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import preload
from bench.gateway import Gateway, connect, free_port, wait_until
from bench.messages import frame

RATE_HZ = 100
ROUNDS = 6
MESSAGES = 300  # a round, of each kind
WARM_UP = 100
PATIENCE_S = 0.8 / RATE_HZ  # for an acknowledgement, before the next message is due

ECHO = """
import asyncio, socket, sys
class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)
async def main():
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def echo_server() -> Iterator[int]:
    """Port of an asyncio echo server in a process of its own."""
    port = free_port()
    child = subprocess.Popen([sys.executable, "-c", ECHO, str(port)])
    try:
        wait_until(lambda: _accepts(port), 10, "the echo server's start")
        yield port
    finally:
        child.terminate()
        child.wait()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _due(start: int, number: int) -> int:
    return start + number * 1_000_000_000 // RATE_HZ


def _sleep_until(at_ns: int) -> None:
    while (left := at_ns - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)


def echo_round(client: socket.socket, first: int, count: int) -> list[int]:
    """Round-trip times in ns."""
    times = []
    begin = time.monotonic_ns()
    for number in range(count):
        data = frame(first + number)
        _sleep_until(_due(begin, number))
        start = time.monotonic_ns()
        client.sendall(data)
        left = len(data)
        while left:
            left -= len(client.recv(65536))
        times.append(time.monotonic_ns() - start)
    return times


def agent_round(client: socket.socket, first: int, count: int) -> list[int]:
    """Send times in ns of the messages that are out of limits.

    Like a monitor, and like the echo's client, the sender waits for the answer at once; unlike them, it sends the next
    message in time also when no acknowledgement has come, because a stalled disk withholds it.
    """
    sent = []
    begin = time.monotonic_ns()
    for number in range(count):
        low = number % 2 == 0
        data = frame(first + number, spo2=80.0 if low else 97.0)
        _sleep_until(_due(begin, number))
        client.settimeout(PATIENCE_S)
        start = time.monotonic_ns()
        client.sendall(data)
        # nothing stands between send and wait: on two processors the receiver may have to run where the sender does
        try:
            client.recv(65536)
        except TimeoutError:
            pass
        if low:
            sent.append(start)
    client.settimeout(None)
    return sent


def edges(path: Path) -> list[int]:
    """Times in ns at which the red light went on."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        line["at_ns"] for line in lines if line["output"] == "red" and line["on"] and line["condition"] == "spo2_low"
    ]


def matched(sent: list[int], seen: list[int]) -> tuple[list[int], int]:
    """Delay of each raise to its edge, and how many raises had none before the next raise."""
    delays, missed, position = [], 0, 0
    for number, start in enumerate(sent):
        end = sent[number + 1] if number + 1 < len(sent) else start + 1_000_000_000
        while position < len(seen) and seen[position] < start:
            position += 1
        if position < len(seen) and seen[position] < end:
            delays.append(seen[position] - start)
        else:
            missed += 1
    return delays, missed


def percentile(values: list[int], share: float) -> float:
    """The value below which `share` of the values lie, in microseconds."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] / 1000


def one_round(gateway: Gateway, stalled: Path | None) -> tuple[list[int], int, list[int]]:
    """Delays of the agent, raises without an edge, round trips of the echo; both processes are fresh."""
    with gateway, echo_server() as echo_port:
        client, echo = connect(gateway.port), connect(echo_port)
        agent_round(client, 0, WARM_UP)
        echo_round(echo, 0, WARM_UP)
        if stalled is not None:
            stalled.touch()
        echo_times = echo_round(echo, WARM_UP, MESSAGES)
        sent = agent_round(client, WARM_UP, MESSAGES)
        end = time.monotonic() + 5
        while not edges(gateway.edges)[-1:] > sent[-1:] and time.monotonic() < end:
            time.sleep(0.05)
        delays, missed = matched(sent, edges(gateway.edges))
        if stalled is not None:
            stalled.unlink()
        for each in (client, echo):
            each.close()
    return delays, missed, echo_times


def scenario(name: str, make: Callable[[], Gateway], *, stalled: Path | None = None) -> dict[str, object]:
    """Rounds of fresh processes: where the kernel puts them matters as much as what they do, and lasts as they do."""
    delays: list[int] = []
    echo_times: list[int] = []
    ratios = []
    missed = 0
    for _ in range(ROUNDS):
        some, without, echoed = one_round(make(), stalled)
        delays += some
        echo_times += echoed
        missed += without
        ratios.append(round(percentile(some, 0.5) / percentile(echoed, 0.5), 2))
    result: dict[str, object] = {"scenario": name, "raised": len(delays) + missed, "missed": missed}
    for label, values in (("agent", delays), ("echo", echo_times)):
        result[f"{label}_p50_us"] = round(percentile(values, 0.5), 1)
        result[f"{label}_p99_us"] = round(percentile(values, 0.99), 1)
    result["p50_ratio"] = round(percentile(delays, 0.5) / percentile(echo_times, 0.5), 2)
    result["p99_ratio"] = round(percentile(delays, 0.99) / percentile(echo_times, 0.99), 2)
    result["p50_ratio_of_rounds"] = sorted(ratios)
    return result


def run() -> list[dict[str, object]]:
    """Base, broker down, disk stalled."""
    results = [scenario("base", Gateway)]
    results.append(scenario("broker down", lambda: Gateway(broker=f"127.0.0.1:{free_port()}")))
    with tempfile.TemporaryDirectory(prefix="bedside-stall-") as folder:
        flag = Path(folder) / "stalled"
        library = preload.library("stall", Path(folder))

        def stalling() -> Gateway:
            gateway = Gateway()
            gateway.preload(
                {
                    "LD_PRELOAD": str(library),
                    "STALL_BELOW": str(gateway.data_dir),
                    "STALL_FLAG": str(flag),
                    "STALL_MS": "2000",
                }
            )
            return gateway

        results.append(scenario("disk stalled", stalling, stalled=flag))
    base = results[0]
    for result in results[1:]:
        # each scenario has its own echo, so that the comparison does not see the machine's drift
        result["p50_to_base"] = round(float(str(result["p50_ratio"])) / float(str(base["p50_ratio"])), 2)
        result["p99_to_base"] = round(float(str(result["p99_ratio"])) / float(str(base["p99_ratio"])), 2)
    return results
