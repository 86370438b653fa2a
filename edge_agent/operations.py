"""What operators can ask of the agent: status, acknowledge, pause, resume, reset, admit, discharge, metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_agent import NOTICE, __version__, metrics, terms
from edge_agent.announcement import Announcement, NotNow
from edge_agent.control import Operation, Refused
from edge_agent.limits import Limits, Unchangeable
from edge_agent.pipeline import GATEWAY
from edge_agent.records import DeviceStatus, Inactivation
from edge_agent.risk import OLDEST, SEXES
from edge_agent.scoring import ENTRIES

if TYPE_CHECKING:
    from edge_agent.agent import Agent


# Of what operators do, that which is not an alarm event already; refused attempts are logged whatever they wanted.
LOGGED = frozenset({"admit", "discharge", "observe", "self_test", "short", "long", "announce"})


class Operations:
    """The agent's answers to the control socket; every method runs in the alarm loop and never waits."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._announcement = Announcement()

    def table(self) -> dict[str, Operation]:
        """Operation by name, as the control server wants it."""
        return {
            "status": lambda request, _operator: {"status": self.status(trends=request.get("trends") is True)},
            "metrics": lambda _request, _operator: {"text": self.metrics()},
            "acknowledge": self.acknowledge,
            "pause_audio": partial(self._inactivate, "audio_paused"),
            "pause_alarm": partial(self._inactivate, "alarm_paused"),
            "audio_off": partial(self._inactivate, "audio_off"),
            "alarm_off": partial(self._inactivate, "alarm_off"),
            "resume": self.resume,
            "reset": self.reset,
            "limits": self.limits,
            "set_limit": self.set_limit,
            "set_preset": self.set_preset,
            "observe": self.observe,
            "admit": self.admit,
            "discharge": self.discharge,
            "self_test": self.self_test,
            "announce": self.announce,
        }

    def audit(self, operator: str, op: str, detail: str) -> None:
        """Record who asked for what, also when it was refused."""
        pipeline, log = self._agent.pipeline, self._agent.log
        now = time.monotonic_ns()
        pipeline.record(GATEWAY, "operator", DeviceStatus("operator", op, now, f"{operator} {detail}".strip()))
        pipeline.flush(now)
        if log is not None and (op in LOGGED or detail.startswith("refused")):
            log.mark("operator", {"who": operator, "op": op, "detail": detail}, now)

    # -- what changes something ---------------------------------------------------------------------------------

    def acknowledge(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """Acknowledge one alarm, those of one bed, or without a bed those of all beds."""
        alert = _text(request, "alert_id") or None
        now = time.monotonic_ns()
        alarms = self._agent.pipeline.alarms
        count = sum(alarms.acknowledge(bed, alert, operator, now) for bed in self._beds(request))
        self._agent.pipeline.flush(now)
        if alert and not count:
            raise Refused(f"no active alarm has the id {alert!r}; `edge-agent status` lists them")
        return {"acknowledged": count}

    def _inactivate(self, state: Inactivation, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """Hold back sound, or sound and light, of one bed or of all: for the seconds granted, or until it is ended."""
        seconds = request.get("seconds")
        if seconds is not None and (not isinstance(seconds, int) or isinstance(seconds, bool)):
            raise Refused("seconds is a whole number")
        now = time.monotonic_ns()
        beds = self._beds(request)
        try:
            granted = [self._agent.pipeline.alarms.inactivate(bed, state, seconds, operator, now) for bed in beds]
        except ValueError as error:
            raise Refused(str(error)) from error
        self._agent.pipeline.flush(now)
        return {"seconds": granted[0]} if granted[0] else {"beds": [bed for bed in beds if bed != GATEWAY]}

    def resume(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """End whatever inactivation state a bed is in."""
        return self._each("resume", request, operator)

    def reset(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """End latched alarms whose condition has gone."""
        return self._each("reset", request, operator)

    def _each(self, name: str, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        now = time.monotonic_ns()
        beds = self._beds(request)
        for bed in beds:
            getattr(self._agent.pipeline.alarms, name)(bed, operator, now)
        self._agent.pipeline.flush(now)
        return {"beds": [bed for bed in beds if bed != GATEWAY]}

    def observe(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:  # noqa: ARG002
        """Take over consciousness, oxygen and SpO2 scale as found at the bedside; what counts now, and the scores."""
        bed, pipeline, now = self._bed(request), self._agent.pipeline, time.monotonic_ns()
        try:
            pipeline.enter(bed, {name: request[name] for name in ENTRIES if name in request}, now)
        except ValueError as error:
            raise Refused(str(error)) from error
        self._agent.keep()
        return {"bed": bed, **self._scores(bed, now)}

    def _scores(self, bed: str, now: int) -> dict[str, Any]:
        scores = self._agent.pipeline.scores
        return {} if scores is None else {"scores": scores.view(bed, now), "entered": scores.entered(bed, now)}

    def admit(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:  # noqa: ARG002
        """Put a patient into a bed: limits, pauses and alarms start anew. Age and sex are for the risk model alone."""
        bed, patient = self._bed(request), _text(request, "patient_id")
        if not patient:
            raise Refused("patient_id is missing; to empty the bed use discharge")
        age, sex = request.get("age"), _text(request, "sex")
        if age is not None and (isinstance(age, bool) or not isinstance(age, int | float) or not 0 <= age <= OLDEST):
            raise Refused(f"age is a number of years, 0 to {OLDEST}")
        if sex and sex not in SEXES:
            raise Refused(f"sex is one of {', '.join(SEXES)}, or left out")
        self._agent.pipeline.admit(bed, patient, time.monotonic_ns())
        if self._agent.risk is not None:
            self._agent.risk.describe(bed, age, SEXES.get(sex))
        return {"bed": bed}

    def discharge(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:  # noqa: ARG002
        """Take the patient out of a bed: limits, pauses and alarms start anew."""
        bed = self._bed(request)
        self._agent.pipeline.admit(bed, "", time.monotonic_ns())
        return {"bed": bed}

    def limits(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:  # noqa: ARG002
        """The limits in force on a bed, those that are off included."""
        bed = self._bed(request)
        limits = self._limits()
        return {"bed": bed, "preset": limits.preset(bed).name, "limits": limits.rows(bed)}

    def set_limit(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """Change one limit of a bed, and its condition delay when one is named, until the next patient."""
        bed, condition, present = self._bed(request), _text(request, "condition"), _text(request, "present")
        delay_s = request.get("delay_s")
        if delay_s is not None and (not isinstance(delay_s, int | float) or isinstance(delay_s, bool)):
            raise Refused("delay_s is a number of seconds")
        now = time.monotonic_ns()
        try:
            changes = self._limits().set_limit(bed, condition, present, delay_s, operator, now)
        except Unchangeable as error:
            raise Refused(str(error)) from error
        self._agent.pipeline.apply(changes)
        self._agent.pipeline.flush(now)
        return {"bed": bed, "condition": condition, "present": present}

    def set_preset(self, request: Mapping[str, Any], operator: str) -> Mapping[str, Any]:
        """Put another preset into force on a bed, until the next patient."""
        bed, name = self._bed(request), _text(request, "preset")
        now = time.monotonic_ns()
        try:
            changes = self._limits().set_preset(bed, name, operator, now)
        except Unchangeable as error:
            raise Refused(str(error)) from error
        self._agent.pipeline.apply(changes)
        self._agent.pipeline.flush(now)
        return {"bed": bed, "preset": name}

    def self_test(self, request: Mapping[str, Any], _operator: str) -> Mapping[str, Any]:
        """The state of every part that can fail; with `annunciators`, lamps and sounds are tried too."""
        agent = self._agent
        if request.get("annunciators") is True:
            now = time.monotonic_ns()
            for annunciator in agent.annunciators:
                annunciator.self_test(now)
        return {
            "annunciators": self._annunciators(),
            "buttons": self._buttons(),
            "faults": dict(agent.faults),
            "sources": {name: feed.state for name, feed in agent.feeds.items()},
        }

    def announce(self, request: Mapping[str, Any], _operator: str) -> Mapping[str, Any]:
        """Say that the alarm system is about to restart for an update; refused while somebody needs it."""
        active = self._agent.pipeline.alarms.active()
        try:
            text = self._announcement.make(
                _text(request, "version"), active, request.get("now") is True, time.monotonic_ns()
            )
        except NotNow as error:
            raise Refused(str(error)) from error
        return {"text": text}

    def pressed(self, bed: str, press: str) -> None:
        """A press of a bedside button: short acknowledges; long pauses audio, or ends what holds the bed back."""
        request = {"bed": bed} if bed else {}
        self.audit("button", press, bed)
        if press == "short":
            self.acknowledge(request, "button")
            return
        signals = [self._agent.pipeline.alarms.signal(each) for each in self._beds(request)]
        if any(signal.inactivation for signal in signals):
            self.resume(request, "button")
        else:
            self._inactivate("audio_paused", request, "button")

    def _limits(self) -> Limits:
        limits = self._agent.pipeline.limits
        if limits is None:
            raise Refused("this agent runs without limits that could be changed")
        return limits

    def _beds(self, request: Mapping[str, Any]) -> list[str]:
        if request.get("bed"):
            return [self._bed(request)]
        return [*self._agent.pipeline.beds.ids, GATEWAY]

    def _bed(self, request: Mapping[str, Any]) -> str:
        bed = _text(request, "bed")
        if bed not in self._agent.pipeline.beds.ids:
            raise Refused(f"no bed {bed!r}; known: {', '.join(self._agent.pipeline.beds.ids)}")
        return bed

    # -- what only looks ----------------------------------------------------------------------------------------

    def status(self, *, trends: bool = False) -> dict[str, Any]:
        """Everything a person or a screen wants to know now; values only here, never in logs."""
        agent = self._agent
        now = time.monotonic_ns()
        gateway = agent.pipeline.alarms.view(GATEWAY, now)
        alarms = gateway.pop("alarms")
        return {
            "gateway": agent.config.gateway.id,
            "version": __version__,
            "instance": agent.run_id,
            "uptime_s": round((now - agent.started_ns) / 1e9, 1),
            "notice": NOTICE,
            "announcement": self._announcement.view(now),
            "beds": [self._bed_status(bed.id, now, trends=trends) for bed in agent.config.bed],
            "gateway_alarm": gateway,
            "gateway_alarms": alarms,
            "sources": [
                {
                    "name": name,
                    "driver": feed.driver.name,
                    "link": feed.link,
                    "beds": [bed for bed in feed.beds() if bed != GATEWAY],
                    "state": feed.state,
                    "detail": feed.detail,
                    "items": feed.items,
                    "rejects": feed.rejects,
                    "strangers": feed.strangers,
                }
                for name, feed in agent.feeds.items()
            ],
            "latency": agent.latency.view(),
            "buffer": self._buffer(),
            "log": self._log(),
            "cloud": agent.cloud,
            "model": None if agent.risk is None else agent.risk.status(),
            "annunciators": self._annunciators(),
            "buttons": self._buttons(),
        }

    def _bed_status(self, bed: str, now: int, *, trends: bool) -> dict[str, Any]:
        pipeline = self._agent.pipeline
        view = pipeline.alarms.view(bed, now)
        limits = self._limits()
        preset = limits.preset(bed)
        ages = {row.vital: row.silence_s for row in preset.conditions if row.verb == "silent"}
        values = {
            term: {
                "value": item.value,
                "unit": terms.BY_NAME[term].ucum,
                "validity": item.validity,
                "age_s": round((now - item.at_ns) / 1e9, 1),
                "max_age_s": ages.get(terms.BY_NAME[term].vital),
            }
            for term, item in pipeline.latest[bed].items()
        }
        active = view.pop("alarms")
        shown = {"trends": self._agent.trends.encoded(bed)} if trends else {}
        return {
            "id": bed,
            "preset": preset.name,
            "preset_changed": limits.is_changed(bed),
            "limits": limits.in_force(bed),
            "limits_off": list(preset.disabled),
            **shown,
            "patient": bool(pipeline.beds.patient(bed)),
            "values": values,
            "alarm": view,
            "alarms": active,
            **self._scores(bed, now),
            "risk": None if self._agent.risk is None else self._agent.risk.bed_status(bed, now),
        }

    def _buffer(self) -> dict[str, Any]:
        agent = self._agent
        if agent.buffer is None:
            return {"stored": 0, "pending": 0, "bytes": 0, "oldest_s": None, "fault": "; ".join(agent.faults.values())}
        return agent.buffer.stats()

    def _annunciators(self) -> list[dict[str, Any]]:
        return [{"kind": each.name, "fault": each.fault, "test": each.test_result} for each in self._agent.annunciators]

    def _buttons(self) -> list[dict[str, Any]]:
        return [
            {"name": each.name, "bed": each.bed, "fault": each.fault, "presses": each.presses}
            for each in self._agent.buttons
        ]

    def _log(self) -> dict[str, Any]:
        log = self._agent.log
        return {"waiting": None if log is None else log.waiting()}

    def metrics(self) -> str:
        """Counters in Prometheus text format (version 0.0.4)."""
        return metrics.text(self._agent)


def _text(request: Mapping[str, Any], key: str) -> str:
    value = request.get(key, "")
    if not isinstance(value, str):
        raise Refused(f"{key} is text")
    return value
