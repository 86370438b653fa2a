"""The decoder of one monitor: messages to items, and the conversation that makes the monitor send them."""

from __future__ import annotations

from drivers.intellivue import association, nomenclature, replies, requests, wire
from drivers.intellivue.alarms import Alarms
from drivers.intellivue.association import Association
from drivers.intellivue.nomenclature import WAVES
from drivers.intellivue.numerics import Numerics
from drivers.intellivue.polls import Polls
from drivers.intellivue.waves import Waves
from edge_agent.records import Chunk, DeviceStatus, Item, PatientEvent, Reject, Reply

_QUIET_NS = 1_000_000_000  # what is unfinished on a serial line after so long is over
_PATIENT_ID, _PATIENT_STATE = 0x095A, 0x0957
_NOBODY = (0, 8)  # no patient, or one who was discharged
_BED_LABEL, _MODE, _DATE, _RELATIVE = 0x091E, 0x0946, 0x0987, 0x098F
_MODES = ((0x2000, "demo"), (0x1000, "service"), (0x0002, "standby"), (0x0001, "configuration"))
_UNREAL = ("demo", "service")  # modes whose data are no patient's
_EVENTS = {
    wire.ACCEPT: "accepted",
    wire.REFUSE: "refused",
    wire.FINISH: "released",
    wire.DISCONNECT: "disconnected",
    wire.ABORT: "aborted",
}


