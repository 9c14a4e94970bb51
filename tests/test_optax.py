"""The rows of the README's table "Why not Optax, or one line?" are true."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxloss
from jaxloss.training import create_train_state, train_step
from tests.benchmarks import records
from tests.test_documentation import PORTING, README

LOGITS, LABELS = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0]]), jnp.array([0, 1])


def one_line(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]


def one_line_binary(logits, targets):
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


CROSS_ENTROPIES = (optax.softmax_cross_entropy_with_integer_labels, one_line)
BINARY = (optax.sigmoid_binary_cross_entropy, one_line_binary)


def masked_nan():
    logits, targets, where = jnp.array([2.0, jnp.nan]), jnp.array([1.0, 0.0]), jnp.array([True, False])
    assert "where" not in inspect.signature(optax.sigmoid_binary_cross_entropy).parameters
    for other in BINARY:
        gradient = jax.grad(lambda logits, loss=other: jnp.mean(loss(logits, targets), where=where))(logits)
        assert np.isnan(gradient[1])
    gradient = jax.grad(jaxloss.binary_cross_entropy_with_logits)(logits, targets, where=where)
    assert gradient[1] == 0


def label_out_of_range():
    for other in CROSS_ENTROPIES:
        np.testing.assert_array_equal(other(LOGITS[0], jnp.array(-1)), other(LOGITS[0], jnp.array(2)))
    assert np.isnan(jaxloss.cross_entropy(LOGITS[0], jnp.array(-1)))


def ignored_label():
    labels = LABELS.at[1].set(-100)
    for other in CROSS_ENTROPIES:
        assert np.isnan(other(LOGITS, labels)[1])
    loss, gradient = jax.value_and_grad(jaxloss.cross_entropy)(LOGITS, labels)
    np.testing.assert_allclose(loss, jaxloss.cross_entropy(LOGITS[:1], labels[:1]), rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)


def unequal_micro_batches():
    """Two micro-batches with one and three valid labels take a step of gradient descent."""
    logits = jnp.array([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    labels, where = jnp.array([1, -100, 0, 0]), jnp.array([True, False, True, True])
    inputs = jnp.eye(4)
    whole = jax.grad(lambda kernel: jaxloss.cross_entropy(inputs @ kernel, labels))(logits)

    optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=2)
    for other in CROSS_ENTROPIES:
        kernel, state = logits, optimizer.init(logits)
        for rows in (slice(0, 2), slice(2, 4)):

            def mean(kernel, rows=rows, loss=other):
                return jnp.mean(loss(inputs[rows] @ kernel, jnp.maximum(labels[rows], 0)), where=where[rows])

            updates, state = optimizer.update(jax.grad(mean)(logits), state, kernel)
            kernel = optax.apply_updates(kernel, updates)
        assert np.abs(logits - kernel - whole).max() > 0.1

    state = create_train_state((lambda kernel, inputs: inputs @ kernel, logits.copy()), optax.sgd(1.0))
    loss = functools.partial(jaxloss.cross_entropy, reduction="sum_and_weight")
    state, _ = train_step(state, inputs, labels, loss=loss, micro_batches=2)
    np.testing.assert_allclose(logits - state.params, whole, rtol=1e-5, atol=1e-6)


def bfloat16():
    logits = (4 * jax.random.normal(jax.random.key(0), (512, 32_000))).astype(jnp.bfloat16)
    labels = jax.random.randint(jax.random.key(0), (512,), 0, 32_000)
    truth = np.mean(one_line(logits.astype(jnp.float32), labels))
    for other in CROSS_ENTROPIES:
        mean = jnp.mean(other(logits, labels))
        assert mean.dtype == jnp.bfloat16
        assert abs(mean / truth - 1) > 0.001
    np.testing.assert_allclose(jaxloss.cross_entropy(logits, labels), truth, rtol=1e-5)


def infinite_logit():
    for other in BINARY:
        assert np.isnan(other(jnp.array(jnp.inf), jnp.array(1.0)))
    assert jaxloss.binary_cross_entropy_with_logits(jnp.inf, 1.0) == 0


def last_layer():
    size = "8192 x 4096 x 128256"
    record = records.find(records.read_compiled(), target="tpu", loss="linear_cross_entropy", size=size)
    theirs, ours = (side["temporaries"] / 1e9 for side in (record["peers"]["optax"], record["jaxloss"]))
    assert (f"{theirs:.1f} GB", f"{ours:.2f} GB") == ("4.2 GB", "0.14 GB")
    assert "stores the logits: 4.2 GB | `linear_cross_entropy`: 0.14 GB |" in README


def classes_sharded():
    mesh = AbstractMesh((8,), ("classes",), axis_types=(AxisType.Explicit,))
    with jax.sharding.use_abstract_mesh(mesh):
        sharded = NamedSharding(mesh, PartitionSpec(None, "classes"))
        logits = jax.ShapeDtypeStruct((4, 64), jnp.float32, sharding=sharded)
        labels = jax.ShapeDtypeStruct((4,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(None)))
        for other in CROSS_ENTROPIES:
            with pytest.raises(Exception, match="out_sharding"):
                jax.eval_shape(other, logits, labels)
        gradient = jax.eval_shape(jax.grad(jaxloss.cross_entropy), logits, labels)
        assert gradient.sharding == sharded


def impossible_alignment():
    """Two frames cannot hold a label twice, which needs a blank between."""
    logits, labels = jnp.array([[[1.0, 2.0, 0.0], [0.0, 1.0, 0.0]]]), jnp.array([[1, 1]])

    def other(logits):
        return jnp.sum(optax.ctc_loss(logits, jnp.zeros((1, 2)), labels, jnp.zeros((1, 2))))

    loss, gradient = jax.value_and_grad(other)(logits)
    np.testing.assert_allclose(loss, 1e5, rtol=1e-3)
    assert np.abs(gradient).max() > 0.01

    def ours(logits, zero_infinity):
        log_probs = jnp.swapaxes(jax.nn.log_softmax(logits), 0, 1)
        return jaxloss.ctc_loss(log_probs, labels, [2], [2], zero_infinity=zero_infinity)

    for zero_infinity, expected in ((False, np.inf), (True, 0)):
        loss, gradient = jax.value_and_grad(ours)(logits, zero_infinity)
        assert loss == expected
        np.testing.assert_array_equal(gradient, 0)


def huber():
    assert jax.hessian(lambda error: optax.huber_loss(error, 0.0))(1.0) == 0.25
    assert jax.hessian(jaxloss.huber_loss)(1.0, 0.0) == 0


ROWS = {
    "NaN at a masked element": masked_nan,
    "Label -1, out of range": label_out_of_range,
    "Label -100, ignored": ignored_label,
    "Unequal micro-batches (`optax.MultiSteps`)": unequal_micro_batches,
    "bfloat16 logits": bfloat16,
    "Logit +inf and target 1, binary": infinite_logit,
    "Last layer of a language model": last_layer,
    "Logits sharded over classes, `Explicit` mesh": classes_sharded,
    "CTC, no possible alignment": impossible_alignment,
    "Huber loss, second derivative at delta": huber,
}


def test_every_row_has_a_test():
    section = README[README.index("## Why not Optax") : README.index("## Two commands")]
    _, _, *titles = re.findall(r"^\| (.*?) ?\|", section, re.MULTILINE)
    assert titles == [*ROWS]
    assert f"Optax {optax.__version__}" in section


@pytest.mark.parametrize("title", ROWS)
def test_row(title: str):
    # Optax and one-line forms need JAX's usual promotion of dtypes.
    with jax.numpy_dtype_promotion("standard"):
        ROWS[title]()


def test_optax_lacks_most_of_the_losses():
    names = {name for name in dir(optax.losses) if not name.startswith("_")}
    assert len(names) < len([name for name in dir(jaxloss) if name.endswith(("_loss", "entropy"))]) / 2


ARRAYS = {
    "logits": LOGITS,
    "labels": LABELS,
    "mask": jnp.array([True, False]),
    "probs": jax.nn.softmax(LOGITS[::-1]),
    "log_probs": jax.nn.log_softmax(LOGITS),
    "predictions": LOGITS[0],
    "targets": LOGITS[1],
    "answers": jnp.array([1.0, 0.0, 1.0]),
    "signs": jnp.array([1.0, -1.0, 1.0]),
    "frames": jnp.stack([LOGITS, LOGITS[::-1]]),
    "frame_paddings": jnp.zeros((2, 2)),
    "spelled": jnp.array([[1], [2]]),
    "paddings": jnp.zeros((2, 1)),
    "input_lengths": jnp.array([2, 2]),
    "target_lengths": jnp.array([1, 1]),
    "jax": jax,
    "jnp": jnp,
}
REPLACED = re.findall(
    r"^\| `([^`]*)` \| `([^`]*)` \|$", PORTING[PORTING.index("## Coming from Optax") :], re.MULTILINE
)


@pytest.mark.parametrize(("theirs", "ours"), REPLACED)
def test_what_replaces_a_loss_of_optax_has_its_value(theirs, ours):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = eval(theirs, vars(optax.losses) | ARRAYS)
        np.testing.assert_allclose(eval(ours, vars(jaxloss) | ARRAYS), expected, rtol=1e-5, atol=1e-6)
