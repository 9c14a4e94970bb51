"""Draws what was measured: README's table, and a picture of everything."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")
PICTURE = Path(__file__).with_name("results.svg")
README = Path(__file__).parents[2] / "README.md"
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
Record = dict[str, Any]


def read(path: Path = RESULTS) -> list[Record]:
    """Returns the last record of each measurement, in the order of the first."""
    latest = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(text)
        key = ("device", "threads", "loss", "size", "what")
        latest[tuple(record[name] for name in key)] = record
    return [*latest.values()]


def line(record: Record) -> str:
    """Returns one measurement in a line: jaxloss's time, and its ratio to each other's."""
    ratios = "  ".join(f"{name} {ratio:.2f}" for name, ratio in record["ratios"].items())
    left_out = "".join(f"  ({name}: {why})" for name, why in record["left_out"].items())
    title = f"{record['loss']} {record['size']} {record['what']}"
    return f"{title:<50} {record['seconds']['jaxloss'] * 1e3:9.3f} ms  {ratios}{left_out}"


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


def written(readme: str, block: str) -> str:
    """Returns README with the block in its place."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + block + END + after


def write() -> None:
    """Writes README's table and the picture."""
    records = read()
    README.write_text(written(README.read_text(encoding="utf-8"), table(records)), encoding="utf-8")
    _draw(records)


def _draw(records: list[Record]) -> None:
    """Draws jaxloss's time as a share of each peer's, a panel for each setting and for what was measured."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "jaxloss", "svg.fonttype": "none"})
    panels = list(dict.fromkeys((setting(record), record["what"]) for record in records))
    rows = list(dict.fromkeys(f"{record['loss']} {record['size']}" for record in records))
    figure = Figure(figsize=(4 + 4 * len(panels), 1 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
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
    axes[0].set_yticks(range(len(rows)), rows, fontsize="small")
    axes[0].invert_yaxis()
    axes[0].legend(fontsize="small")
    figure.savefig(PICTURE, metadata={"Date": None})
