"""Draws what was measured: the tables of both READMEs, and pictures of everything."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks import programs

RESULTS = Path(__file__).with_name("results.jsonl")
PICTURE = Path(__file__).with_name("results.svg")
README = Path(__file__).parents[2] / "README.md"
COMPILED = Path(__file__).with_name("compiled.jsonl")
COMPILED_PICTURE = Path(__file__).with_name("compiled.svg")
COMPILED_README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- speed: written by python -m tests.benchmarks --report -->\n", "<!-- /speed -->\n"

COLUMNS = {  # of the table: title to the peers of which the fastest is shown
    "PyTorch": ("torch",),
    "compiled": ("torch.compile", "torch.compile(grad)"),
    "Optax": ("optax",),
    "one line": ("jax",),
    "floor": ("floor",),
}
TELLING = (  # rows of the table
    ("cross_entropy", "small"),
    ("cross_entropy", "cached"),
    ("cross_entropy", "large"),
    ("cross_entropy", "vocabulary"),
    ("cross_entropy", "image"),
    ("binary_cross_entropy", "cached"),
    ("binary_cross_entropy_with_logits", "cached"),
    ("mse_loss", "cached"),
    ("huber_loss", "cached"),
    ("huber_loss", "large"),
    ("kl_div", "cached"),
    ("gaussian_nll_loss", "cached"),
    ("multi_margin_loss", "cached"),
    ("cosine_embedding_loss", "large"),
    ("triplet_margin_loss", "large"),
    ("ctc_loss", "cached"),
)
TARGETS = {"tpu": "TPU v5e", "gpu": "H100"}
MAIN = {"tpu": ("cycles", 1e6, "million cycles"), "gpu": ("seconds", 1e-3, "ms")}
Record = dict[str, Any]


def read(path: Path = RESULTS) -> list[Record]:
    """Returns the last record of each measurement, in the order of the first."""
    return _latest(path, ("device", "threads", "loss", "size", "what"))


def read_compiled(path: Path = COMPILED) -> list[Record]:
    """Returns the last record of each program, in the order of the first."""
    return _latest(path, ("target", "loss", "size", "dtype"))


def _latest(path: Path, key: Sequence[str]) -> list[Record]:
    latest = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        latest[tuple(record[name] for name in key)] = record
    return [*latest.values()]


def line(record: Record) -> str:
    """Returns one measurement in a line: jaxloss's time, and its ratio to each other's."""
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in record["ratios"].items())
    left_out = "".join(f"  ({name}: {why})" for name, why in record["left_out"].items())
    title = f"{record['loss']} {record['size']} {record['what']}"
    return f"{title:<50} {record['seconds']['jaxloss'] * 1e3:9.3f} ms  {ratios}{left_out}"


def compiled_line(record: Record) -> str:
    """Returns one program in a line: its figures, and its ratio to each plain form's."""
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
    temporaries = f"temporaries {ours['temporaries'] / 2**20:.1f} MB"
    return f"{title:<58} {counts}  {temporaries}  {ours[figure] / scale:.3g} {unit}  {ratios}".rstrip()


def traffic(record: Record) -> dict[str, float]:
    """Returns the counts of bytes of a compiled loss as multiples of the fewest."""
    names = [name for name in ("bytes", "accessed") if name in record["jaxloss"]]
    return {name: record["jaxloss"][name] / record["fewest"] for name in names}


def best_plain(record: Record) -> tuple[str, float] | None:
    """Returns which plain form is the fastest, and the loss's cycles or time as a multiple of its."""
    figure = MAIN[record["target"]][0]
    if not record["peers"]:
        return None
    best = min(record["peers"], key=lambda name: record["peers"][name][figure])
    return best, record["jaxloss"][figure] / record["peers"][best][figure]


def build_ratio(record: Record) -> float:
    """Returns the compile time on a CPU as a multiple of the plain form's."""
    return record["seconds"]["jaxloss"] / record["seconds"]["plain"]


def misses(record: Record) -> list[str]:
    """Returns a line for each figure that exceeds its limit."""
    title = f"{record['loss']} {record['size']} {record['dtype']}"
    compared = programs.limits(record).items()
    return [f"{title}: {name} {got:.2f} (at most {most})" for name, (got, most) in compared if got > most]


def setting(record: Record) -> str:
    """Returns where a record was measured."""
    threads = record["threads"]
    return record["device"] + (f", {threads} thread{'s' * (threads > 1)}" if threads else "")


def table(records: list[Record]) -> str:
    """Returns the most telling measurements in Markdown, a table for each device and number of threads."""
    parts = []
    for where in dict.fromkeys(map(setting, records)):
        gradients = {
            (record["loss"], record["size"]): record
            for record in records
            if setting(record) == where and record["what"] == "gradient"
        }
        rows = [_row(gradients[key]) for key in TELLING if key in gradients]
        head = ["", where, "ms", *COLUMNS]
        parts.append("\n".join(["| " + " | ".join(head) + " |", "| --- " * len(head) + "|", *rows]) + "\n")
    return "\n".join(parts)


