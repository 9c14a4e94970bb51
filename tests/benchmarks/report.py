"""Draws what was measured: README's table and a picture."""

from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")


def line(record: dict[str, Any]) -> str:
    """Returns one measurement in a line: jaxloss's time, and its ratio to each other's."""
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in record["ratios"].items())
    left_out = "".join(f"  ({name}: {why})" for name, why in record["left_out"].items())
    title = f"{record['loss']} {record['size']} {record['what']}"
    return f"{title:<55} {record['seconds']['jaxloss'] * 1e3:9.3f} ms  {ratios}{left_out}"


def write() -> None:
    pass
