"""The examples: their first step, their results and baselines, and their checkpoints."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import special
from sklearn.metrics import jaccard_score

from examples import (
    __main__,
    binary_classification,
    classification,
    contrastive,
    data_parallel,
    language_model,
    preference,
    quantile_regression,
    regression,
    segmentation,
)
from examples._common import batches, bins_from_zero
from jaxloss.training import Checkpoints, create_train_state, evaluate, train_step

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
EXAMPLES = [regression, classification, binary_classification]
LOSSES = re.compile(
    r"^Initial Loss: (\d+\.\d{4})\nLoss after one optimization step: (\d+\.\d{4})\n", re.MULTILINE
)


def agrees_with_readme(example, result):
    """Compares a result with its row in the README's summary; the last digits depend on the CPU."""
    name = example.__name__.removeprefix("examples.")
    columns = (rf"{re.escape(result.quantity)} +(\S+)", rf"{re.escape(result.baseline)} +(\S+)")
    [numbers] = re.findall(rf"^{name} +{'  '.join(columns)} +\S+$", README, re.MULTILINE)
    found = (float(number.rstrip("%")) / (100 if number.endswith("%") else 1) for number in numbers)
    np.testing.assert_allclose(list(found), (result.value, result.baseline_value), rtol=0.1, atol=0.02)


