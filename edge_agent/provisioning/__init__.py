"""Provisioning: from a bare device to an accepted bed, step by step, with a record that somebody signs for.

Theory of operation. `session.Session` goes through the steps in `steps.STEPS`, each a function that looks or asks and
gives one `Result`: passed, failed or skipped, with what was seen and what to do. It asks through a `Talk`: a person at
a terminal, or a file of answers that was checked whole before the first step. Nothing is written while the steps run;
the configuration and the acceptance record are written at the end, so that whoever is interrupted leaves nothing.

Where an agent runs on the gateway it holds lines, lamps and button, and it stays the one that alarms: values, self-test
and presses are then asked of it over its control socket. It is never stopped from here.

`detect` listens to serial lines and sends nothing, ever; `values` runs the source as the agent would.
"""
