"""The control socket: roles, refusals, hostile clients."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.control import MAX_LINE, OPERATIONS, ROLES, ControlClient, ControlServer, Refused, answers, role_of


class Audit:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []

    def __call__(self, operator: str, op: str, detail: str) -> None:
        self.lines.append((operator, op, detail))


def refuse(_request: Any, _operator: str) -> Any:
    raise Refused("no such bed")


OPERATIONS_TABLE = {name: (lambda _request, _operator, name=name: {"did": name}) for name in OPERATIONS}
OPERATIONS_TABLE["discharge"] = refuse


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[Path, Audit, ControlServer]]:
    audit = Audit()
    server = ControlServer(tmp_path / "run" / "control.sock", OPERATIONS_TABLE, audit)
    await server.start()
    yield tmp_path / "run" / "control.sock", audit, server
    await server.close()


async def call(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"".join(lines))
    writer.write_eof()
    data = await reader.read()
    writer.close()
    return [json.loads(line) for line in data.splitlines()]


async def test_requests_are_answered_in_order(served: tuple[Path, Audit, ControlServer]) -> None:
    path, audit, _ = served
    replies = await call(path, b'{"op":"status"}\n', b'{"op":"acknowledge","bed":"3"}\n')
    assert [reply["did"] for reply in replies] == ["status", "acknowledge"]
    assert audit.lines == [(f"uid={os.getuid()}", "acknowledge", "bed=3")]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"[]\n", b"{}\n", b'{"op":7}\n', b'{"op":"fire"}\n', b"{" * 2000 + b"\n"]
)
async def test_nonsense_is_refused_and_the_next_request_served(
    served: tuple[Path, Audit, ControlServer], line: bytes
) -> None:
    first, second = await call(served[0], line, b'{"op":"status"}\n')
    assert not first["ok"] and first["error"]
    assert second["ok"]


async def test_an_endless_line_ends_the_connection(served: tuple[Path, Audit, ControlServer]) -> None:
    (reply,) = await call(served[0], b"x" * (MAX_LINE + 10))
    assert "longer" in reply["error"]


async def test_a_refusal_is_audited(served: tuple[Path, Audit, ControlServer]) -> None:
    path, audit, server = served
    assert (await call(path, b'{"op":"discharge","bed":"9"}\n'))[0] == {"ok": False, "error": "no such bed"}
    reply, _ = server.answer(b'{"op":"admit","bed":"3"}', "nurse", "uid=7")
    assert not reply["ok"] and "biomed" in reply["error"]
    assert [line[1:] for line in audit.lines] == [
        ("discharge", "refused: no such bed"),
        ("admit", "refused: role nurse, needs biomed"),
    ]


@pytest.mark.alm("ALM-20")
@pytest.mark.parametrize("op", ["set_limit", "set_preset", "audio_off", "alarm_off"])
@pytest.mark.parametrize("role", ["viewer", "nurse"])
def test_limits_presets_and_off_states_need_authorisation(tmp_path: Path, op: str, role: str) -> None:
    done: list[str] = []
    audit = Audit()

    def operation(_request: object, _operator: str) -> dict[str, object]:
        done.append(op)
        return {}

    server = ControlServer(tmp_path / "s", {op: operation}, audit)
    request = json.dumps({"op": op, "bed": "3", "condition": "spo2_low", "present": "below 80"}).encode()
    reply, _ = server.answer(request, role, "uid=7")
    assert not reply["ok"] and "biomed" in reply["error"] and not done
    assert audit.lines == [("uid=7", op, f"refused: role {role}, needs biomed")]
    reply, _ = server.answer(request, "biomed", "uid=8")
    assert reply["ok"] and done == [op]
    assert audit.lines[1] == ("uid=8", op, "bed=3 condition=spo2_low present=below 80")


async def test_an_audit_names_no_patient(served: tuple[Path, Audit, ControlServer]) -> None:
    await call(served[0], b'{"op":"admit","bed":"3","patient_id":"SIM-7"}\n')
    assert "SIM-7" not in str(served[1].lines)


@pytest.mark.parametrize(("op", "needed"), OPERATIONS.items())
def test_every_operation_has_a_least_role(op: str, needed: str, tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "s", OPERATIONS_TABLE, Audit())
    request = json.dumps({"op": op}).encode()
    allowed = {role: "needs the role" not in str(server.answer(request, role, "x")[0]) for role in ROLES}
    expected = {"viewer": needed == "viewer", "nurse": needed in ("viewer", "nurse"), "biomed": True}
    assert allowed == expected


def test_strangers_are_viewers() -> None:
    assert role_of(os.getuid(), 0, "", "") == "biomed"
    assert role_of(54321, 54321, "", "no-such-group") == "viewer"


async def test_a_subscription_goes_on(served: tuple[Path, Audit, ControlServer]) -> None:
    def follow() -> list[str]:
        with ControlClient(served[0]) as client:
            return [client.subscribe(0.1)["did"], client.next()["did"], client.next()["did"]]

    assert await asyncio.to_thread(follow) == ["status"] * 3


async def test_a_second_agent_does_not_steal_the_socket(served: tuple[Path, Audit, ControlServer]) -> None:
    other = ControlServer(served[0], OPERATIONS_TABLE, Audit())
    with pytest.raises(OSError, match="another agent"):
        await other.start()
    assert answers(served[0])


async def test_a_socket_left_by_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ControlServer(path, OPERATIONS_TABLE, Audit())
    await server.start()
    assert (await call(path, b'{"op":"status"}\n'))[0]["ok"]
    await server.close()


def test_no_agent_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="systemctl status"):
        ControlClient(tmp_path / "none.sock")
