"""The Unix-socket JSON-lines API through which every operator's hand reaches the agent.

Theory of operation: a client sends one JSON object a line, `{"op": "acknowledge", "bed": "ICU-3"}`, and gets one line
back, `{"ok": true, ...}` or `{"ok": false, "error": "..."}`; `subscribe` answers with a status line now and every
`interval_s` until the client goes. The kernel's peer credentials give the caller's role; a role may do what the roles
below it may. Every action that changes something is passed to `audit`, also when it was refused.

The server runs in the agent's loop, so nothing here waits: a client that does not read is dropped when more than
MAX_UNREAD bytes wait for it.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

ROLES = ("viewer", "nurse", "biomed")  # each may do what the ones before it may
MAX_LINE = 64 * 1024
MAX_UNREAD = 4 * 1024 * 1024  # a status of 8 beds is about 20 kB
MAX_CLIENTS = 32
REPLY_S = 5.0  # a client gives up after this long

# What each operation needs; an operation that is missing here does not exist.
OPERATIONS: dict[str, str] = {
    "status": "viewer",
    "subscribe": "viewer",
    "metrics": "viewer",
    "acknowledge": "nurse",
    "limits": "viewer",
    "pause_audio": "nurse",
    "pause_alarm": "nurse",
    "resume": "nurse",
    "reset": "nurse",
    "observe": "nurse",
    "audio_off": "biomed",
    "alarm_off": "biomed",
    "set_limit": "biomed",
    "set_preset": "biomed",
    "admit": "biomed",
    "discharge": "biomed",
    "self_test": "biomed",
    "announce": "biomed",
}
UNTOLD = frozenset({"op", "patient_id", "age", "sex"})  # who was admitted stands in the patient's own record
READ_ONLY = frozenset({"status", "subscribe", "metrics", "limits"})


class Refused(Exception):
    """An operation that cannot be done; `str` tells the operator why and what to do."""


class AlreadyRunning(OSError):
    """Another agent answers on the control socket."""


class Follow(NamedTuple):
    """A subscription: the status that `request` asks for, every `interval_s` seconds."""

    interval_s: float
    request: Mapping[str, Any]


Operation = Callable[[Mapping[str, Any], str], Mapping[str, Any]]  # (request, operator) -> reply


def role_of(uid: int, gid: int, nurse_group: str, biomed_group: str) -> str:
    """The role of a peer: root and the agent's own user are biomed, members of the two groups what the group says."""
    if uid in (0, os.getuid()):
        return "biomed"
    groups = {gid}
    try:
        name = pwd.getpwuid(uid).pw_name
        groups.update(os.getgrouplist(name, gid))
    except KeyError:
        pass  # a user this machine does not know has the groups the kernel told and no other
    for role, group in (("biomed", biomed_group), ("nurse", nurse_group)):
        if group:
            try:
                if grp.getgrnam(group).gr_gid in groups:
                    return role
            except KeyError:
                continue  # `check` and doctor report a group that does not exist
    return "viewer"


