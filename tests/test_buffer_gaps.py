"""What was shed is told to central: Gap records through the sealed file and the encoder, exact to the record."""

from __future__ import annotations

import json
from pathlib import Path

from buffer_rig import Rig, alert, numeric, read_all
from jsonschema import Draft202012Validator
from test_buffer_quota import noise

from cloud_sync import encode
from edge_agent.buffer import STREAMS

SCHEMAS = Path(encode.__file__).parent / "schemas"


def test_a_gap_that_goes_to_kafka_names_exactly_what_does_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path, quota_mb=1)
    for number in range(250):  # 2 MB of waveforms that do not compress
        rig.append(noise(number), numeric(number))
        if number % 10 == 0:
            rig.commit(alert(number))
    rig.commit(numeric(250), alert(250))
    rig.buffer.prune()
    rig.wait(lambda: rig.buffer.stats()["pending"] == 0)
    issued = 250 * 2 + 1
    rig.close()
    encoder = encode.Encoder("gw-1")
    sent = [message for stream in STREAMS for block in read_all(tmp_path, stream) for message in encoder.block(block)]
    assert {message.topic for message in sent if dict(message.headers)["schema"] == b"gap"} == {"alerts"}
    messages = [json.loads(message.value) for message in sent]
    told = [message for message in messages if message["record"]["item"] == "gap"]
    assert told
    schema = json.loads((SCHEMAS / "gap.json").read_text())
    for message in told:
        Draft202012Validator(schema).validate(message)
        assert message["record"]["reason"] == "quota" and message["record"]["priority"] == 2
    data = [message for message in messages if message["record"]["item"] in ("observation", "waveform")]
    (instance,) = {message["instance"] for message in data}
    assert {message["record"]["instance"] for message in told} == {instance}
    arrived = {message["sequence"] for message in data}
    assert sum(message["record"]["count"] for message in told) == issued - len(arrived)
    spans = {n for message in told for n in range(message["record"]["first"], message["record"]["last"] + 1)}
    assert set(range(1, issued + 1)) - arrived <= spans
    assert max(arrived) == issued
    alerts = [message["record"].get("alert_id") for message in messages if message["record"]["item"] == "alarm_event"]
    assert alerts == [f"a{number}" for number in [*range(0, 250, 10), 250]]  # none was shed
