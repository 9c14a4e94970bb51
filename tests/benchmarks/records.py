"""Reads the records of both files and computes the ratios that the tables and pictures show."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import programs
from tests.benchmarks.catalogue import CASES

RESULTS = Path(__file__).with_name("results.jsonl")
COMPILED = Path(__file__).with_name("compiled.jsonl")
TARGETS = {"tpu": "TPU v5e", "gpu": "H100"}
MAIN = {"tpu": ("cycles", 1e6, "million cycles"), "gpu": ("seconds", 1e-3, "ms")}
NAMES = {"optax": "Optax", "one-hot": "log_softmax"}  # of plain forms, where the record has another
Record = dict[str, Any]


def read(path: Path = RESULTS) -> list[Record]:
    """Returns the last record of each measurement, in the order of the first."""
    return _latest(path, ("device", "threads", "loss", "size", "what"))


def read_compiled(path: Path = COMPILED) -> list[Record]:
    """Returns the last record of each program, in the order of the catalogue."""
    losses = list(dict.fromkeys(case.loss for case in CASES))
    records = _latest(path, ("target", "loss", "size", "dtype"))
    return sorted(records, key=lambda record: losses.index(record["loss"]))


def _latest(path: Path, key: Sequence[str]) -> list[Record]:
    latest = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        latest[tuple(record[name] for name in key)] = record
    return [*latest.values()]


def find(records: list[Record], **values: Any) -> Record:
    """Returns the only record with these values."""
    (record,) = [record for record in records if values.items() <= record.items()]
    return record


def line(record: Record) -> str:
    """Returns one measurement as a line: the time of jaxloss, and its ratio to each peer's."""
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in record["ratios"].items())
    left_out = "".join(f"  ({name}: {why})" for name, why in record["left_out"].items())
    title = f"{record['loss']} {record['size']} {record['what']}"
    return f"{title:<50} {record['seconds']['jaxloss'] * 1e3:9.3f} ms  {ratios}{left_out}"


def compiled_line(record: Record) -> str:
    """Returns one program as a line: its figures, and its ratio to each plain form's."""
    title = f"{record['loss']} {record['size']} {record['dtype']}"
    if record["target"] == "cpu":
        took = record["seconds"]
        return f"{title:<58} {took['jaxloss']:.3f} s / {took['plain']:.3f} s = {build_ratio(record):.2f}"
    figure, scale, unit = MAIN[record["target"]]
    ours = record["jaxloss"]
    counts = "  ".join(f"{name} / fewest {ratio:.2f}" for name, ratio in traffic(record).items())
    if "kernels" in ours:
        counts += f"  kernels {ours['kernels']}"
    ratios = "  ".join(f"{name} {ours[figure] / peer[figure]:.2f}" for name, peer in record["peers"].items())
    left_out = "".join(f"  ({name}: {why})" for name, why in record.get("left_out", {}).items())
    temporaries = f"temporaries {ours['temporaries'] / 1e6:.1f} MB"
    shown = f"{title:<58} {counts}  {temporaries}  {ours[figure] / scale:.3g} {unit}  {ratios}"
    return shown.rstrip() + left_out


def traffic(record: Record) -> dict[str, float]:
    """Returns the counts of bytes of a compiled loss as multiples of the fewest."""
    names = [name for name in ("bytes", "accessed") if name in record["jaxloss"]]
    return {name: record["jaxloss"][name] / record["fewest"] for name in names}


def best_plain(record: Record) -> str | None:
    """Returns the name of the fastest plain form, None if there is none."""
    figure = MAIN[record["target"]][0]
    return min(record["peers"], key=lambda name: record["peers"][name][figure], default=None)


def ratio(record: Record, peer: str, figure: str | None = None) -> float:
    """Returns a figure of a compiled loss, by default its cycles or time, as a multiple of a plain form's."""
    figure = figure or MAIN[record["target"]][0]
    return record["jaxloss"][figure] / record["peers"][peer][figure]


def build_ratio(record: Record) -> float:
    """Returns the compile time on a CPU as a multiple of the plain form's."""
    return record["seconds"]["jaxloss"] / record["seconds"]["plain"]


def misses(record: Record) -> list[str]:
    """Returns a line for each figure that exceeds its limit."""
    title = f"{record['loss']} {record['size']} {record['dtype']}"
    compared = programs.limits(record).items()
    return [f"{title}: {name} {got:.2f} (at most {most})" for name, (got, most) in compared if got > most]


def setting(record: Record) -> str:
    """Returns the device and number of threads of a measurement."""
    threads = record["threads"]
    return record["device"] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def amount(size: float) -> str:
    """Returns a number of bytes with its unit: '140 MB'."""
    if size < 1e6:
        return "under 1 MB"
    scale, unit = (1e9, "GB") if size >= 999.5e6 else (1e6, "MB")
    shown = size / scale
    return f"{shown:.0f} {unit}" if shown >= 9.95 else f"{shown:.1f} {unit}"


def speed(share: float) -> str:
    """Returns a time as a share of another's in words: '3.4 times faster'."""
    factor = max(share, 1 / share)
    shown = f"{factor:.{2 if factor < 1.095 else 1 if factor < 9.95 else 0}f}"
    return "same time" if shown == "1.00" else f"{shown} times {'faster' if share < 1 else 'slower'}"


def grouped(size: str) -> str:
    """Returns a size with separators in its long numbers: '8192 x 128,256'."""
    return re.sub(r"\d{5,}", lambda number: f"{int(number.group()):,}", size)