class ControlServer:
    """Listens on the control socket and carries requests to `operations`."""

    def __init__(
        self,
        path: Path,
        operations: Mapping[str, Operation],
        audit: Callable[[str, str, str], None],
        nurse_group: str = "",
        biomed_group: str = "",
        ready: asyncio.Event | None = None,
    ) -> None:
        """Requests wait for `ready`: what a restart puts back must be there before anybody looks or acts."""
        self._ready = ready
        self._path = path
        self._operations = operations
        self._audit = audit
        self._groups = (nurse_group, biomed_group)
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises: AlreadyRunning; OSError when the socket cannot be made."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if self._path.exists():
            if answers(self._path):
                raise AlreadyRunning(f"{self._path}: another agent answers on this control socket; stop it first")
            self._path.unlink()
        self._server = await asyncio.start_unix_server(self._accept, self._path, limit=MAX_LINE)
        # Who may do what is decided by peer credentials; any local user may connect and see the status.
        os.chmod(self._path, 0o666)  # noqa: S103

    async def close(self) -> None:
        """Stop listening, drop the clients, remove the socket."""
        if self._server is not None:
            self._server.close()
        for task in list(self._clients):
            task.cancel()
        if self._clients:
            await asyncio.gather(*self._clients, return_exceptions=True)
        if self._server is not None:
            self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served outside a task")
        self._clients.add(task)
        try:
            if len(self._clients) > MAX_CLIENTS:
                writer.write(_line({"ok": False, "error": "too many clients; close one and try again"}))
            else:
                await self._serve(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid, gid = _peer(writer)
        role = role_of(uid, gid, *self._groups)
        operator = f"uid={uid}"
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                writer.write(_line({"ok": False, "error": f"a request is longer than {MAX_LINE} bytes"}))
                return
            if not line:
                return
            if self._ready is not None:
                await self._ready.wait()
            reply, follow = self.answer(line, role, operator)
            writer.write(_line(reply))
            while follow is not None:
                try:
                    async with asyncio.timeout(follow.interval_s):
                        await reader.read(1)
                    return  # a subscriber says nothing; whatever it sends ends the subscription
                except TimeoutError:
                    pass
                if writer.transport.get_write_buffer_size() > MAX_UNREAD:
                    return
                writer.write(_line(self._call("status", follow.request, operator)))

    def answer(self, line: bytes, role: str, operator: str) -> tuple[Mapping[str, Any], Follow | None]:
        """The reply to one request line, and what to send from then on when it asks for a subscription."""
        try:
            request = msgspec.json.decode(line)
        except msgspec.DecodeError:
            return {"ok": False, "error": "a request is one JSON object on one line"}, None
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            return {"ok": False, "error": 'a request needs "op", for example {"op": "status"}'}, None
        op: str = request["op"]
        needed = OPERATIONS.get(op)
        if needed is None:
            return {"ok": False, "error": f"unknown op {op!r}; known: {', '.join(OPERATIONS)}"}, None
        if ROLES.index(role) < ROLES.index(needed):
            self._audit(operator, op, f"refused: role {role}, needs {needed}")
            return {"ok": False, "error": f"{op} needs the role {needed}; you are {role}"}, None
        follow: Follow | None = None
        if op == "subscribe":
            wanted = request.get("interval_s", 1.0)
            if not isinstance(wanted, int | float) or not 0.1 <= wanted <= 60:
                return {"ok": False, "error": "interval_s is a number of seconds from 0.1 to 60"}, None
            follow, op = Follow(float(wanted), request), "status"
        return self._call(op, request, operator), follow

    def _call(self, op: str, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        try:
            reply = self._operations[op](request, operator)
        except Refused as error:
            self._audit(operator, op, f"refused: {error}")
            return {"ok": False, "error": str(error)}
        if op not in READ_ONLY:
            told = {key: value for key, value in request.items() if key not in UNTOLD}
            self._audit(operator, op, " ".join(f"{key}={value}" for key, value in told.items()))
        return {"ok": True, **reply}


def _peer(writer: asyncio.StreamWriter) -> tuple[int, int]:
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    _pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return uid, gid


def _line(reply: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(reply) + b"\n"


def answers(path: Path) -> bool:
    """Whether a process listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


class ControlClient:
    """The other end, for the command line: one connection, blocking, with a deadline.

    Raises: ConnectionError with what to do when no agent answers.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(REPLY_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise ConnectionError(
                f"{path}: no agent answers ({error.strerror or error}).\n"
                "  Is edge-agent running (systemctl status edge-agent), and is --socket or --config the right one?"
            ) from error
        self._file = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def call(self, op: str, **request: Any) -> dict[str, Any]:
        """The reply to one request. Raises: Refused when the agent refused it, ConnectionError when it went away."""
        self._socket.sendall(_line({"op": op, **{key: value for key, value in request.items() if value is not None}}))
        return self.next()

    def next(self) -> dict[str, Any]:
        """The next line of a subscription."""
        try:
            line = self._file.readline()
        except TimeoutError as error:
            raise ConnectionError(f"the agent did not answer within {REPLY_S:.0f} s: its loop hangs") from error
        if not line:
            raise ConnectionError("the agent closed the connection: it has stopped")
        reply: dict[str, Any] = msgspec.json.decode(line)
        if not reply.get("ok"):
            raise Refused(str(reply.get("error", "refused without a reason")))
        return reply

    def subscribe(self, interval_s: float) -> dict[str, Any]:
        """Ask for a status now and every `interval_s` seconds; `next` gives the later ones."""
        self._socket.settimeout(interval_s + REPLY_S)
        return self.call("subscribe", interval_s=interval_s)


def wait_for_socket(path: Path, deadline_s: float, alive: Callable[[], bool] = lambda: True) -> bool:
    """Whether an agent answers at `path` before `deadline_s` seconds have passed and while `alive` holds."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end and alive():
        if answers(path):
            return True
        time.sleep(0.05)
    return False
