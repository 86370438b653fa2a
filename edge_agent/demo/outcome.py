"""What a demo has shown: gathered from the agent's status, the recorded output edges and the embedded Kafka."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from edge_agent import view_scores
from edge_agent.presets import Condition

LOST = ("source_lost", "source_silent")  # rows of the preset that a pulled cable may raise, as ROW:SOURCE
SELF_TEST = "self_test"  # the condition of edges that only try the outputs
BUZZER = "buzzer"
_NS = 1e9


@dataclass(frozen=True, slots=True)
class Edge:
    """An alarm output that went on."""

    at_ns: int
    bed: str
    output: str
    priority: str
    condition: str


def edges(text: str) -> list[Edge]:
    """The edges to on of a `record` annunciator's file, in order; a last line that is still being written is left."""
    found = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["on"]:
            found.append(Edge(row["at_ns"], row["bed"], row["output"], row["priority"], row["condition"]))
    return found


@dataclass(slots=True)
class Outcome:
    """Sees every status; says at the end whether the whole path was seen to work."""

    sick_bed: str
    oximeter_bed: str
    oximeter_source: str
    pulled: bool = False  # the cable has been pulled
    physiological: dict[str, Any] | None = None  # the highest SpO2 alarm of the sick bed
    technical: dict[str, Any] | None = None  # the first alarm after the cable was pulled
    source_was_lost: bool = False
    source_is_back: bool = False
    scripted: bool = True  # a script is the operator: what it does must be seen too
    acknowledged: bool = False
    paused: bool = False
    news2: dict[str, Any] | None = None  # the highest whole one of the sick bed
    last: dict[str, Any] = field(default_factory=dict)
    _before: set[str] = field(default_factory=set)  # alarms of the oximeter's bed that were there before the pull

    def observe(self, status: dict[str, Any]) -> None:
        """Take one status of the agent into account."""
        self.last = status
        for bed in status["beds"]:
            self.paused |= ((bed.get("alarm") or {}).get("inactivation") or {}).get("state") == "audio_paused"
            if bed["id"] == self.sick_bed:
                self._score((bed.get("scores") or {}).get(view_scores.MAIN))
            for alarm in bed["alarms"]:
                self.acknowledged |= alarm["state"] == "Ack"
                if bed["id"] == self.sick_bed and alarm["condition"].startswith("spo2_"):
                    self._physiological(alarm)
                if bed["id"] == self.oximeter_bed and self._of_oximeter(alarm):
                    self._technical(alarm)
        for source in status["sources"]:
            if source["name"] == self.oximeter_source and self.pulled:
                if source["state"] in ("lost", "silent"):
                    self.source_was_lost, self.source_is_back = True, False
                elif self.source_was_lost and source["state"] == "connected":
                    self.source_is_back = True

    def _physiological(self, alarm: dict[str, Any]) -> None:
        order = ("high", "medium", "low", "none")
        if alarm["kind"] != "physiological":
            return
        if self.physiological is None or order.index(alarm["priority"]) < order.index(self.physiological["priority"]):
            self.physiological = alarm

    def _score(self, found: dict[str, Any] | None) -> None:
        whole = found is not None and found["value"] is not None and found["present"] == found["needed"]
        if whole and found is not None and (self.news2 is None or found["value"] > self.news2["value"]):
            self.news2 = found

    def _of_oximeter(self, alarm: dict[str, Any]) -> bool:
        row, _, source = alarm["condition"].partition(":")
        return row in LOST and source == self.oximeter_source

    def _technical(self, alarm: dict[str, Any]) -> None:
        if not self.pulled:
            self._before.add(alarm["alert_id"])
        elif alarm["alert_id"] not in self._before:
            self.technical = self.technical or alarm

    def missing(self, output: list[Edge], consumed: dict[str, int]) -> list[str]:
        """What was not seen, in words; empty when the whole path was."""
        shown = {(edge.bed, edge.condition) for edge in output}
        out = []
        if self.physiological is None:
            out.append(f"no SpO2 alarm on {self.sick_bed}")
        elif (self.sick_bed, self.physiological["condition"]) not in shown:
            out.append(f"the SpO2 alarm on {self.sick_bed} reached no output")
        if self.technical is None:
            out.append(f"no technical alarm on {self.oximeter_bed} after its cable was pulled")
        elif not self.source_was_lost:
            out.append(f"the source {self.oximeter_source} was not reported as lost")
        if not self.forwarded():
            out.append("cloud-sync forwarded nothing")
        for topic in ("observations", "alerts"):
            if not _of_topic(consumed, topic):
                out.append(f"nothing arrived in the topic of {topic}")
        return out

    def unattended(self, output: list[Edge], log_fault: str) -> list[str]:
        """What a nurse would have missed, in words: lights, sound, what the operator's hand does, the alarm log."""
        alarms = [edge for edge in output if edge.condition != SELF_TEST]
        lit = {edge.priority for edge in alarms if edge.output != BUZZER}
        heard = {edge.priority for edge in alarms if edge.output == BUZZER}
        out = [
            f"no light of the priority {priority.upper()}"
            for priority in ("low", "medium", "high")
            if priority not in lit
        ]
        if "high" not in heard:
            out.append("no sound of the priority HIGH")
        if self.scripted and not self.acknowledged:
            out.append("no alarm was acknowledged")
        if self.scripted and not self.paused:
            out.append("audio was not paused")
        if self.news2 is None:
            out.append(f"NEWS2 of {self.sick_bed} was never whole")
        if log_fault:
            out.append(f"alarm log: {log_fault}")
        return out

    def forwarded(self) -> int:
        """Records that cloud-sync says it has delivered."""
        cloud = self.last.get("cloud") or {}
        return int(sum((cloud.get("forwarded") or {}).values()))

    def summary(
        self,
        output: list[Edge],
        consumed: dict[str, int],
        spo2_sent: list[tuple[int, float]],
        pulled_ns: int | None,
        conditions: dict[str, Condition],
    ) -> list[str]:
        """The plain lines at the end."""
        lines = []
        if self.physiological is not None:
            lines.append(self._physiological_line(self.physiological, output, spo2_sent, conditions))
        if self.technical is not None:
            lines.append(self._technical_line(self.technical, output, pulled_ns))
        if self.news2 is not None:
            lines.append(f"score            {self.sick_bed} at most {view_scores.text(view_scores.MAIN, self.news2)}")
        latency = self.last.get("latency") or {}
        if latency.get("count"):
            lines.append(
                f"alarm path       p50 {latency['p50_us'] / 1000:.2f} ms, p99 {latency['p99_us'] / 1000:.2f} ms "
                f"from receipt to signal, {latency['count']} chunks"
            )
        buffer = self.last.get("buffer") or {}
        topics = ", ".join(f"{topic} {number}" for topic, number in sorted(consumed.items()))
        lines.append(f"buffered         {buffer.get('stored', 0)} records wait in the sealed buffer")
        lines.append(f"forwarded        {self.forwarded()} records")
        lines.append(f"consumed         {sum(consumed.values())} messages from the embedded Kafka: {topics or 'none'}")
        return lines

    def _physiological_line(
        self,
        alarm: dict[str, Any],
        output: list[Edge],
        spo2_sent: list[tuple[int, float]],
        conditions: dict[str, Condition],
    ) -> str:
        text = f"alarm            {self.sick_bed} {alarm['priority'].upper()} {alarm['text']}"
        edge = _first(output, self.sick_bed, alarm["condition"])
        condition = conditions.get(alarm["condition"])
        if edge is None or condition is None or condition.low is None:
            return text
        first_ns = next((at_ns for at_ns, value in spo2_sent if value < condition.low), None)
        if first_ns is None or first_ns > edge.at_ns:
            return text
        after_s = (edge.at_ns - first_ns) / _NS
        return (
            f"{text}: output {after_s:.3f} s after the first value {condition.present} was sent "
            f"(condition delay {condition.delay_s:g} s)"
        )

    def _technical_line(self, alarm: dict[str, Any], output: list[Edge], pulled_ns: int | None) -> str:
        text = f"technical alarm  {self.oximeter_bed} {alarm['priority'].upper()} {alarm['text']}"
        after = [edge for edge in output if pulled_ns is not None and edge.at_ns >= pulled_ns]
        edge = _first(after, self.oximeter_bed, alarm["condition"])
        if edge is not None and pulled_ns is not None:
            text += f": output {(edge.at_ns - pulled_ns) / _NS:.3f} s after the cable was pulled"
        return text + ("; the device is connected again" if self.source_is_back else "")


def _first(output: list[Edge], bed: str, condition: str) -> Edge | None:
    return next((edge for edge in output if edge.bed == bed and edge.condition == condition), None)


def _of_topic(consumed: dict[str, int], topic: str) -> int:
    return sum(number for name, number in consumed.items() if name.endswith(f".{topic}"))