class IntelliVue:
    """Decoder of one monitor.

    `monitor` is the address of the only one that is listened to, for links that hear several. `waves` is `auto` for
    those the monitor is set to send, `none`, or names of terms with commas between them. With `listen` nothing is sent
    and whatever any client was answered is decoded. `link` is the kind of link that the octets come by.
    Raises: ValueError for a wave that is none.
    """

    def __init__(self, monitor: str = "", waves: str = "auto", listen: bool = False, link: str = "") -> None:
        self._link = link
        self._monitor, self._listen = str(monitor), bool(listen)
        self._codes = _wave_codes(str(waves))
        self._association = Association(live=link in ("udp", "serial"))
        self._polls = Polls(self._codes is not None)
        self._stream = wire.Stream()
        self._numerics, self._waves, self._alarms = Numerics(), Waves(), Alarms()
        self._clock = nomenclature.Clock()
        self._channel: str | None = None  # of the monitor; None: not heard yet
        self._crowded = False
        self._told_ns: int | None = None  # the newest time that `tick` told
        self._heard_ns = 0
        self._subject = ""
        self._place = ""  # the monitor's bed label
        self._mode = "ok"

    def feed(self, chunk: Chunk) -> list[Item]:
        out: list[Item] = []
        if chunk.channel:
            self._datagram(chunk, out)
            return out
        at_ns = chunk.at_ns
        if self._stream.pending and at_ns - self._heard_ns > _QUIET_NS:
            self._streamed(self._stream.quiet(), self._heard_ns, out)
        if chunk.data:
            self._heard_ns = at_ns
            conversing = self._told_ns is not None or self._link == "serial"
            self._streamed(self._stream.feed(chunk.data, conversing), at_ns, out)
        return out

    def tick(self, at_ns: int) -> list[Item]:
        out: list[Item] = []
        if self._stream.pending and at_ns - self._heard_ns > _QUIET_NS:
            self._streamed(self._stream.quiet(), self._heard_ns, out)
        self._told_ns = at_ns
        if self._listen or self._crowded:
            return out
        self._do(self._association.tick(at_ns), at_ns, out)
        if self._association.state == association.ASSOCIATED:
            self._send(self._polls.ask(at_ns), out)
        return out

    # -- from the wire to messages ----------------------------------------------------------------------------------

    def _datagram(self, chunk: Chunk, out: list[Item]) -> None:
        data, at_ns = chunk.data, chunk.at_ns
        host = chunk.channel.rpartition(":")[0]
        if self._monitor and host.strip("[]") != self._monitor:
            if data[:1] != b"\0":  # other monitors of the ward announce themselves, which is no damage
                out.append(Reject("from another monitor", len(data), at_ns))
        elif not wire.whole(data):
            out.append(Reject("datagram is no message", len(data), at_ns))
        elif self._crowded or (self._channel is not None and self._channel.rpartition(":")[0] != host):
            if not self._crowded and data[0] == 0:
                self._crowd(at_ns, out)
            out.append(Reject("from another monitor", len(data), at_ns))
        else:
            self._channel = chunk.channel
            self._message(data, at_ns, out)

    def _crowd(self, at_ns: int, out: list[Item]) -> None:
        """A second monitor announces itself: which of them stands at this bed is not guessed."""
        if self._association.state == association.ASSOCIATED and not self._listen:
            self._send([requests.ABORT], out)
        self._crowded = True
        out.append(DeviceStatus("device", "several_monitors", at_ns, "name the bed's monitor in option `monitor`"))

    def _streamed(self, found: list[bytes | int], at_ns: int, out: list[Item]) -> None:
        for each in found:
            if isinstance(each, int):
                out.append(Reject("no complete message", each, at_ns))
            else:
                self._message(each, at_ns, out)

    # -- messages ---------------------------------------------------------------------------------------------------

    def _message(self, data: bytes, at_ns: int, out: list[Item]) -> None:
        event = _EVENTS.get(data[0]) if data else None
        if event is not None:
            self._happen(event, at_ns, out)
            return
        if wire.size(data or b"\xff") != len(data) or data[0] == wire.CONNECT:
            out.append(Reject("a request, not an answer" if data[:1] == b"\x0d" else "no message", len(data), at_ns))
            return
        try:
            said = replies.parse(data)
            if isinstance(said, replies.Event):
                self._event(said, at_ns, out)
            elif isinstance(said, replies.Poll):
                self._result(said, len(data), at_ns, out)
            elif isinstance(said, replies.Failure):
                self._polls.failed(said)
        except replies.Malformed as error:
            out.append(Reject(str(error), len(data), at_ns))

    def _event(self, event: replies.Event, at_ns: int, out: list[Item]) -> None:
        if event.kind == replies.CONNECT_INDICATION:
            self._happen("indicated", at_ns, out)
            return
        if self._association.state != association.ASSOCIATED:
            self._clock.forget()
        self._system(event.attributes, at_ns, out)
        self._happen("created", at_ns, out, event)

    def _result(self, poll: replies.Poll, size: int, at_ns: int, out: list[Item]) -> None:
        anybody = self._listen or self._told_ns is None
        associated = self._association.state == association.ASSOCIATED
        if not anybody and not associated:
            out.append(Reject("result outside of an association", size, at_ns))
            self._happen("result", at_ns, out)
            return
        why = self._polls.answered(poll, at_ns, anybody)
        if why:
            out.append(Reject(f"result {why}", size, at_ns))
            return
        items = self._items(poll, at_ns)
        if associated:
            self._happen("result", at_ns, out)
        out += items

    def _items(self, poll: replies.Poll, at_ns: int) -> list[Item]:
        """What the objects of a result say. Raises: Malformed, and then nothing of it counts."""
        out: list[Item] = []
        self._clock.learn(poll.relative, nomenclature.absolute(poll.absolute))
        if poll.polled == replies.MDS:
            for _, _, found in poll.objects:
                self._system(found, at_ns, out)
            return out
        if poll.polled == replies.PATIENT:
            for _, _, found in poll.objects:
                self._patient(found, at_ns, out)
            return out
        time = self._clock.date(poll.relative)
        told = (poll, at_ns, time, self._subject, self._mode not in _UNREAL)
        if poll.polled == replies.NUMERIC:
            out += self._numerics.items(*told)
        elif poll.polled == replies.WAVE:
            out += self._waves.items(*told)
        elif poll.polled == replies.ALERTS:
            out += self._alarms.items(*told)
        return out

    def _system(self, found: replies.Attributes, at_ns: int, out: list[Item]) -> None:
        relative, date = found.get(_RELATIVE, b""), found.get(_DATE, b"")
        if len(relative) == 4:
            self._clock.learn(int.from_bytes(relative, "big"), nomenclature.absolute(date))
        label = nomenclature.text(found.get(_BED_LABEL, b""), 64)
        if label is not None:
            self._place = label
        mode = found.get(_MODE, b"")
        if len(mode) == 2:
            bits = int.from_bytes(mode, "big")
            now = next((name for bit, name in _MODES if bits & bit), "ok")
            if now != self._mode:
                self._mode = now
                out.append(DeviceStatus("device", now, at_ns))

    def _patient(self, found: replies.Attributes, at_ns: int, out: list[Item]) -> None:
        state, sent = found.get(_PATIENT_STATE, b""), found.get(_PATIENT_ID)
        if len(state) == 2 and int.from_bytes(state, "big") in _NOBODY:
            subject: str | None = ""
        else:
            subject = None if sent is None else nomenclature.text(sent, 64)
        if subject is not None and subject != self._subject:
            self._subject = subject
            out.append(PatientEvent("observed", subject, self._place, at_ns))

    # -- the conversation -------------------------------------------------------------------------------------------

    def _happen(self, event: str, at_ns: int, out: list[Item], created: replies.Event | None = None) -> None:
        if not self._listen:
            self._do(self._association.event(event, at_ns), at_ns, out, created)

    def _do(self, actions: tuple[str, ...], at_ns: int, out: list[Item], created: replies.Event | None = None) -> None:
        for action in actions:
            if action == association.REQUEST:
                self._send([requests.association(self._codes is not None)], out)
            elif action == association.CONFIRM and created is not None and created.confirmed:
                self._send([requests.created(created)], out)
            elif action == association.START and created is not None:
                self._start(created, at_ns, out)
            elif action == association.STOP:
                out.append(DeviceStatus("device", "unassociated", at_ns))
            elif action == association.RELEASE:
                self._send([requests.RELEASE], out)
            elif action == association.ANSWER:
                self._send([requests.RELEASED], out)
            elif action == association.GIVE_UP:
                self._send([requests.ABORT], out)

    def _start(self, created: replies.Event, at_ns: int, out: list[Item]) -> None:
        """A new association: nothing that was known of the monitor before holds."""
        self._polls.begin(created.relative)
        self._numerics.forget()
        self._waves.forget()
        self._subject = ""  # until this association has told who lies there
        out.append(DeviceStatus("device", "associated", at_ns, self._place))
        if self._codes:
            self._send([requests.set_waves(self._polls.invoke(), self._codes)], out)
        self._send(self._polls.ask(at_ns), out)

    def _send(self, messages: list[bytes], out: list[Item]) -> None:
        framed = self._channel is None and self._link != "udp" and self._stream.framed is not False
        for each in messages:
            out.append(Reply(wire.frame(each) if framed else each, channel=self._channel or ""))


def _wave_codes(waves: str) -> tuple[int, ...] | None:
    """Codes of the waves to ask for, none for the monitor's choice; None when waves are not wanted."""
    if waves in ("auto", "none"):
        return () if waves == "auto" else None
    codes = {term.name: code for code, term in reversed(WAVES.items())}
    names = [each.strip() for each in waves.split(",")]
    unknown = [each for each in names if each not in codes]
    if unknown:
        raise ValueError(f"waves: {unknown[0]!r} is none of auto, none, {', '.join(sorted(codes))}")
    return tuple(codes[each] for each in names)
