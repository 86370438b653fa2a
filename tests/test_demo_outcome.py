"""What the demo says it has seen, and when it says that something was not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import load
from edge_agent.demo import compose
from edge_agent.demo.compose import configuration
from edge_agent.demo.outcome import Edge, Outcome, edges
from edge_agent.presets import load_presets

S = 1_000_000_000
DESATURATION = {
    "alert_id": "1-1",
    "condition": "spo2_desaturation",
    "kind": "physiological",
    "priority": "high",
    "state": "On",
    "text": "SpO2 desaturation",
    "value": 78.0,
    "limit": "below 80",
    "since_s": 1.0,
}
LOW = {**DESATURATION, "alert_id": "1-2", "condition": "spo2_low", "priority": "medium", "text": "SpO2 low"}
LOST = {
    **DESATURATION,
    "alert_id": "1-3",
    "condition": "source_lost:oximeter",
    "kind": "technical",
    "priority": "medium",
    "text": "Device not connected",
}
CONSUMED = {"bedside.observations": 700, "bedside.alerts": 6, "bedside.status": 4}


def status(sick: list[dict[str, Any]], last: list[dict[str, Any]], oximeter: str = "connected") -> dict[str, Any]:
    return {
        "beds": [{"id": "ICU-1", "alarms": sick}, {"id": "ICU-2", "alarms": last}],
        "sources": [{"name": "oximeter", "state": oximeter}, {"name": "strap", "state": "connected"}],
        "latency": {"p50_us": 210, "p99_us": 900, "count": 120},
        "buffer": {"stored": 12},
        "cloud": {"state": "connected", "forwarded": {"alerts": 6, "data": 700}},
    }


def line(at_s: float, bed: str, condition: str, output: str = "red", on: bool = True) -> str:
    return json.dumps(
        {"at_ns": int(at_s * S), "bed": bed, "output": output, "on": on, "priority": "high", "condition": condition}
    )


EDGES = "\n".join(
    [
        line(0.0, "ICU-2", "source_lost:oximeter"),
        line(0.1, "ICU-1", "spo2_desaturation", on=False),
        line(26.25, "ICU-1", "spo2_desaturation"),
        line(26.25, "ICU-1", "spo2_desaturation", "buzzer"),
        line(30.5, "ICU-2", "source_lost:oximeter"),
        '{"at_ns": 31',
    ]
)


def watched() -> Outcome:
    it = Outcome("ICU-1", "ICU-2", "oximeter")
    it.observe(status([], []))
    it.observe(status([LOW], []))
    it.observe(status([LOW, DESATURATION], []))
    it.pulled = True
    it.observe(status([DESATURATION], [LOST], "lost"))
    it.observe(status([], [], "connected"))
    return it


def test_everything_seen() -> None:
    it = watched()
    assert it.missing(edges(EDGES), CONSUMED) == []
    sent = [(20 * S, 81.0), (21 * S, 79.0), (22 * S, 76.0)]
    conditions = dict(load_presets()["adult"].by_id)
    delay = conditions["spo2_desaturation"].delay_s
    assert it.summary(edges(EDGES), CONSUMED, sent, 30 * S, conditions) == [
        "alarm            ICU-1 HIGH SpO2 desaturation: output 5.250 s after the first value below 80 was sent "
        f"(condition delay {delay:g} s)",
        "technical alarm  ICU-2 MEDIUM Device not connected: output 0.500 s after the cable was pulled; "
        "the device is connected again",
        "alarm path       p50 0.21 ms, p99 0.90 ms from receipt to signal, 120 chunks",
        "buffered         12 records wait in the sealed buffer",
        "forwarded        706 records",
        "consumed         710 messages from the embedded Kafka: bedside.alerts 6, bedside.observations 700, "
        "bedside.status 4",
    ]


def without_alarm() -> Outcome:
    it = Outcome("ICU-1", "ICU-2", "oximeter", pulled=True)
    it.observe(status([], [LOST], "lost"))
    return it


def without_technical() -> Outcome:
    it = Outcome("ICU-1", "ICU-2", "oximeter")
    it.observe(status([DESATURATION], [LOST], "lost"))  # from before the cable was pulled
    it.pulled = True
    it.observe(status([DESATURATION], [LOST], "lost"))
    return it


def other_device() -> Outcome:
    it = Outcome("ICU-1", "ICU-2", "oximeter", pulled=True)
    it.observe(status([DESATURATION], [{**LOST, "condition": "source_lost:strap"}]))
    return it


def not_lost() -> Outcome:
    it = Outcome("ICU-1", "ICU-2", "oximeter", pulled=True)
    it.observe(status([DESATURATION], [LOST]))
    return it


def not_forwarded() -> Outcome:
    it = watched()
    it.last = {**copy.deepcopy(it.last), "cloud": None}
    return it


@pytest.mark.parametrize(
    ("outcome", "what"),
    [
        (without_alarm, "no SpO2 alarm on ICU-1"),
        (without_technical, "no technical alarm on ICU-2 after its cable was pulled"),
        (other_device, "no technical alarm on ICU-2 after its cable was pulled"),
        (not_lost, "the source oximeter was not reported as lost"),
        (not_forwarded, "cloud-sync forwarded nothing"),
    ],
)
def test_what_was_not_seen_is_named(outcome: Any, what: str) -> None:
    assert outcome().missing(edges(EDGES), CONSUMED) == [what]


def test_an_alarm_without_output_is_not_seen() -> None:
    off = line(26.0, "ICU-1", "spo2_desaturation", on=False)
    assert watched().missing(edges(off), CONSUMED) == ["the SpO2 alarm on ICU-1 reached no output"]


@pytest.mark.parametrize("topic", ["observations", "alerts"])
def test_what_did_not_arrive_is_named(topic: str) -> None:
    arrived = {name: number for name, number in CONSUMED.items() if not name.endswith(topic)}
    assert watched().missing(edges(EDGES), arrived) == [f"nothing arrived in the topic of {topic}"]


def pulses(*priorities: str, output: str = "yellow", condition: str = "x") -> list[Edge]:
    return [Edge(1, "ICU-1", output, priority, condition) for priority in priorities]


ATTENDED = [*pulses("low", "medium", "high"), *pulses("high", output="buzzer")]


WHOLE = {"label": "NEWS2", "value": 3, "present": 7, "needed": 7, "band": "low-medium"}


def attended(state: str = "Ack", inactivation: str = "audio_paused") -> Outcome:
    it = Outcome("ICU-1", "ICU-2", "oximeter")
    seen = status([{**DESATURATION, "state": state}], [])
    seen["beds"][0]["alarm"] = {"inactivation": {"state": inactivation, "remaining_s": 9} if inactivation else None}
    for score in ({**WHOLE, "value": 0, "band": "zero"}, WHOLE, {**WHOLE, "value": 5, "present": 6}):
        seen["beds"][0]["scores"] = {"news2": score}
        it.observe(seen)
    return it


def test_the_highest_whole_news2_is_told_and_a_partial_one_is_none() -> None:
    it = attended()
    assert "score            ICU-1 at most NEWS2 3 low-medium" in it.summary([], {}, [], None, {})
    partly = Outcome("ICU-1", "ICU-2", "oximeter", scripted=False)
    seen = status([], [])
    seen["beds"][0]["scores"] = {"news2": {**WHOLE, "present": 6}}
    partly.observe(seen)
    assert partly.unattended(ATTENDED, "") == ["NEWS2 of ICU-1 was never whole"]


def test_what_a_nurse_would_have_missed_is_named() -> None:
    assert attended().unattended(ATTENDED, "") == []
    assert attended().unattended(ATTENDED[1:], "") == ["no light of the priority LOW"]
    assert attended().unattended(ATTENDED[:3], "") == ["no sound of the priority HIGH"]
    assert attended("On").unattended(ATTENDED, "") == ["no alarm was acknowledged"]
    assert attended("Ack", "").unattended(ATTENDED, "") == ["audio was not paused"]
    assert attended("Ack", "audio_off").unattended(ATTENDED, "") == ["audio was not paused"]
    assert attended().unattended(ATTENDED, "entry 3 is bad") == ["alarm log: entry 3 is bad"]


def test_a_self_test_is_no_alarm_and_a_person_at_the_keys_need_not_act() -> None:
    tried = [Edge(*_tried(edge)) for edge in ATTENDED]
    assert len(attended().unattended(tried, "")) == 4
    by_hand = Outcome("ICU-1", "ICU-2", "oximeter", scripted=False)
    seen = status([DESATURATION], [])
    seen["beds"][0]["scores"] = {"news2": WHOLE}
    by_hand.observe(seen)
    assert by_hand.unattended(ATTENDED, "") == []


def _tried(edge: Edge) -> tuple[int, str, str, str, str]:
    return edge.at_ns, edge.bed, edge.output, edge.priority, "self_test"


def test_a_technical_spo2_condition_is_no_deterioration() -> None:
    it = without_alarm()
    it.observe(status([{**LOST, "condition": "spo2_stale"}], []))
    assert "no SpO2 alarm on ICU-1" in it.missing(edges(EDGES), CONSUMED)


def test_a_model_that_comes_with_the_package_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "demo.toml"
    monkeypatch.setattr(compose, "_BUNDLES", tmp_path)
    for there in (False, True):
        if there:
            (tmp_path / "sepsis-1").mkdir()
            (tmp_path / "sepsis-1" / "model.json").touch()
        path.write_text(
            configuration(["ICU-1"], tmp_path, 2575, tmp_path / "o", "tcp-client:127.0.0.1:9", "127.0.0.1:9")
        )
        assert (load(path).config.model is not None) is there


@pytest.mark.parametrize("beds", [["ICU-1"], ["ICU-1", "ICU-2", "ICU-3", "ICU-4"]])
def test_the_generated_configuration_is_valid(tmp_path: Path, beds: list[str]) -> None:
    path = tmp_path / "demo.toml"
    path.write_text(
        configuration(beds, tmp_path, 2575, tmp_path / "oximeter", "tcp-client:127.0.0.1:9", "127.0.0.1:9092")
    )
    config = load(path).config
    assert [bed.id for bed in config.bed] == beds
    assert [source.bed for source in config.source] == ["", beds[-1], beds[-1]]
    assert {annunciator.bed for annunciator in config.annunciator} == {beds[0], beds[-1]}
    assert config.buffer.key == f"file:{tmp_path / 'key'}"