def test_readme_has_a_command_a_summary_row_and_a_small_picture_of_every_example():
    names = [example.__name__ for example in __main__.EXAMPLES]
    commands = re.findall(r"^\| \[`python -m (\S+)`\]", README, re.MULTILINE)
    assert commands == [*names, data_parallel.__name__]
    names = [name.removeprefix("examples.") for name in names]
    summary = re.search(r"^example +quantity .*?^All examples", README, re.MULTILINE | re.DOTALL)
    assert [row.split()[0] for row in summary[0].splitlines()[1:-1]] == names
    pictures = [ROOT / "examples" / "gallery" / f"plot_{name}.png" for name in names]
    assert re.findall(r"\]\((gallery/\S+)\)", README) == [f"gallery/{picture.name}" for picture in pictures]
    assert sum(picture.stat().st_size for picture in pictures) < 600_000


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("seed", range(3))
def test_one_step_lowers_the_loss(example, seed, capsys):
    result = example.main(["--steps", "3", "--seed", str(seed)])
    output = capsys.readouterr().out
    [(before, after)] = LOSSES.findall(output)
    assert float(after) < float(before)
    assert np.isfinite(result.value)
    assert output.startswith("One step on random data. In PyTorch: ")
    assert re.search(r"^Took \d+\.\d s\. Next: .*\.\n\Z", output, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "least", "baseline"),
    [(regression, 0.47, 0), (classification, 0.97, 0.102), (binary_classification, 0.95, 0.627)],
)
def test_default_steps_suffice(example, least, baseline, capsys):
    result = example.main([])
    assert result.value > least
    np.testing.assert_allclose(result.baseline_value, baseline, atol=5e-4)
    agrees_with_readme(example, result)
    assert f"\n{result}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_all_run_in_turn_draw_a_plot_each_and_end_with_a_table(tmp_path, capsys):
    __main__.main(["--steps", "3", "--plot", str(tmp_path / "plot.png")])
    output = capsys.readouterr().out
    assert len(LOSSES.findall(output)) == 3
    assert (
        len(re.findall(r"^(?:R²|Accuracy) on .*: -?\d\.\d{3} \(.*: \d\.\d{3}\)$", output, re.MULTILINE)) == 3
    )
    assert (
        len(re.findall(r"^Mean IoU .*: \d\.\d{3} \(all background: 0\.\d{3}\)$", output, re.MULTILINE)) == 3
    )
    assert len(re.findall(r"^Nearest .*: \d\.\d{3} \(chance: 0\.\d{3}\)$", output, re.MULTILINE)) == 4
    *_, title, rule, header, table = output.split("\n", output.count("\n") - len(__main__.EXAMPLES) - 1)
    assert (title, rule) == ("Summary", "-------")
    *rows, total = table.splitlines()
    seconds = [float(row.split()[-1]) for row in rows]
    found = re.fullmatch(r"All examples: (\d+\.\d) s, with imports", total)
    assert sum(seconds) < float(found[1]) + 0.5
    for example, row in zip(__main__.EXAMPLES, rows, strict=True):
        name = example.__name__.removeprefix("examples.")
        assert row.startswith(f"{name} ")
        assert len(row) == len(header)
        assert (tmp_path / f"plot_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_intervals_cover_80_percent_and_are_narrower_than_constant_ones(capsys):
    width = quantile_regression.main([])
    [covered] = re.findall(r"^Held-out patients .*: (0\.\d+) \(", capsys.readouterr().out, re.MULTILINE)
    assert 0.75 < float(covered) < 0.85
    assert width.value < 0.8 * width.baseline_value
    agrees_with_readme(quantile_regression, width)


def values(pattern, output):
    """Returns the printed values by the text that the pattern's group matches."""
    return {name: float(value) for name, value in re.findall(rf"^{pattern}: (\S+) \(", output, re.MULTILINE)}


@pytest.mark.slow
def test_every_loss_segments_the_digits(capsys):
    result = segmentation.main([])
    found = values(r"Mean IoU on held-out images, (.*)", capsys.readouterr().out)
    assert found.keys() == segmentation.LOSSES.keys()
    assert min(found.values()) > 0.4
    assert result.baseline_value < 0.1
    assert found["sum"] == round(result.value, 3)
    agrees_with_readme(segmentation, result)


def test_faint_pixels_of_digits_are_ignored_by_every_loss_and_by_the_metric():
    digits = np.full((1, 64), 16.0)
    digits[0, :8] = 5  # the first row is faint
    images, labels = segmentation.scatter(digits, np.array([3]), 2, np.random.default_rng(0))
    assert {*np.unique(labels)} == {segmentation.IGNORED, 0, 4}
    assert images[labels == 4].mean() > 0.9
    truth = np.where(labels == segmentation.IGNORED, 7, labels)
    logits = 20 * np.eye(segmentation.CLASSES, dtype=np.float32)[truth]
    wrong = logits + 40 * (labels == segmentation.IGNORED)[..., None] * np.eye(11, dtype=np.float32)[9]
    for loss in segmentation.LOSSES.values():
        np.testing.assert_array_equal(loss(wrong, labels), loss(logits, labels))
    state = create_train_state((lambda params, inputs: inputs, {}), optax.identity())
    for found in (logits, wrong):
        assert segmentation.mean_iou(state, found, labels) == 1


def test_mean_iou_is_that_of_scikit_learn_over_all_images():
    rng = np.random.default_rng(0)
    labels = rng.choice([segmentation.IGNORED, *range(segmentation.CLASSES)], (70, 4, 4))
    logits = rng.normal(size=(*labels.shape, segmentation.CLASSES)).astype(np.float32)
    kept = labels != segmentation.IGNORED
    expected = jaccard_score(labels[kept], logits.argmax(axis=-1)[kept], average="macro")
    state = create_train_state((lambda params, inputs: inputs, {}), optax.identity())
    np.testing.assert_allclose(segmentation.mean_iou(state, logits, labels), expected, rtol=1e-6)


@pytest.mark.slow
def test_embeddings_are_better_than_pixels_and_best_with_labels(capsys):
    result = contrastive.main([])
    found = values(r"Nearest neighbour of held-out digits, (.*)", capsys.readouterr().out)
    assert found["untrained"] < found["pixels"] < 0.75
    assert found["NT-Xent"] > found["pixels"] + 0.08
    assert found["supervised"] > found["NT-Xent"] + 0.04
    assert (round(result.value, 3), round(result.baseline_value, 3)) == (found["supervised"], found["pixels"])
    agrees_with_readme(contrastive, result)


def test_only_the_supervised_loss_reads_the_labels():
    embeddings = np.random.default_rng(0).normal(size=(6, 2, contrastive.FEATURES)).astype(np.float32)
    alone, paired = np.arange(6), np.arange(6) // 2
    assert contrastive.of_views(embeddings, alone) == contrastive.of_views(embeddings, paired)
    assert contrastive.of_labels(embeddings, alone) != contrastive.of_labels(embeddings, paired)


def test_moved_digits_are_complete_and_distinct():
    digit, rng = np.full((1, 64), 16.0), np.random.default_rng(0)
    views = np.concatenate([contrastive.moved(digit, rng) for _ in range(20)])
    assert views.shape == (20, contrastive.SIZE**2)
    # From centre to centre of its pixels it is 7 wide, times a scale between 0.85 and 1.2.
    ink = views.sum(1)
    assert (7 * 0.8) ** 2 < ink.min() < ink.max() < (7 * 1.25) ** 2
    assert np.abs(np.corrcoef(views) - np.eye(20)).max() < 0.999


def test_a_batch_depends_on_the_seed_and_its_step_alone():
    data = np.arange(40.0), {"labels": np.arange(40)}
    drawn = list(batches(data, 8, range(5), 0))
    for (inputs, targets), (again, _) in zip(drawn[3:], batches(data, 8, range(3, 5), 0), strict=True):
        np.testing.assert_array_equal(inputs, targets["labels"])
        np.testing.assert_array_equal(inputs, again)
        assert len({*inputs}) == 8
    others = [
        *drawn[1:],
        *batches(data, 8, range(1), 1),
        (np.random.default_rng(0).choice(40, 8, replace=False), 0),
    ]
    assert not any(np.array_equal(drawn[0][0], inputs) for inputs, _ in others)


@pytest.mark.parametrize("values", [[-3.0, 5.0], [1.0, 2.0], [-2.0, -1.0], [0.0, 0.0], [-1e-9, 4.0]])
def test_bins_have_an_edge_at_zero_and_hold_all_values(values):
    edges = bins_from_zero(np.array(values))
    assert 0 in edges
    assert edges[0] <= min(values) <= max(values) <= edges[-1]
    assert 1 <= len(edges) - 1 <= 42
    np.testing.assert_allclose(np.diff(edges), edges[1] - edges[0])


@pytest.mark.slow
def test_the_language_model_predicts_better_than_character_frequencies_on_any_devices(capsys):
    result = language_model.main([])
    output = capsys.readouterr().out
    assert result.value < 0.6 * result.baseline_value
    agrees_with_readme(language_model, result)
    cost = r"(\d+\.\d) MB, \d+\.\d ms"
    [(ours, plain)] = re.findall(rf"32000 classes: {cost}; plain: {cost}$", output, re.MULTILINE)
    assert float(ours) < float(plain) / 20

    on_eight = subprocess.run(
        [sys.executable, "-m", "examples.language_model", "--steps", "1"],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    first = re.compile(r"^  Step +1/\d+  Loss: (.*)$", re.MULTILINE)
    assert {*first.findall(on_eight)} == {*first.findall(output)} != {*()}


@pytest.mark.parametrize("tied", [True, False])
def test_the_language_model_learns_its_last_kernel_and_sees_sixteen_characters(tied):
    model = language_model.CharacterModel(5, 8, tied=tied, rngs=nnx.Rngs(0))
    state = create_train_state(model, optax.sgd(0.1))
    before = model.embedding.embedding[...]
    characters, changed = np.zeros((2, 1, 32), int)
    changed[0, 5] = 1
    differs = state.apply_fn(state.params, characters)[0] != state.apply_fn(state.params, changed)[0]
    np.testing.assert_array_equal(differs[0].any(-1), np.isin(np.arange(32), np.arange(5, 21)))
    state, _ = train_step(state, characters, characters + 1, loss=language_model.criterion)
    # Character 2 is nowhere in the text: its embedding moves only where the loss sees it, in the last kernel.
    assert jnp.any(state.params["embedding"]["embedding"][2] != before[2]) == tied
    if not tied:
        assert jnp.all(state.params["output"]["kernel"] != model.output.kernel[...])


@pytest.mark.slow
def test_tuning_raises_the_share_of_upper_case_letters(capsys):
    result = preference.main([])
    assert result.baseline_value < 0.04
    assert result.value > 3 * result.baseline_value
    agrees_with_readme(preference, result)
    found = values("(Loss on held-out pairs|Held-out pairs in the right order)", capsys.readouterr().out)
    assert found["Loss on held-out pairs"] < 0.55  # log 2, 0.69, before the tuning
    assert found["Held-out pairs in the right order"] > 0.7


def test_answers_with_more_upper_case_letters_are_preferred_whatever_the_prompt():
    alphabet = np.array(list("Aab"))
    pairs = np.ones((3, 2, preference.PROMPT + 4), int)
    pairs[:, :, -3:] = [[[1, 2, 0], [0, 2, 0]], [[1, 0, 2], [0, 2, 1]], [[0, 0, 0], [2, 2, 2]]]
    pairs[:, 0, : preference.PROMPT] = 0
    first = preference.preferred_first(pairs, alphabet)
    np.testing.assert_array_equal(first, [pairs[0, ::-1], pairs[2]])


def test_log_probs_are_of_the_characters_of_the_answer_without_the_prompt():
    random = np.random.default_rng(0)
    hidden, kernel = random.normal(size=(3, 2, 20, 4)), random.normal(size=(4, 5))
    characters = random.integers(0, 5, (3, 2, 20))
    log_softmax = np.log(special.softmax(hidden @ kernel, axis=-1))
    of_characters = np.take_along_axis(log_softmax, characters[..., None], axis=-1)[..., 0]
    found = preference.log_probs((jnp.asarray(hidden), jnp.asarray(kernel)), characters)
    np.testing.assert_allclose(found, of_characters[..., preference.PROMPT - 1 :].sum(-1), rtol=1e-5)


def test_dpo_starts_at_the_reference_and_one_step_prefers_the_chosen_answers():
    model = language_model.CharacterModel(5, 8, tied=True, rngs=nnx.Rngs(0))
    pairs = np.random.default_rng(0).integers(0, 5, (8, 2, preference.PROMPT + 8))
    inputs, targets = preference.with_reference(model, pairs)
    state = create_train_state(model, optax.sgd(1.0))
    margins = []
    for _ in range(2):
        margins.append(preference.margins(state.apply_fn(state.params, inputs), targets))
        state, loss = train_step(state, inputs, targets, loss=preference.criterion)
    np.testing.assert_allclose(margins[0], 0, atol=1e-6)
    assert margins[1].mean() > 0
    assert loss < np.log(2)
    share = evaluate(state, inputs, targets, loss=preference.accuracy, batch_size=8)
    assert share == np.mean(preference.margins(state.apply_fn(state.params, inputs), targets) > 0)


def test_samples_extend_prompts_character_by_character():
    class Successor(nnx.Module):
        def __call__(self, characters):
            return 100 * jnp.eye(7)[(characters + 1) % 7], jnp.eye(7)

    prompts = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, preference.PROMPT)))
    samples = np.asarray(preference.sample(Successor(), prompts, jax.random.key(0)))
    np.testing.assert_array_equal(samples[:, : preference.PROMPT], prompts)
    assert samples.shape == (3, preference.PROMPT + preference.ANSWER)
    answers = samples[:, preference.PROMPT - 1 :]
    np.testing.assert_array_equal(answers[:, 1:], (answers[:, :-1] + 1) % 7)


