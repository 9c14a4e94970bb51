"""The examples run with few steps, learn from the first one, go on where they stopped, and answer."""

import argparse
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
from sklearn.metrics import r2_score

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
from examples._common import fit
from jaxloss import mse_loss
from jaxloss.models import LinearRegression
from jaxloss.training import Checkpoints, create_train_state, train_step

EXAMPLES = [regression, classification, binary_classification]
OTHERS = [quantile_regression, segmentation, contrastive, language_model, preference]
LOSSES = re.compile(
    r"^Initial Loss: (\d+\.\d{4})\nLoss after one optimization step: (\d+\.\d{4})\n", re.MULTILINE
)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("seed", range(3))
def test_one_step_lowers_the_loss(example, seed, capsys):
    metric = example.main(["--steps", "3", "--seed", str(seed)])
    [(before, after)] = LOSSES.findall(capsys.readouterr().out)
    assert float(after) < float(before)
    assert np.isfinite(metric)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "metric"), [(regression, 0.45), (classification, 0.97), (binary_classification, 0.95)]
)
def test_the_default_number_of_steps_suffices(example, metric):
    assert example.main([]) > metric


@pytest.mark.slow
def test_all_run_one_after_the_other_and_draw_a_plot_each(tmp_path, capsys):
    __main__.main(["--steps", "3", "--plot", str(tmp_path / "loss.png")])
    output = capsys.readouterr().out
    assert len(LOSSES.findall(output)) == 3
    assert len(re.findall(r"^Held-out loss: \d\.\d{3} nats a character$", output, re.MULTILINE)) == 1
    assert len(re.findall(r"^(?:R²|Accuracy) on held-out \w+: -?\d\.\d{3}$", output, re.MULTILINE)) == 3
    assert len(re.findall(r"^Mean IoU on held-out images, [\w -]+: \d\.\d{3}$", output, re.MULTILINE)) == 4
    nearest = r"^Nearest neighbour of held-out digits, [\w-]+: \d\.\d{3}$"
    assert len(re.findall(nearest, output, re.MULTILINE)) == 4
    assert len(re.findall(r"^Held-out pairs: loss \d\.\d{3}, margin -?\d\.\d{3}$", output, re.MULTILINE)) == 1
    assert len(re.findall(r"^\w+ interval: covers \d\.\d{3} of the held-out", output, re.MULTILINE)) == 2
    for example in __main__.EXAMPLES:
        name = example.__name__.removeprefix("examples.")
        assert (tmp_path / f"loss_{name}.png").read_bytes().startswith(b"\x89PNG")


