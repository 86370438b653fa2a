"""What `edge-agent doctor` looks at of the agent itself: whether it answers, what it complains of, its numbers."""

from __future__ import annotations

import grp
import http.client
from collections.abc import Iterator
from typing import Any

from edge_agent.commands.finding import Finding
from edge_agent.config import Loaded
from edge_agent.control import ControlClient, Refused, answers
from edge_agent.risk import model_opener

PORT_S = 5.0  # until the port for Prometheus has answered


def check_agent(loaded: Loaded) -> Iterator[Finding]:
    """Whether an agent answers, and which technical conditions it has."""
    path = loaded.resolve(loaded.config.control.socket)
    if answers(path):
        yield Finding("agent", "ok", f"answers on {path}")
        yield from _complaints(loaded)
    else:
        yield Finding(
            "agent", "warn", f"no agent answers on {path}", "systemctl status edge-agent; journalctl -u edge-agent"
        )
    for group in (loaded.config.control.nurse_group, loaded.config.control.biomed_group):
        if group:
            try:
                grp.getgrnam(group)
            except KeyError:
                yield Finding("control", "FAIL", f"group {group!r} does not exist", f"groupadd {group}")


def _complaints(loaded: Loaded) -> Iterator[Finding]:
    """Technical conditions, sources that do not speak, outputs at fault: as the bedside shows them."""
    try:
        with ControlClient(loaded.resolve(loaded.config.control.socket)) as client:
            status = client.call("status")["status"]
    except (ConnectionError, Refused, OSError) as error:
        yield Finding("agent", "FAIL", f"it does not answer: {error}", "systemctl restart edge-agent")
        return
    for alarm in status["gateway_alarms"]:
        condition = alarm["condition"].partition(":")[0]
        if condition in ("source_lost", "source_silent"):
            continue  # told of below, with its source
        detail = f"technical alarm {condition}: {alarm.get('detail') or alarm.get('text', '')}"
        remedy = f"journalctl -u edge-agent CONDITION={condition}; docs/doctor.md, Technical conditions"
        yield Finding("agent", "warn", detail, remedy)
    for source in status["sources"]:
        if source["state"] != "connected":
            detail = f"{source['name']} is {source['state']}: {source['detail'] or 'no reason told'}"
            yield Finding("source", "warn", detail, "is the monitor on, connected, and set to send to this gateway?")
    outputs = [("annunciator", each["kind"], each["fault"]) for each in status["annunciators"]]
    outputs += [("button", each["name"], each["fault"]) for each in status.get("buttons", [])]
    for part, name, fault in outputs:
        if fault:
            yield Finding(part, "FAIL", f"{name}: {fault}", "edge-agent self-test --annunciators: look and listen")


def check_metrics(loaded: Loaded) -> Iterator[Finding]:
    """Whether the port for Prometheus answers, when one is configured."""
    settings = loaded.config.metrics
    if not settings.listen:
        yield Finding("metrics", "ok", "no port for Prometheus is configured; edge-agent metrics prints the numbers")
        return
    if settings.allow_remote:
        remedy = "ss -ltn shows it; let a firewall allow the Prometheus server alone"
        yield Finding("metrics", "warn", f"{settings.listen} may be reached from the network", remedy)
    host, port = settings.address
    connection = http.client.HTTPConnection({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port, timeout=PORT_S)  # noqa: S104
    try:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        found = reply.read(65536)
    except (OSError, http.client.HTTPException) as error:
        remedy = f"journalctl -u edge-agent | grep 'metrics port'; ss -ltnp 'sport = :{port}' names who holds it"
        state = "FAIL" if answers(loaded.resolve(loaded.config.control.socket)) else "warn"
        yield Finding("metrics", state, f"{settings.listen}: {error}", remedy)
        return
    finally:
        connection.close()
    if reply.status != 200 or b"edge_agent_build_info" not in found:
        remedy = (
            "systemctl restart edge-agent" if reply.status == 503 else f"ss -ltnp 'sport = :{port}' names the program"
        )
        yield Finding("metrics", "FAIL", f"{settings.listen} answers with status {reply.status}", remedy)
    else:
        yield Finding("metrics", "ok", f"{settings.listen} gives the numbers")


def check_model(loaded: Loaded) -> Iterator[Finding]:
    """The risk model: its bundle is opened, and proven by its examples, as the agent will do it."""
    if loaded.config.model is None:
        yield Finding("model", "ok", "no model configured; limits work without one")
        return
    try:
        about = model_opener(loaded)().about
    except Exception as error:  # whatever a bundle or runtime does wrong is what is asked for here
        remedy = getattr(error, "remedy", "")
        detail = str(error).removesuffix(remedy).rstrip(" .") if remedy else f"{type(error).__name__}: {error}"
        yield Finding("model", "FAIL", detail, remedy or "docs/model.md says what a model needs")
        return
    yield Finding("model", "ok", f"{about.identity} in {about.runtime}")


def live(loaded: Loaded) -> dict[str, Any]:
    """The status of a running agent, empty when nobody answers."""
    try:
        with ControlClient(loaded.resolve(loaded.config.control.socket)) as client:
            return dict(client.call("status")["status"])
    except (ConnectionError, Refused, OSError, KeyError):
        return {}
