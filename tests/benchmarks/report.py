"""Writes the tables of both READMEs, and the pictures, from the records."""

import statistics
from pathlib import Path

from tests.benchmarks import pictures, programs
from tests.benchmarks.catalogue import publics
from tests.benchmarks.records import (
    MAIN,
    NAMES,
    TARGETS,
    Record,
    amount,
    best_plain,
    build_ratio,
    find,
    grouped,
    ratio,
    read,
    read_compiled,
    setting,
    speed,
    traffic,
)

README = Path(__file__).parents[2] / "README.md"
OWN_README = Path(__file__).with_name("README.md")
COLUMNS = {  # of the timed table: title to the peers of which the fastest is shown
    "PyTorch": ("torch",),
    "torch.compile": ("torch.compile", "torch.compile(grad)"),
    "Optax": ("optax",),
    "the one-line form": ("jax",),
}
# Rows of the root README: programs of the picture, and one that was timed.
TELLING = (("tpu", "linear_cross_entropy"), ("gpu", "clip_loss"), ("tpu", "cross_entropy"))
TIMED = ("cross_entropy", "large")
SLOW = 1.5  # times the fastest plain form: a known miss
SOURCES = """\
"Measured" means CPU time of one thread. "Compiled" means figures taken from the compiled program, which was
not run: memory as allocated, cycles as the TPU's compiler estimates them and, for the H100, the time that its
bytes, products and launches take at peak rates. Times on a TPU or a GPU, and on several threads, are unknown.
"""


def write() -> None:
    """Writes the tables of both READMEs and the pictures."""
    results, compiled = read(), read_compiled()
    for path, made in ((README, readme_blocks), (OWN_README, own_blocks)):
        text = path.read_text(encoding="utf-8")
        path.write_text(written(text, made(results, compiled)), encoding="utf-8")
    pictures.draw(results, compiled)


def written(text: str, blocks: dict[str, str]) -> str:
    """Returns a README with each block between its markers."""
    for name, block in blocks.items():
        begin = f"<!-- {name}: written by python -m tests.benchmarks --report -->\n"
        end = f"<!-- /{name} -->\n"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = before + begin + block + end + after
    return text


def readme_blocks(results: list[Record], compiled: list[Record]) -> dict[str, str]:
    """Returns the block of the root README."""
    return {"speed": speed_table(results, compiled)}


def own_blocks(results: list[Record], compiled: list[Record]) -> dict[str, str]:
    """Returns the blocks of the README of the benchmarks."""
    return {
        "timed": timed_table(results),
        "vocabulary": vocabulary_table(compiled),
        "slower": slower_table(compiled),
        **{target: compiled_table(compiled, target) + missing(compiled, target) for target in TARGETS},
        "build": build(compiled),
    }


def speed_table(results: list[Record], compiled: list[Record]) -> str:
    """Returns the few rows of the root README."""
    rows = []
    shown = {loss: (size, dtype, words) for (loss, size, dtype), words, _ in pictures.SHOWN}
    for target, loss in TELLING:
        size, dtype, words = shown[loss]
        record = find(compiled, target=target, loss=loss, size=size, dtype=dtype)
        verdict = f"{speed(ratio(record, 'optax'))} than Optax, {_memory(record, 'optax')}"
        rows.append([f"`{loss}`, {words}", f"compiled for one {TARGETS[target]}", verdict])
    loss, size = TIMED
    record = find(results, loss=loss, size=size, what="gradient", threads=1)
    shares = {name: _share(record, peers) for name, peers in COLUMNS.items()}
    verdict = ", ".join(f"{speed(share)} than {name}" for name, share in shares.items() if share)
    rows.append([f"`{loss}`, {_shape(record)}, float32", f"measured on a CPU, {setting(record)}", verdict])
    return _markdown(["value and gradient", "compiled or measured", "jaxloss is"], rows) + "\n" + SOURCES


def _memory(record: Record, peer: str) -> str:
    """Compares the temporaries with those of a plain form, in words."""
    ours, theirs = (amount(side["temporaries"]) for side in (record["jaxloss"], record["peers"][peer]))
    if ours == theirs:
        return f"both with {ours} of extra memory"
    return f"with {ours} of extra memory instead of {theirs}"


def _shape(record: Record) -> str:
    """Returns the shape of the first argument, and which case of the loss it is."""
    option = "" if record["size"] in ("small", "cached", "large") else f", {record['size']}"
    return grouped(" x ".join(map(str, record["shape"]))) + option


