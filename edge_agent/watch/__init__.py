"""Observation to condition: limits with delay and deadband, arming, plausibility, freshness, sources, device alarms."""

from edge_agent.watch.room import Watch

__all__ = ["Watch"]