def test_without_documentation_the_text_is_the_zen_of_python(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert language_model.read_text().startswith("The Zen of Python")
    assert not capsys.readouterr().out


class Killed(BaseException):
    """Ends a run in the middle."""


@pytest.mark.parametrize(
    ("example", "steps", "kill_at"),
    [(regression, 40, 5), pytest.param(contrastive, 110, 3, marks=pytest.mark.slow)],
)
def test_a_killed_run_that_is_started_again_ends_with_the_same_bits(
    example, steps, kill_at, tmp_path, monkeypatch, capsys
):
    def run(folder):
        result = example.main(["--steps", str(steps), "--checkpoint", str(tmp_path / folder)])
        return result, capsys.readouterr().out

    save, saved = Checkpoints.save, []

    def killing_save(self, state):
        if len(saved) == kill_at:
            raise Killed
        save(self, state)
        saved.append(state.step)

    expected, _ = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", killing_save)
        with pytest.raises(Killed):
            run("killed")
    assert len(saved) == kill_at
    assert int(saved[-1]) < steps  # in the middle of a training
    result, output = run("killed")
    assert result == expected
    assert f"  restored step {saved[-1]} from {tmp_path / 'killed'}" in output
    whole, killed = (
        {file.relative_to(tmp_path / folder) for file in (tmp_path / folder).glob("*/*")}
        for folder in ("whole", "killed")
    )
    assert whole == killed


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch, capsys):
    arguments = ["--steps", "4", "--checkpoint", str(tmp_path)]
    expected = regression.main(arguments)
    monkeypatch.setattr(regression, "train_epoch", None)
    assert regression.main(arguments) == expected
    assert capsys.readouterr().out.count("restored step 4 from") == 5


