"""Supervision: what else can fail, looked at in turn, each a technical condition of the gateway."""