def test_eight_of_ten_patients_are_in_their_intervals_which_are_narrower_than_a_constant_one(capsys):
    assert 0.75 < quantile_regression.main([]) < 0.85
    predicted, constant = re.findall(r"mean width (\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert int(predicted) < 0.8 * int(constant)


@pytest.mark.slow
def test_every_loss_finds_the_digits_among_the_pixels():
    found = segmentation.main([])
    assert found.pop("baseline") < 0.1
    assert found.keys() == segmentation.LOSSES.keys()
    assert min(found.values()) > 0.4


def test_faint_pixels_of_digits_are_ignored_in_every_loss_and_in_the_metric():
    digits = np.full((1, 64), 16.0)
    digits[0, :8] = 5  # the first row is faint
    images, labels = segmentation.scatter(digits, np.array([3]), 2, np.random.default_rng(0))
    assert {*np.unique(labels)} == {segmentation.IGNORED, 0, 4}
    assert images[labels == 4].mean() > 0.9
    truth = np.where(labels == segmentation.IGNORED, 7, labels)
    logits = 20 * np.eye(segmentation.CLASSES, dtype=np.float32)[truth]
    assert segmentation.mean_iou(labels, logits) == 1
    wrong = logits + 40 * (labels == segmentation.IGNORED)[..., None] * np.eye(11, dtype=np.float32)[9]
    for loss in segmentation.LOSSES.values():
        np.testing.assert_array_equal(loss(wrong, labels), loss(logits, labels))


@pytest.mark.slow
def test_embeddings_find_digits_that_pixels_miss_and_more_with_labels():
    found = contrastive.main([])
    assert found["untrained"] < found["pixels"] < 0.75
    assert found["NT-Xent"] > found["pixels"] + 0.08
    assert found["supervised"] > found["NT-Xent"] + 0.04


def test_only_the_supervised_loss_reads_the_labels():
    embeddings = np.random.default_rng(0).normal(size=(6, 2, contrastive.FEATURES)).astype(np.float32)
    alone, paired = np.arange(6), np.arange(6) // 2
    assert contrastive.of_views(embeddings, alone) == contrastive.of_views(embeddings, paired)
    assert contrastive.of_labels(embeddings, alone) != contrastive.of_labels(embeddings, paired)


def test_a_moved_digit_is_whole_and_never_the_same_twice():
    digit, rng = np.full((1, 64), 16.0), np.random.default_rng(0)
    views = np.concatenate([contrastive.moved(digit, rng) for _ in range(20)])
    assert views.shape == (20, contrastive.SIZE**2)
    # From centre to centre of its pixels it is 7 wide, times a scale between 0.85 and 1.2.
    ink = views.sum(1)
    assert (7 * 0.8) ** 2 < ink.min() < ink.max() < (7 * 1.25) ** 2
    assert np.abs(np.corrcoef(views) - np.eye(20)).max() < 0.999


def test_a_trained_model_has_the_weights_of_the_last_step():
    random = np.random.default_rng(0)
    inputs, targets = (random.normal(size=(20, width)).astype(np.float32) for width in (10, 1))
    model, arguments = (
        LinearRegression(rngs=nnx.Rngs(0)),
        argparse.Namespace(steps=50, seed=0, checkpoint=None),
    )
    history = fit(
        model,
        optax.sgd(0.1),
        (inputs, targets, inputs, targets),
        loss=mse_loss,
        metric=r2_score,
        batch_size=20,
        arguments=arguments,
        fold=1,
    )
    np.testing.assert_allclose(r2_score(targets, model(inputs)), history.metrics[-1], rtol=1e-5)


@pytest.mark.slow
def test_the_language_model_knows_more_than_how_frequent_characters_are(capsys):
    loss = language_model.main([])
    output = capsys.readouterr().out
    [entropy] = re.findall(r"^Unigram entropy: (\d\.\d{3}) nats a character$", output, re.MULTILINE)
    assert loss < 0.6 * float(entropy)
    cost = r"(\d+\.\d) MB, \d+\.\d ms"
    [(ours, plain)] = re.findall(rf"32000 classes: {cost}; plain: {cost}$", output, re.MULTILINE)
    assert float(ours) < float(plain) / 20

    command = [sys.executable, "-m", "examples.language_model", "--steps", "1", "--devices", "8"]
    root = pathlib.Path(__file__).parents[1]
    on_eight = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    first = re.compile(r"^First loss: .*$", re.MULTILINE)
    assert first.findall(on_eight) == first.findall(output) != []


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
def test_the_language_model_learns_to_write_upper_case_letters():
    found = preference.main([])
    assert found["before"] < 0.04
    assert found["after"] > 3 * found["before"]
    assert found["loss"] < 0.55  # at the beginning it is log 2, 0.69


def test_answers_with_more_upper_case_letters_are_preferred_whatever_the_prompt():
    alphabet = np.array(list("Aab"))
    pairs = np.ones((3, 2, preference.PROMPT + 4), int)
    pairs[:, :, -3:] = [[[1, 2, 0], [0, 2, 0]], [[1, 0, 2], [0, 2, 1]], [[0, 0, 0], [2, 2, 2]]]
    pairs[:, 0, : preference.PROMPT] = 0
    first = preference.preferred_first(pairs, alphabet)
    np.testing.assert_array_equal(first, [pairs[0, ::-1], pairs[2]])


def test_an_answer_has_the_probability_of_its_characters_but_not_of_its_prompt():
    random = np.random.default_rng(0)
    hidden, kernel = random.normal(size=(3, 2, 20, 4)), random.normal(size=(4, 5))
    characters = random.integers(0, 5, (3, 2, 20))
    log_softmax = np.log(special.softmax(hidden @ kernel, axis=-1))
    of_characters = np.take_along_axis(log_softmax, characters[..., None], axis=-1)[..., 0]
    found = preference.log_probs((jnp.asarray(hidden), jnp.asarray(kernel)), characters)
    np.testing.assert_allclose(found, of_characters[..., preference.PROMPT - 1 :].sum(-1), rtol=1e-5)


def test_dpo_begins_at_the_reference_model_and_one_step_prefers_the_chosen_answers():
    model = language_model.CharacterModel(5, 8, tied=True, rngs=nnx.Rngs(0))
    pairs = np.random.default_rng(0).integers(0, 5, (8, 2, preference.PROMPT + 8))
    inputs, targets = preference.with_reference(model, pairs)
    state = create_train_state(model, optax.sgd(1.0))
    margins = []
    for _ in range(2):
        margins.append(preference.margin(targets, state.apply_fn(state.params, inputs)))
        state, loss = train_step(state, inputs, targets, loss=preference.criterion)
    assert margins[0] == 0 < margins[1]
    assert loss < np.log(2)


def test_samples_are_drawn_character_by_character():
    class Successor(nnx.Module):
        def __call__(self, characters):
            return 100 * jnp.eye(7)[(characters + 1) % 7], jnp.eye(7)

    prompts = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, preference.PROMPT)))
    samples = np.asarray(preference.sample(Successor(), prompts, jax.random.key(0)))
    np.testing.assert_array_equal(samples[:, : preference.PROMPT], prompts)
    assert samples.shape == (3, preference.PROMPT + preference.ANSWER)
    answers = samples[:, preference.PROMPT - 1 :]
    np.testing.assert_array_equal(answers[:, 1:], (answers[:, :-1] + 1) % 7)


