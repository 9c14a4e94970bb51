"""Tests of the benchmarks: runs, peers that are left out, compiled figures, READMEs and pictures."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks import compiling, measuring, pictures, programs, records, report
from tests.benchmarks.catalogue import CASES, publics

ROOT = Path(__file__).parent.parent


def test_every_public_loss_has_a_case():
    assert {case.loss for case in CASES} == publics()


def test_quick_run_appends_value_and_gradient_records(tmp_path: Path):
    output = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(record["loss"], record["what"]) for record in measured] == [
        (loss, what) for loss in ("mse_loss", "cross_entropy") for what in measuring.WHATS
    ]
    for record in measured:
        assert record["seconds"].keys() == {"jaxloss", "jax", "optax", "floor"}
        assert record["versions"]["jax"]
        assert record["device"]
        assert records.line(record) in done.stdout


def test_missing_peers_are_left_out_and_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for record in measuring.measure("mse_loss", "small", measuring.PEERS, 1, 0):
        assert record["seconds"].keys() == {"jaxloss", "jax", "floor"}
        assert record["left_out"] == dict.fromkeys({*measuring.PEERS} - {"jax"}, "not installed")


def test_wrong_peers_are_left_out_and_named():
    def side(value: float, slope: float) -> measuring.Side:
        return measuring.Side(lambda: value, lambda: (value, [np.float32([slope, 1])]), lambda result: result)

    def failing() -> None:
        raise NotImplementedError("not yet\nor ever")

    sides = {
        "jaxloss": side(2, 3),
        "off": side(2.1, 3),
        "steep": side(2, 3.1),
        "none": measuring.Side(None, failing, failing),
    }
    calls, wrong = measuring._agreeing(sides, "gradient", (np.float64(2), np.float32([3, 1])))
    assert [*calls] == ["jaxloss"]
    assert wrong == {
        "off": "wrong value, 2.1 for 2",
        "steep": "wrong gradient, off by 0.033 of its greatest",
        "none": "NotImplementedError: not yet",
    }
    calls, wrong = measuring._agreeing(sides, "forward", (np.float64(2), np.float32([3, 1])))
    assert [*calls] == ["jaxloss", "steep"]


def test_every_public_loss_has_a_program():
    assert {program.case.loss for program in programs.programs(publics(), "tpu")} == publics()


def test_fewest_bytes_are_those_of_inputs_and_gradients():
    mse, *_ = programs.programs(["mse_loss"], "tpu")
    assert mse.fewest("bfloat16") == 3 * 2 * 4096**2
    cosine, *_ = programs.programs(["cosine_embedding_loss"], "tpu")
    assert cosine.fewest("float32") == 4 * (6 * 4096**2 + 2 * 4096)


def test_plain_forms_accept_the_arguments():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for program in programs.programs(publics(), "tpu"):
            for side in program.sides().values():
                for dtype in program.dtypes:
                    assert jax.eval_shape(side, *program.arguments(dtype)).shape == ()


LOOP = """HloModule loop