def timed_table(results: list[Record]) -> str:
    """Returns value and gradient of every loss and size on each device."""
    parts = []
    for where in dict.fromkeys(map(setting, results)):
        rows = []
        for record in results:
            if setting(record) == where and record["what"] == "gradient":
                shares = [_share(record, peers) for peers in COLUMNS.values()]
                cells = [f"`{record['loss']}`", _shape(record), f"{record['seconds']['jaxloss'] * 1e3:.3g}"]
                floor = f"{record['ratios']['floor']:.2g}"
                rows.append([*cells, *(speed(share) if share else "" for share in shares), floor])
        head = [where, "first argument", "ms", *(f"than {name}" for name in COLUMNS), "times the floor"]
        parts.append(_markdown(head, rows))
    return "\n".join(parts)


def _share(record: Record, peers: tuple[str, ...]) -> float | None:
    """Returns the time of jaxloss as a share of the fastest peer's, None if none took part."""
    return max((record["ratios"][peer] for peer in peers if peer in record["ratios"]), default=None)


def vocabulary_table(compiled: list[Record]) -> str:
    """Returns time and memory of linear_cross_entropy on one and on 256 devices."""
    rows = []
    for record in compiled:
        if record["loss"] == "linear_cross_entropy" and record["target"] in TARGETS:
            size, _, layout = record["size"].partition(" on ")
            chip = TARGETS[record["target"]]
            device = f"256 {chip}, {layout}" if layout else f"one {chip}"
            ours, theirs = record["jaxloss"]["temporaries"], record["peers"]["optax"]["temporaries"]
            cells = [device, grouped(size), speed(ratio(record, "optax"))]
            rows.append([*cells, amount(theirs), amount(ours), f"{100 * ours / theirs:.0f} %"])
    return _markdown(["", "positions x features x classes", "time", "memory, Optax", "memory", "share"], rows)


def slower_table(compiled: list[Record]) -> str:
    """Returns the programs that are at least SLOW times slower than a plain form, the slowest first."""
    found = []
    for record in compiled:
        best = best_plain(record) if record["target"] in TARGETS else None
        if best is not None and ratio(record, best) >= SLOW:
            found.append((ratio(record, best), best, record))
    rows = []
    for share, best, record in sorted(found, key=lambda each: -each[0]):
        cells = [f"`{record['loss']}`", grouped(record["size"]), record["dtype"], TARGETS[record["target"]]]
        memory = [amount(side["temporaries"]) for side in (record["jaxloss"], record["peers"][best])]
        rows.append([*cells, speed(share), NAMES.get(best, best), *memory])
    return _markdown(["", "", "dtype", "compiled for", "jaxloss is", "than", "memory", "its memory"], rows)


def compiled_table(compiled: list[Record], target: str) -> str:
    """Returns the programs that were compiled for a target."""
    here = [record for record in compiled if record["target"] == target]
    counts = [f"{name} / fewest" for name in traffic(here[0])]
    head = [TARGETS[target], "", "dtype", *counts, "temporaries, MB", *["kernels"] * (target == "gpu")]
    head += [MAIN[target][2], "/ best plain form", "its temporaries, MB"]
    return _markdown(head, [_compiled_cells(record) for record in here])


def missing(compiled: list[Record], target: str) -> str:
    """Returns a sentence that names the programs without a record."""
    recorded = {tuple(record[name] for name in ("target", "loss", "size", "dtype")) for record in compiled}
    names = dict.fromkeys(
        f"`{program.case.loss}` {grouped(program.size)}"
        for program in programs.programs(publics(), target)
        for dtype in program.dtypes
        if (target, program.case.loss, program.size, dtype) not in recorded
    )
    return f"\nWithout a record: {', '.join(names)}.\n" if names else ""


def _compiled_cells(record: Record) -> list[str]:
    ours, best = record["jaxloss"], best_plain(record)
    figure, scale, _ = MAIN[record["target"]]
    cells = [f"`{record['loss']}`", grouped(record["size"]), record["dtype"]]
    cells += [f"{share:.2f}" for share in traffic(record).values()]
    cells += [f"{ours['temporaries'] / 1e6:.1f}", *([f"{ours['kernels']}"] if "kernels" in ours else [])]
    cells.append(f"{ours[figure] / scale:.3g}")
    if best is None:
        left_out = [f"{NAMES.get(name, name)} exceeds the memory" for name in record.get("left_out", {})]
        return [*cells, ", ".join(left_out), ""]
    theirs = record["peers"][best]["temporaries"]
    return [*cells, f"{ratio(record, best):.2f} ({NAMES.get(best, best)})", f"{theirs / 1e6:.1f}"]


def build(compiled: list[Record]) -> str:
    """Returns a sentence on the time to compile on a CPU."""
    ratios = {f"`{r['loss']}` {r['size']}": build_ratio(r) for r in compiled if r["target"] == "cpu"}
    mean, worst = statistics.geometric_mean(ratios.values()), max(ratios, key=ratios.__getitem__)
    return (
        f"Value and gradient of the {len(ratios)} recorded cases compile on a CPU in {mean:.2f} times the "
        f"time of their plain forms (geometric mean), at most {ratios[worst]:.2f} times ({worst}).\n"
    )


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
