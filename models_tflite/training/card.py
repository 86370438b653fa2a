"""The model card of a bundle, in Markdown: what it is for and not for, where it comes from, and how good it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models_tflite.training import report

NAME = "MODEL_CARD.md"


def write(folder: Path, found: dict[str, Any], facts: dict[str, Any], studied: dict[str, Any], shares: str) -> Path:
    """Write the card into the bundle's folder; returns its path."""
    path = folder / NAME
    path.write_text(report.markdown(found) + json.dumps([facts, studied]) + shares)
    return path