%fused (a: f32[10,256], i: s32[]) -> f32[256] {
  %a = f32[10,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %wide = f32[10,256]{1,0} negate(%a)
  %row = f32[1,256]{1,0} dynamic-slice(%wide, %i, %i), dynamic_slice_sizes={1,256}
  ROOT %flat = f32[256]{0} bitcast(%row)
}

%updated (a: f32[10,256], row: f32[1,256], i: s32[]) -> f32[10,256] {
  %a = f32[10,256]{1,0} parameter(0)
  %row = f32[1,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %set = f32[10,256]{1,0} dynamic-update-slice(%a, %row, %i, %i)
}

%body (state: (s32[], f32[10,256])) -> (s32[], f32[10,256]) {
  %state = (s32[], f32[10,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %a = f32[10,256]{1,0} get-tuple-element(%state), index=1
  %row = f32[256]{0:T(256)S(1)} fusion(%a, %i), calls=%fused, backend_config={"estimated_cycles":"7"}
  %wide = f32[1,256]{1,0:T(256)S(1)} bitcast(%row)
  %b = f32[10,256]{1,0} fusion(%a, %wide, %i), calls=%updated, backend_config={"estimated_cycles":"5"}
  ROOT %next = (s32[], f32[10,256]{1,0}) tuple(%i, %b)
}

%condition (state: (s32[], f32[10,256])) -> pred[] {
  %state = (s32[], f32[10,256]{1,0}) parameter(0)
  %limit = s32[] constant(10)
  %i = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (a: f32[10,256]) -> f32[10,256] {
  %a = f32[10,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %state = (s32[], f32[10,256]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[10,256]{1,0}) while(%state), condition=%condition, body=%body<KNOWN>
  ROOT %b = f32[10,256]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize(
    ("known", "trips"),
    [("", 10), (', backend_config={"known_trip_count":{"n":"6"}}', 6)],
)
def test_loops_count_by_trips_and_slices_by_their_own_size(known: str, trips: int):
    module = compiling.parse(LOOP.replace("<KNOWN>", known))
    index, row = 4, 256 * 4
    counted = compiling.tally(module, module.entry, compiling.on_tpu)
    assert counted == {"cycles": trips * (7 + 5), "bytes": trips * 2 * (row + index)}
    counted = compiling.tally(module, module.entry, compiling.on_gpu)
    assert counted == {"kernels": trips * 2, "bytes": trips * 2 * (row + index)}


STRAIGHT = """HloModule straight

%dearer (a: bf16[64,32]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  ROOT %twice = bf16[64,32]{1,0} add(%a, %a), backend_config={"estimated_cycles":"9"}
}

%cheaper (a: bf16[64,32]) -> bf16[64,32] {
  %a = bf16[64,32]{1,0} parameter(0)
  ROOT %copied = bf16[64,32]{1,0} copy(%a), backend_config={"estimated_cycles":"3"}
}

ENTRY %main (a: bf16[64,32], b: bf16[32,16], p: pred[]) -> (f32[64,16], bf16[64,32]) {
  %a = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[32,16]{1,0} parameter(1)
  %p = pred[] parameter(2)
  %start = (bf16[32,16]{1,0:S(1)}, bf16[32,16]{1,0}, u32[]{:S(2)}) copy-start(%b)
  %done = bf16[32,16]{1,0:S(1)} copy-done(%start)
  %c = f32[64,16]{1,0} dot(%a, %done), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %d = bf16[64,32]{1,0} conditional(%p, %a, %a), true_computation=%dearer, false_computation=%cheaper
  ROOT %both = (f32[64,16]{1,0}, bf16[64,32]{1,0}) tuple(%c, %d)
}
"""


def test_products_branches_and_copies_are_counted_without_on_chip_memory():
    module = compiling.parse(STRAIGHT)
    a, b, c = 64 * 32 * 2, 32 * 16 * 2, 64 * 16 * 4
    counted = compiling.tally(module, module.entry, compiling.on_tpu)
    assert counted == {"cycles": 9, "bytes": b + (a + c) + 2 * a}
    counted = compiling.tally(module, module.entry, compiling.on_gpu)
    assert counted == {"kernels": 3, "bytes": b + (a + c) + 2 * a, "bf16": 2 * 64 * 32 * 16}
    assert compiling.seconds(counted) == pytest.approx(
        counted["bytes"] / 3.35e12 + 3 * 2e-6 + counted["bf16"] / 990e12
    )


def test_text_of_a_real_compiler_is_parsed():
    def loss(predictions: jax.Array, targets: jax.Array) -> jax.Array:
        return jnp.mean((predictions - targets) ** 2)

    arrays = (jax.ShapeDtypeStruct((1000, 1000), jnp.float32),) * 2
    module = compiling.parse(jax.jit(jax.grad(loss)).lower(*arrays).compile().as_text())
    assert compiling.tally(module, module.entry, compiling.on_gpu)["bytes"] == pytest.approx(12e6, rel=0.01)


def test_figures_over_a_limit_are_named():
    ours = {"bytes": 8e8, "accessed": 8e8, "temporaries": 100e6, "cycles": 3e6, "seconds": 1}
    peer = {"bytes": 7e8, "accessed": 8e8, "cycles": 2e6, "seconds": 2}
    record = {"loss": "cross_entropy", "size": "8 x 9", "dtype": "bfloat16", "fewest": 4e8, "input": 2e8}
    record |= {"jaxloss": ours, "peers": {"optax": peer, "one-hot": peer}}
    assert records.misses({**record, "target": "tpu"}) == [
        "cross_entropy 8 x 9 bfloat16: MB of temporaries 100.00 (at most 64)",
        "cross_entropy 8 x 9 bfloat16: bytes / best plain 1.14 (at most 1.05)",
        "cross_entropy 8 x 9 bfloat16: cycles / best plain 1.50 (at most 1.1)",
    ]
    assert [line.split(": ")[1] for line in records.misses({**record, "target": "gpu"})] == [
        "MB of temporaries 100.00 (at most 64)"
    ]
    record |= {"loss": "mse_loss", "target": "gpu", "peers": {}}
    assert [line.split(": ")[1] for line in records.misses(record)] == [
        "bytes / fewest 2.00 (at most 1.1)",
        "temporaries / input 0.50 (at most 0.02)",
    ]


def test_plain_forms_that_exceed_the_memory_are_left_out_and_named(monkeypatch):
    reason = "RESOURCE_EXHAUSTED: 17 GB exceed 16 GB"
    ours = {"cycles": 1e6, "bytes": 6e8, "accessed": 6e8, "temporaries": 2e6}
    outcomes = iter([ours, jax.errors.JaxRuntimeError(f"{reason}\nand more")])

    def figures(*arguments: object) -> dict[str, float]:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(compiling, "chip", lambda target: None)
    monkeypatch.setattr(compiling, "figures", figures)
    record = programs.measure("tpu", "nt_xent_loss", "32768 x 768", "float32")
    assert record["jaxloss"] == ours
    assert record["peers"] == {}
    assert record["left_out"] == {"one line": reason}
    assert "| one line exceeds the memory |" in report.compiled_table([record], "tpu")


def test_missing_compilers_are_named_with_the_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"tpu lacks libtpu, optax: pip install 'jax\[tpu\]' optax"):
        compiling.environment("tpu")
    with pytest.raises(SystemExit, match=r"gpu lacks .*: pip install .*jax-cuda12-plugin"):
        compiling.environment("gpu")


def test_compile_times_are_appended_and_printed(tmp_path: Path):
    output = tmp_path / "compiled.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks", "--compile", "cpu", "--losses", "mse_loss"]
    done = subprocess.run([*command, "--output", str(output)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = records.read_compiled(output)
    assert record["seconds"].keys() == {"jaxloss", "plain"}
    assert records.compiled_line(record) in done.stdout
    assert f"geometric mean over 1 cases: {records.build_ratio(record):.2f} times" in done.stdout


@pytest.mark.parametrize(
    ("path", "made"),
    [(report.README, report.readme_blocks), (report.OWN_README, report.own_blocks)],
    ids=["root", "benchmarks"],
)
def test_readme_shows_the_records(path: Path, made: Callable[..., dict[str, str]]):
    readme = path.read_text(encoding="utf-8")
    assert report.written(readme, made(records.read(), records.read_compiled())) == readme


def test_tables_have_every_record():
    results, compiled = records.read(), records.read_compiled()
    blocks = report.own_blocks(results, compiled)
    gradients = [record for record in results if record["what"] == "gradient"]
    assert blocks["timed"].count("\n| `") == len(gradients)
    for target in report.TARGETS:
        here = [record for record in compiled if record["target"] == target]
        assert blocks[target].count("\n| `") == len(here) > 0


def test_picture_shows_the_records():
    shown = []
    for (loss, size), devices in pictures.bars(records.read_compiled()).items():
        shown += [loss, size]
        for device, sides in devices.items():
            shown.append(device)
            for title, figures in sides.items():
                shown += [title, *(records.amount(figures[name]) for name in ("temporaries", "bytes"))]
    # Matplotlib writes each text as a comment before its outline.
    texts = re.findall("<!-- (.*) -->", pictures.MEMORY.read_text(encoding="utf-8"))
    assert texts[-len(shown) - 1 : -1] == shown


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.29, "3.4 times faster"),
        (1.3, "1.3 times slower"),
        (0.95, "1.05 times faster"),
        (1.004, "same time"),
        (281.6, "282 times slower"),
    ],
)
def test_speed_in_words(share: float, words: str):
    assert records.speed(share) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(3e5, "under 1 MB"), (8.27e6, "8.3 MB"), (139.7e6, "140 MB"), (999.7e6, "1.0 GB"), (10.51e9, "11 GB")],
)
def test_amount_of_bytes_in_words(size: float, words: str):
    assert records.amount(size) == words
