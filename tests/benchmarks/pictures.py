"""Draws the records: one picture for the README, and two of everything."""

from pathlib import Path
from typing import Any

from tests.benchmarks import programs
from tests.benchmarks.records import MAIN, TARGETS, Record, amount, best_plain, find, ratio, setting, traffic

MEMORY = Path(__file__).with_name("memory.svg")
RESULTS = Path(__file__).with_name("results.svg")
COMPILED = Path(__file__).with_name("compiled.svg")
SHOWN = (  # loss, size and dtype of the README's picture, the size in words, and the bars
    (
        ("linear_cross_entropy", "8192 x 4096 x 128256", "bfloat16"),
        "8192 tokens, 4096 features, 128,256 classes, bfloat16",
        {"jaxloss": "jaxloss", "optax": "Optax"},
    ),
    (
        ("clip_loss", "32768 x 768", "float32"),
        "32,768 pairs, 768 features, float32",
        {"jaxloss": "jaxloss", "optax": "Optax"},
    ),
    (
        ("cross_entropy", "8192 x 128256", "bfloat16"),
        "8192 tokens, 128,256 classes, bfloat16",
        {"jaxloss": "jaxloss", "optax": "Optax", "one line": "log_softmax"},
    ),
)
MEASURES = {  # figure to the head of its column and the line below
    "temporaries": ("Extra memory", "beyond inputs and gradients"),
    "bytes": ("Bytes moved", "to and from memory"),
}
WIDTH, ROW, BAR = 520, 17.5, 108  # points
COLUMNS = {"temporaries": 158, "bytes": 346}  # where the bars begin
INK, MUTED, OURS, OTHERS = "#1f2328", "#59636e", "#0969da", "#b1bac4"
Sides = dict[str, dict[str, float]]  # figures by the title of a bar


def draw(results: list[Record], compiled: list[Record]) -> None:
    """Writes all pictures."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "jaxloss"}):
        _draw_memory(compiled).savefig(MEMORY, metadata={"Date": None})
    with mpl.rc_context({"svg.hashsalt": "jaxloss", "svg.fonttype": "none"}):
        _draw_results(results).savefig(RESULTS, metadata={"Date": None})
        _draw_compiled(compiled).savefig(COMPILED, metadata={"Date": None})


def bars(compiled: list[Record]) -> dict[tuple[str, str], dict[str, Sides]]:
    """Returns the bars of the README's picture by loss and size, then by device."""
    found: dict[tuple[str, str], dict[str, Sides]] = {}
    for (loss, size, dtype), words, names in SHOWN:
        for target, device in TARGETS.items():
            record = find(compiled, target=target, loss=loss, size=size, dtype=dtype)
            sides = {"jaxloss": record["jaxloss"], **record["peers"]}
            group = found.setdefault((loss, words), {})
            group[device] = {title: sides[name] for name, title in names.items()}
    return found


def _draw_memory(compiled: list[Record]) -> Any:
    """Draws memory and bytes of three losses; the coordinates are points from the top left."""
    groups = bars(compiled)
    rows = sum(len(sides) for devices in groups.values() for sides in devices.values())
    height = 129 + rows * ROW + 41 * len(groups)
    figure, text, bar = _canvas(height)
    text(14, 24, "No copy of the logits", size=18, weight="bold")
    text(14, 46, "What value and gradient take: jaxloss in blue, plain forms in gray", size=13)
    for name, (head, below) in MEASURES.items():
        text(COLUMNS[name], 78, head, size=15, weight="bold")
        text(COLUMNS[name], 95, below, size=12, color=MUTED)
    top = 122
    for (loss, words), devices in groups.items():
        text(14, top, loss, size=14, weight="bold")
        text(WIDTH - 14, top, words, size=11, color=MUTED, ha="right")
        top += 21
        most = {name: max(s[name] for sides in devices.values() for s in sides.values()) for name in MEASURES}
        for device, sides in devices.items():
            text(14, top, device, size=13)
            for title, figures in sides.items():
                color = OURS if title == "jaxloss" else INK
                text(COLUMNS["temporaries"] - 8, top, title, size=13, ha="right", color=color)
                for name, left in COLUMNS.items():
                    length = BAR * figures[name] / most[name]
                    bar(left, top, length, OURS if title == "jaxloss" else OTHERS)
                    text(left + length + 5, top, amount(figures[name]), size=13, color=color)
                top += ROW
            top += 4
        top += 12
    note = "Read off the compiled programs, not run. Shorter is better. Each loss has its own scale."
    text(14, height - 14, note, size=11, color=MUTED)
    return figure


def _canvas(height: float) -> tuple[Any, Any, Any]:
    """Returns a figure, and functions that write text and draw a bar in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")

    def text(x: float, y: float, words: str, **style: Any) -> None:
        axes.text(x, y, words, **{"color": INK, "va": "center_baseline", **style})

    def bar(x: float, y: float, length: float, color: str) -> None:
        axes.barh(y, max(length, 1), ROW - 5, x, color=color)

    return figure, text, bar


def _draw_results(records: list[Record]) -> Any:
    """Draws the time of jaxloss as a share of each peer's: a panel for value, one for value and gradient."""
    panels = list(dict.fromkeys((setting(record), record["what"]) for record in records))
    rows = list(dict.fromkeys(f"{record['loss']} {record['size']}" for record in records))
    figure, axes = _panels(len(panels), rows)
    peers = list(dict.fromkeys(peer for record in records for peer in record["ratios"] if peer != "floor"))
    for panel, (where, what) in zip(axes, panels, strict=True):
        here = [record for record in records if (setting(record), record["what"]) == (where, what)]
        for peer, marker in zip(peers, "osD^v", strict=False):
            points = [(r["ratios"][peer], f"{r['loss']} {r['size']}") for r in here if peer in r["ratios"]]
            at = [rows.index(row) for _, row in points]
            panel.plot([share for share, _ in points], at, marker, markersize=4, label=peer)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", title=f"{what}\n{where}", xlabel="time of jaxloss / time of the other")
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    return figure


def _draw_compiled(records: list[Record]) -> Any:
    """Draws bytes / fewest and cycles or time / best plain form, a panel for each target."""
    targets = [target for target in TARGETS if any(record["target"] == target for record in records)]
    records = [record for record in records if record["target"] in targets]
    rows = list(dict.fromkeys(f"{record['loss']} {record['size']}" for record in records))
    figure, axes = _panels(len(targets), rows)
    for panel, target in zip(axes, targets, strict=True):
        for dtype, color in zip(programs.DTYPES, ("C0", "C1"), strict=True):
            here = [record for record in records if (record["target"], record["dtype"]) == (target, dtype)]
            plain = [(record, best_plain(record)) for record in here]
            timed = [(record, ratio(record, best)) for record, best in plain if best]
            moved = [(record, traffic(record)["bytes"]) for record in here]
            named = (f"{MAIN[target][0]} / best plain", timed, "o"), ("bytes / fewest", moved, "|")
            for label, points, marker in named:
                at = [rows.index(f"{record['loss']} {record['size']}") for record, _ in points]
                shares = [share for _, share in points]
                panel.plot(shares, at, marker, color=color, markersize=6, label=f"{label}, {dtype}")
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", title=TARGETS[target])
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    return figure


def _panels(count: int, rows: list[str]) -> tuple[Any, Any]:
    """Returns a figure and its panels side by side, which share a row for each title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 + 4 * count, 1 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    axes[0].set_yticks(range(len(rows)), rows, fontsize="small")
    axes[0].invert_yaxis()
    return figure, axes