def test_a_python_without_documentation_has_its_zen(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert language_model.read_text().startswith("The Zen of Python")
    assert not capsys.readouterr().out


def test_a_run_goes_on_from_its_checkpoint(tmp_path, capsys):
    def run(folder, steps):
        return regression.main(["--steps", str(steps), "--checkpoint", str(tmp_path / folder)])

    expected = run("whole", 4)
    assert run("resumed", 2) != expected
    assert run("resumed", 4) == expected
    # All is there, and nothing is trained again.
    capsys.readouterr()
    assert run("resumed", 4) == expected
    assert "Step" not in capsys.readouterr().out
    for fold in range(1, 6):
        whole, resumed = (
            np.load(tmp_path / name / f"seed_0_fold_{fold}.npz") for name in ("whole", "resumed")
        )
        assert whole["losses"].shape == (4,)
        np.testing.assert_array_equal(whole["losses"], resumed["losses"])


def test_a_training_that_diverges_stops_and_keeps_what_was_good(tmp_path):
    random = np.random.default_rng(0)
    inputs, targets = (random.normal(size=(20, width)).astype(np.float32) for width in (10, 1))
    # The loss overflows after a dozen steps; there is a report every eight.
    arguments = argparse.Namespace(steps=80, seed=0, checkpoint=tmp_path)
    with pytest.raises(FloatingPointError, match=r"^mse_loss is inf at step (9|1\d), "):
        fit(
            LinearRegression(rngs=nnx.Rngs(0)),
            optax.sgd(10.0),
            (inputs, targets, inputs, targets),
            loss=mse_loss,
            metric=r2_score,
            batch_size=16,
            arguments=arguments,
            fold=1,
        )
    with Checkpoints(tmp_path / "seed_0_fold_1") as checkpoints:
        assert checkpoints.newest == 8


@pytest.mark.slow
def test_the_data_parallel_example_prints_the_same_losses_wherever_it_runs(capsys):
    data_parallel.main(["--steps", "6"])
    head, *expected = capsys.readouterr().out.splitlines()
    assert (head, len(expected)) == ("1 devices, 1 processes", 6)
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
        answers[:2], ("8 devices, 1 processes", "2 devices, 2 processes"), strict=True
    ):
        lines = printed.splitlines()
        assert head in lines
        assert [line for line in lines if "Loss" in line] == expected
    assert "Loss" not in answers[2][0]


def start_data_parallel(environment, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "examples.data_parallel", "--steps", "6", *options],
        cwd=pathlib.Path(__file__).parents[1],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("example", [*EXAMPLES, *OTHERS, __main__])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (["--steps", "-5"], "argument --steps: must be at least 1, got -5"),
        (["--steps", "many"], "argument --steps: invalid integer value: 'many'"),
        (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["--plot", "no/such/loss.png"], "argument --plot: there is no folder no/such"),
        (["--plot", "loss"], "argument --plot: 'loss' must end in a format, such as .png; there are eps, "),
        (["--plot", "loss.txt"], "argument --plot: 'loss.txt' must end in a format, such as .png"),
    ],
)
def test_a_wrong_option_is_named(example, options, message, capsys):
    with pytest.raises(SystemExit):
        example.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("example", [*EXAMPLES, *OTHERS])
def test_help(example, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        example.main(["--help"])
    assert is_help(capsys.readouterr().out, example.__name__)


def test_help_of_all_in_a_process_of_its_own():
    answer = subprocess.run(
        [sys.executable, "-m", "examples", "--help"],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    assert is_help(answer.stdout, "examples")


def is_help(text, module):
    return text.startswith(f"usage: python -m {module} ") and {
        "--steps",
        "--seed",
        "--plot",
        "--checkpoint",
    } <= set(text.split())
