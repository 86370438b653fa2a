"""The risk model live: windows go to a thread of its own, scores come back. It may add an alarm, and nothing else."""

from edge_agent.risk.live import OLDEST, SEXES, Risk
from edge_agent.risk.opener import model_opener, watched_opener

__all__ = ["OLDEST", "SEXES", "Risk", "model_opener", "watched_opener"]