@pytest.mark.parametrize("example", [regression, quantile_regression])
@pytest.mark.parametrize("steps", [1, 13, 22])
def test_steps_is_the_number_of_optimizer_steps_of_each_training(example, steps, tmp_path):
    example.main(["--steps", str(steps), "--checkpoint", str(tmp_path)])
    for fold in range(1, 6):
        with Checkpoints(tmp_path / f"fold_{fold}_seed_0") as checkpoints:
            assert checkpoints.newest == steps


@pytest.mark.slow
def test_data_parallel_prints_the_same_losses_on_any_devices_and_processes(capsys):
    data_parallel.main(["--steps", "6"])
    head, *expected = capsys.readouterr().out.splitlines()
    assert (head, len(expected)) == ("1 device(s), 1 process(es)", 6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*free.getsockname())
    two = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    runs = [
        start_data_parallel({"JAX_NUM_CPU_DEVICES": "8"}, "--fully-sharded"),
        *(start_data_parallel({**two, "JAX_PROCESS_ID": process}) for process in "01"),
    ]
    try:
        answers = [run.communicate(timeout=300) for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0, 0], answers
    for (printed, _), head in zip(
        answers[:2], ("8 device(s), 1 process(es)", "2 device(s), 2 process(es)"), strict=True
    ):
        lines = printed.splitlines()
        assert head in lines
        assert [line for line in lines if "Loss" in line] == expected
    assert "Loss" not in answers[2][0]


def start_data_parallel(environment, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "examples.data_parallel", "--steps", "6", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
