"""`edge-agent run`: the agent itself, and `check`: whether a configuration would run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import resource
import signal
from pathlib import Path

from edge_agent import NOTICE, __version__, journal
from edge_agent.agent import Agent
from edge_agent.annunciators import prefer_alarm_loop
from edge_agent.config import load
from edge_agent.parts import Parts, check

log = logging.getLogger("edge_agent")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run` and `check`."""
    run = subparsers.add_parser("run", help="run the agent")
    run.add_argument("--config", type=Path, required=True, metavar="FILE")
    run.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    run.set_defaults(func=run_agent)
    checked = subparsers.add_parser("check", help="validate a configuration")
    checked.add_argument("file", type=Path, metavar="FILE")
    checked.set_defaults(func=check_file)


def run_agent(arguments: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    parts = Parts(load(arguments.config))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold keys and patients
    preferred = prefer_alarm_loop()
    listener = journal.start("edge-agent", arguments.log_level)
    log.info("start version=%s realtime=%s notice=%r", __version__, preferred, NOTICE)
    try:
        asyncio.run(_serve(parts))
    except OSError as error:
        log.error("stop reason=%r", str(error))
        return 1
    finally:
        listener.stop()
    return 0


async def _serve(parts: Parts) -> None:
    agent = Agent(parts)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, agent.stop)
    await agent.run()
    log.info("stopped")


def check_file(arguments: argparse.Namespace) -> int:
    """Say what the configuration would run; a ConfigError ends in exit code 78."""
    for part, what in check(load(arguments.file)).items():
        print(f"{part}: {what}")
    print(f"{arguments.file}: valid")
    return 0
