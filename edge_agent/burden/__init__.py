"""Alarm burden: how many alarms there were, and how many there would be under other limits and delays."""