def _row(record: Record) -> str:
    ratios = [
        [record["ratios"][peer] for peer in peers if peer in record["ratios"]] for peers in COLUMNS.values()
    ]
    shown = [f"{max(ratio):.2f}" if ratio else "" for ratio in ratios]
    shape = ", ".join(map(str, record["shape"]))
    cells = [f"`{record['loss']}`", shape, f"{record['seconds']['jaxloss'] * 1e3:.3g}", *shown]
    return "| " + " | ".join(cells) + " |"


def compiled_table(records: list[Record]) -> str:
    """Returns the compiled programs in Markdown: a table for each target, and the compile time on a CPU."""
    parts = []
    for target, title in TARGETS.items():
        here = [record for record in records if record["target"] == target]
        if here:
            head = [title, "", "dtype", *(f"{name} / fewest" for name in traffic(here[0])), "temporaries, MB"]
            head += ["kernels"] * (target == "gpu") + [MAIN[target][2], "/ best plain form"]
            rows = ["| " + " | ".join(_compiled_cells(record)) + " |" for record in here]
            parts.append("\n".join(["| " + " | ".join(head) + " |", "| --- " * len(head) + "|", *rows, ""]))
    ratios = {f"`{r['loss']}` {r['size']}": build_ratio(r) for r in records if r["target"] == "cpu"}
    if ratios:
        mean, worst = statistics.geometric_mean(ratios.values()), max(ratios, key=ratios.__getitem__)
        parts.append(
            f"Value and gradient of the {len(ratios)} cases compile on a CPU in {mean:.2f} times the time of "
            f"their plain forms (geometric mean), at most {ratios[worst]:.2f} times ({worst}).\n"
        )
    return "\n".join(parts)


def _compiled_cells(record: Record) -> list[str]:
    ours, best = record["jaxloss"], best_plain(record)
    figure, scale, _ = MAIN[record["target"]]
    cells = [f"`{record['loss']}`", record["size"], record["dtype"]]
    cells += [f"{ratio:.2f}" for ratio in traffic(record).values()]
    cells += [f"{ours['temporaries'] / 2**20:.1f}", *([f"{ours['kernels']}"] if "kernels" in ours else [])]
    return [*cells, f"{ours[figure] / scale:.3g}", f"{best[1]:.2f} ({best[0]})" if best else ""]


def written(readme: str, block: str) -> str:
    """Returns README with the block in its place."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + block + END + after


def write() -> None:
    """Writes the tables of both READMEs and the pictures."""
    records, compiled = read(), read_compiled()
    for path, block in ((README, table(records)), (COMPILED_README, compiled_table(compiled))):
        path.write_text(written(path.read_text(encoding="utf-8"), block), encoding="utf-8")
    _draw(records)
    _draw_compiled(compiled)


def _draw(records: list[Record]) -> None:
    """Draws jaxloss's time as a share of each peer's, a panel for each setting and for what was measured."""
    panels = list(dict.fromkeys((setting(record), record["what"]) for record in records))
    rows = list(dict.fromkeys(f"{record['loss']} {record['size']}" for record in records))
    figure, axes = _panels(len(panels), rows)
    peers = list(dict.fromkeys(peer for record in records for peer in record["ratios"] if peer != "floor"))
    for panel, (where, what) in zip(axes, panels, strict=True):
        here = [record for record in records if (setting(record), record["what"]) == (where, what)]
        for peer, marker in zip(peers, "osD^v", strict=False):
            points = [(r["ratios"][peer], f"{r['loss']} {r['size']}") for r in here if peer in r["ratios"]]
            at = [rows.index(row) for _, row in points]
            panel.plot([ratio for ratio, _ in points], at, marker, markersize=4, label=peer)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", title=f"{what}\n{where}", xlabel="time of jaxloss / time of the other")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    figure.savefig(PICTURE, metadata={"Date": None})


def _draw_compiled(records: list[Record]) -> None:
    """Draws bytes / fewest and cycles or time / best plain form, a panel for each target."""
    targets = [target for target in TARGETS if any(record["target"] == target for record in records)]
    records = [record for record in records if record["target"] in targets]
    rows = list(dict.fromkeys(f"{record['loss']} {record['size']}" for record in records))
    figure, axes = _panels(len(targets), rows)
    for panel, target in zip(axes, targets, strict=True):
        for dtype, color in zip(programs.DTYPES, ("C0", "C1"), strict=True):
            here = [record for record in records if (record["target"], record["dtype"]) == (target, dtype)]
            plain = [(record, best_plain(record)) for record in here]
            timed = [(record, best[1]) for record, best in plain if best]
            moved = [(record, traffic(record)["bytes"]) for record in here]
            named = (f"{MAIN[target][0]} / best plain", timed, "o"), ("bytes / fewest", moved, "|")
            for label, points, marker in named:
                at = [rows.index(f"{record['loss']} {record['size']}") for record, _ in points]
                ratios = [ratio for _, ratio in points]
                panel.plot(ratios, at, marker, color=color, markersize=6, label=f"{label}, {dtype}")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", title=TARGETS[target])
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    figure.savefig(COMPILED_PICTURE, metadata={"Date": None})


def _panels(count: int, rows: list[str]) -> tuple[Any, Any]:
    """Returns a figure and its panels side by side, which share a row for each title."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "jaxloss", "svg.fonttype": "none"})
    figure = Figure(figsize=(4 + 4 * count, 1 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    axes[0].set_yticks(range(len(rows)), rows, fontsize="small")
    axes[0].invert_yaxis()
    return figure, axes
