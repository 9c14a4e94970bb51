"""The contract: properties that every loss must satisfy, each tested on the entries of the catalogue."""

import copy
import inspect
import pickle
from collections.abc import Collection
from typing import Any

import chex
import jax
import jax.export
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from tests import oracle, torch_oracle
from tests.case import public_losses
from tests.catalogue import CASES, KINDS, REDUCTIONS, Case, nested

FIRST = {case.loss: case for case in reversed(CASES)}
RECORD = oracle.RECORD


def every(cases: list[Case], *, slow: Collection[str] = ()) -> Any:
    return pytest.mark.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.name in slow else [])
            for case in cases
        ],
    )


every_case = every(CASES)
every_kind = every(KINDS)
every_batched_kind = every([case for case in KINDS if case.batched])
every_kind_with_independent_rows = every([case for case in KINDS if case.batched and not case.relates_rows])
every_smooth_kind = every([case for case in KINDS if case.smooth])
every_nonsmooth_case = every([case for case in CASES if not case.smooth])
every_loss = pytest.mark.parametrize("case", FIRST.values(), ids=FIRST.keys())


def test_every_public_loss_is_in_the_catalogue():
    assert {case.loss for case in CASES} == public_losses()


# Parity with PyTorch or, beyond PyTorch, with the formula.


def test_recorded_digests_match_the_catalogue():
    recorded = {
        name.removesuffix("/digest"): str(RECORD[name]) for name in RECORD if name.endswith("/digest")
    }
    expected = {case.name: case.digest() for case in CASES if not case.is_beyond_pytorch}
    assert recorded == expected, "run python -m tests.torch_oracle"


@every_case
def test_values_and_gradients_equal_pytorch_or_the_formula_in_float64(case: Case):
    with jax.enable_x64(True):
        for reduction, answer in case.answers(case.inputs(jnp.float64), REDUCTIONS).items():
            for name, ours in answer.items():
                theirs = oracle.truth(case, reduction, name)
                label = f"{reduction} {name}"
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12, err_msg=label, strict=True)


@every(CASES, slow={case.name for case in CASES} - {case.name for case in KINDS})
def test_float32_is_as_near_the_truth_as_pytorch(case: Case):
    eps = (8 if case.is_beyond_pytorch else 4) * np.finfo(np.float32).eps
    for reduction, answers in case.answers(case.inputs(jnp.float32), ("none", "mean")).items():
        for name, answer in answers.items():
            ours = np.asarray(answer)
            theirs = oracle.in_float32(case, reduction, name)
            truth = oracle.truth(case, reduction, name)
            assert ours.dtype == np.float32
            finite = np.isfinite(truth)
            np.testing.assert_array_equal(ours[~finite], truth[~finite], err_msg=f"{reduction} {name}")
            # Relative to the largest number: sums may cancel, and their order depends on the processor.
            largest = np.max(np.abs(truth[finite]), initial=0.25)
            error, theirs = (np.abs(array[finite] - truth[finite]) for array in (ours, theirs))
            allowed = 2 * theirs + eps * largest
            np.testing.assert_array_less(error, allowed, err_msg=f"{reduction} {name}")


if torch_oracle.IS_INSTALLED:

    def test_recorded_answers_equal_live_pytorch():
        live = torch_oracle.record()
        assert live.keys() == RECORD.keys()
        for name, recorded in RECORD.items():
            if not name.endswith("/digest"):
                # Sums may cancel, and their order depends on the processor.
                rounding = 1e-6 * np.max(np.abs(recorded[np.isfinite(recorded)]), initial=0)
                np.testing.assert_allclose(live[name], recorded, 1e-5, rounding, err_msg=name, strict=True)


# Reductions.


@every_kind
def test_reductions_agree(case: Case):
    with jax.enable_x64(True):
        found = case.all_reductions(case.inputs(jnp.float64))
        total, weight = map(np.asarray, found["sum_and_weight"])
        if case.sums_its_losses:
            np.testing.assert_allclose(np.sum(found["none"]), found["sum"], rtol=1e-12)
        if case.loss != "ctc_loss":  # its mean first divides each loss by the length of its target
            np.testing.assert_allclose(found["sum"], total, rtol=1e-12)
        np.testing.assert_allclose(found["mean"], total / weight, rtol=1e-12)


@every_kind_with_independent_rows
def test_sums_and_weights_of_parts_give_the_mean_of_the_whole(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)
        parts = [rows(case, arrays, part) for part in (slice(0, 1), slice(1, None))]
        pairs = [case(part, reduction="sum_and_weight") for part in parts]
        total, weight = np.sum(pairs, axis=0)
        np.testing.assert_allclose(total / weight, case.all_reductions(arrays)["mean"], rtol=1e-12)


@pytest.mark.slow
@every_kind_with_independent_rows
def test_a_repeated_batch_has_the_same_mean(case: Case):
    arrays = case.inputs(jnp.float32)
    times = 2**17 // next(iter(arrays.values())).size  # long sums take other code paths than short ones

    @jax.jit
    def losses(arrays: dict[str, jax.Array]) -> tuple[Any, Any, Any]:
        reductions = "none", "mean", "sum_and_weight"
        return tuple(case(arrays, reduction=reduction) for reduction in reductions)

    few, found = losses(arrays), losses(case.repeated(arrays, times))
    np.testing.assert_allclose(found[0], np.concatenate([few[0]] * times), rtol=1e-5, atol=1e-6)
    rounding = 1e-6 * np.sum(np.abs(few[0]))  # of terms that may cancel
    np.testing.assert_allclose(found[1], few[1], rtol=1e-5, atol=rounding)
    np.testing.assert_allclose(np.asarray(found[2]) / times, few[2], rtol=1e-5, atol=rounding)


# Masks.


@every_batched_kind
def test_masking_rows_equals_slicing_them(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)
        shape = case.shape(arrays)
        name, first = next(iter(arrays.items()))
        valid = np.arange(first.shape[case.batch_axis(name)]) % 2 == 0
        mask = valid.reshape(-1, *[1] * (len(shape) - 1)) if shape else np.array(True)
        poisoned = poison(case, arrays, np.broadcast_to(mask, shape))
        masked = case.all_reductions(poisoned, where=mask)
        sliced = case.all_reductions(rows(case, arrays, valid) if shape else arrays)
        if shape and not case.is_batch_loss:
            np.testing.assert_array_equal(masked["none"][~valid], 0)
            masked["none"] = masked["none"][valid]
        chex.assert_trees_all_close(masked, sliced, rtol=1e-12)


@every_kind
def test_masked_elements_never_affect_value_or_gradient(case: Case):
    arrays = case.inputs(jnp.float32)
    mask = np.random.RandomState(0).rand(*case.shape(arrays)) < 0.6
    clean = case.answers(arrays, REDUCTIONS, where=mask)
    poisoned = case.answers(poison(case, arrays, np.asarray(mask)), REDUCTIONS, where=mask)
    chex.assert_trees_all_equal(poisoned, clean)


@every_kind
def test_an_all_false_mask_equals_an_empty_batch(case: Case):
    arrays = case.inputs(jnp.float32)
    nothing = np.zeros(case.shape(arrays), bool)
    answers = case.answers(arrays, REDUCTIONS, where=nothing)
    if case.is_batch_loss:
        assert np.isnan(case(arrays, where=jnp.zeros((), bool)))
    else:
        assert case(arrays, where=jnp.zeros((), bool), reduction="sum") == 0
    for reduction in REDUCTIONS if case.is_batch_loss else ("mean",):
        assert np.isnan(answers[reduction].pop("value"))
    for reduction, answer in answers.items():
        for name, zeros in answer.items():
            np.testing.assert_array_equal(zeros, 0, err_msg=f"{reduction} {name}")


def rows(case: Case, arrays: dict[str, Any], chosen: Any) -> dict[str, Any]:
    """Returns the chosen rows of the batch."""
    return {
        name: jnp.asarray(np.asarray(array)[(*[slice(None)] * case.batch_axis(name), chosen)])
        if name in case.batched
        else array
        for name, array in arrays.items()
    }


def poison(case: Case, arrays: dict[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Returns the arrays with NaN, or out-of-range labels, wherever the mask is False."""

    def poisoned(name: str, array: jax.Array) -> jax.Array:
        if case.axis is not None and array.ndim > mask.ndim:
            where = np.expand_dims(mask, case.axis)
        else:  # axes other than those of the mask have size 1
            before = case.batch_axis(name)
            where = mask.reshape([1] * before + [*mask.shape] + [1] * (array.ndim - before - mask.ndim))
        if case.relates_rows and name not in case.batched:
            return array
        if case.is_per_class(name) or where.ndim != array.ndim or array.size < mask.size:
            return array
        bad = np.asarray(np.nan if jnp.issubdtype(array.dtype, jnp.floating) else 10**6, array.dtype)
        return jnp.asarray(np.where(where, array, bad))

    return {name: poisoned(name, array) for name, array in arrays.items()}


# Transforms.


def mean_of(case: Case, arrays: dict[str, Any]) -> dict[str, jax.Array]:
    """Returns the mean and its gradients, from the program compiled for the parity tests."""
    return case.answers(arrays, REDUCTIONS)["mean"]


def stacked(*trees: Any) -> Any:
    """Stacks the arrays of equal trees on a new first axis, in NumPy, which compiles nothing."""
    return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *trees)


@pytest.mark.slow
@every_loss
def test_jit_does_not_change_the_value(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)
        plain = inspect.unwrap(getattr(jaxloss, case.loss))
        value = plain(**nested(arrays), **case.options)
        np.testing.assert_allclose(case(arrays), value, rtol=1e-12)


@pytest.mark.slow
@every_kind
def test_vmap_equals_a_loop(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)
        others = {name: jnp.asarray(np.roll(a, 1, 0)) if a.ndim else a for name, a in arrays.items()}
        both = stacked(arrays, others)
        looped = stacked(*(mean_of(case, one) for one in (arrays, others)))
        chex.assert_trees_all_close(jax.vmap(case.answer)(both), looped, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@every_kind
def test_scan_and_remat_do_not_change_value_or_gradient(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)

        def body(carry: None, _: None) -> tuple[None, Any]:
            return carry, jax.checkpoint(lambda arrays: case.answer(arrays))(arrays)

        _, scanned = jax.lax.scan(body, None, length=2)
        last = jax.tree.map(lambda both: np.asarray(both)[-1], scanned)
        chex.assert_trees_all_close(last, mean_of(case, arrays), rtol=1e-12, atol=1e-15)


@every_smooth_kind
def test_jvp_and_hessian_vector_products_equal_finite_differences(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)
        point = {name: arrays[name] for name in case.gradients}
        direction = {n: np.cos(np.arange(float(a.size))).reshape(a.shape) for n, a in point.items()}
        step = 1e-5 * max(1.0, *(float(np.max(np.abs(array))) for array in point.values()))

        def f(moved: dict[str, Any]) -> jax.Array:
            return case({**arrays, **moved}, reduction="sum")

        def slope(moved: dict[str, Any]) -> jax.Array:
            return jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, jax.grad(f)(moved), direction))

        @jax.jit
        def derivatives(point: dict[str, Any]) -> Any:
            tangent = jax.jvp(f, (point,), (direction,))[1]
            return tangent, jax.jvp(jax.grad(f), (point,), (direction,))[1], jax.grad(slope)(point)

        def moved_by(step: float) -> dict[str, Any]:
            moved = {n: jnp.asarray(np.asarray(point[n]) + step * direction[n]) for n in point}
            return jax.device_get(case.answers({**arrays, **moved}, REDUCTIONS)["sum"])

        product = jax.tree.map(lambda a, b: (a - b) / (2 * step), moved_by(step), moved_by(-step))
        tangent = product.pop("value")
        chex.assert_trees_all_close(derivatives(point), (tangent, product, product), rtol=1e-5, atol=1e-7)


@every_nonsmooth_case
def test_hessians_are_finite_at_kinks_and_infinities(case: Case):
    with jax.enable_x64(True):
        arrays = case.inputs(jnp.float64)
        name = case.gradients[0]

        def f(array: jax.Array) -> jax.Array:
            return case({**arrays, name: array}, reduction="sum")

        forward, reverse = jax.jit(lambda x: (jax.hessian(f)(x), jax.jacrev(jax.grad(f))(x)))(arrays[name])
        assert np.isfinite(forward).all()
        np.testing.assert_allclose(forward, reverse, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@every(list({case.loss: case for case in reversed(KINDS) if case.batched}.values()))
def test_export_with_a_symbolic_batch_size(case: Case):
    arrays = case.inputs(jnp.float32)
    (size,) = jax.export.symbolic_shape("size")

    def exported(name: str, array: jax.Array) -> jax.ShapeDtypeStruct:
        axis = case.batch_axis(name) if name in case.batched else None
        shape = tuple(size if i == axis else length for i, length in enumerate(array.shape))
        return jax.ShapeDtypeStruct(shape, array.dtype)

    program = jax.export.export(jax.jit(case.answer))(
        {name: exported(name, array) for name, array in arrays.items()}
    )
    for batch in (arrays, case.repeated(arrays, 2)):
        chex.assert_trees_all_close(program.call(batch), case.answer(batch), rtol=1e-5, atol=1e-6)


# Dtypes.


HALF = [(case, "bfloat16") for case in KINDS] + [(case, "float16") for case in FIRST.values()]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(
            case, dtype, id=f"{case.name}-{dtype}", marks=[pytest.mark.slow] if dtype == "float16" else []
        )
        for case, dtype in HALF
    ],
)
def test_half_precision_is_computed_in_float32(case: Case, dtype: str):
    arrays = case.inputs(jnp.dtype(dtype))
    answer = case.answer(arrays)
    assert answer["value"].dtype == jnp.float32
    assert all(answer[name].dtype == arrays[name].dtype for name in case.gradients)
    with jax.enable_x64(True):
        floats = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
        wide = {n: jnp.asarray(np.asarray(a, np.float64)) for n, a in floats.items()}
        truth = mean_of(case, {**arrays, **wide})
    np.testing.assert_allclose(answer["value"], truth["value"], rtol=1e-6, atol=1e-7)
    # A gradient is computed in float32 and rounded once; bfloat16 matrix products sum up rounded terms.
    half = jnp.finfo(dtype)
    has_products = case.has_layer or case.relates_rows
    of_terms = half.eps / 2 if has_products and dtype == "bfloat16" else 1e-6
    for name in case.gradients:
        expected = np.asarray(truth[name])
        rounding = of_terms * np.max(np.abs(expected), initial=0) + float(half.smallest_subnormal)
        actual = np.asarray(answer[name], np.float64)
        np.testing.assert_allclose(actual, expected, rtol=0.51 * half.eps, atol=rounding, err_msg=name)


@every_loss
def test_float32_inputs_give_float32_under_x64(case: Case):
    with jax.enable_x64(True):
        assert case(case.inputs(jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["int32", "bool"])
@every_loss
def test_integers_and_booleans_are_cast_to_the_dtype_of_the_others(case: Case, dtype: str):
    arrays = case.inputs(jnp.float32)
    for name in case.gradients:
        ones = {**arrays, name: jnp.asarray(np.ones(arrays[name].shape, np.float32))}
        # Not reduced: XLA:CPU uses different exponentials in reductions and in elementwise code.
        expected = case(ones, reduction="none")
        converted = case({**ones, name: jnp.asarray(np.asarray(ones[name], dtype))}, reduction="none")
        np.testing.assert_array_equal(converted, expected, strict=True)


# The public function.


@every_loss
def test_a_loss_is_a_plain_function(case: Case):
    loss = getattr(jaxloss, case.loss)
    assert pickle.loads(pickle.dumps(loss)) is loss
    assert copy.deepcopy(loss) is loss
    assert loss.__name__ == case.loss
    for parameter in inspect.signature(loss).parameters.values():
        is_option = parameter.default is not parameter.empty or parameter.name in case.options
        is_option &= not parameter.name.endswith("_log_probs")  # arrays, some of which are optional
        assert parameter.kind.name == ("KEYWORD_ONLY" if is_option else "POSITIONAL_OR_KEYWORD")


@every_loss
def test_one_compilation_per_shape(case: Case):
    arrays = case.inputs(jnp.float32)
    case(arrays)
    others = {name: jnp.asarray(np.roll(a, 1, 0)) if a.ndim else a for name, a in arrays.items()}
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compilations.append(event))
    case(others)
    assert not compilations
    case(case.repeated(arrays, 2))
    assert compilations


@every_loss
def test_invalid_calls_raise(case: Case):
    arrays = case.inputs(jnp.float32)
    first, *others = arrays
    for second in others[:1]:
        wrong_shape = jnp.asarray(np.concatenate([arrays[second]] * 2, case.batch_axis(second)))
        with pytest.raises(ValueError, match=rf"(?s){second}.*\({wrong_shape.shape[0]},"):
            case({**arrays, second: wrong_shape})
    if not case.is_batch_loss:
        with pytest.raises(ValueError, match=r"reduction must be one of 'none', 'mean', 'sum', .* got 'avg'"):
            case(arrays, reduction="avg")
    with pytest.raises(TypeError, match=f"{case.loss}.. got an unexpected keyword argument 'reducton'"):
        case(arrays, reducton="sum")
    with pytest.raises(TypeError, match=f"{first} must be an array, got list"):
        case({**arrays, first: [1.0, 2.0]})
    with pytest.raises(TypeError, match=f"{first} must be an array, got NoneType"):
        case({**arrays, first: None})
    with pytest.raises(TypeError, match=f"{first} must hold real numbers, got dtype complex64"):
        case({**arrays, first: arrays[first].astype(jnp.complex64)})
    with pytest.raises(
        TypeError, match="where must be boolean, got dtype float32; pass `where != 0`, or for"
    ):
        case(arrays, where=jnp.ones(()))
    with pytest.raises(ValueError, match=r"where must broadcast to shape \(.*\), got shape \(9, 9, 9\)"):
        case(arrays, where=jnp.ones((9, 9, 9), bool))


@pytest.mark.slow
@every_kind
def test_checkify_reports_no_error_for_valid_input(case: Case):
    error, _ = checkify.checkify(lambda arrays: case(arrays))(case.inputs(jnp.float32))
    assert error.get() is None


@every_loss
def test_checkify_under_vmap_reports_no_error_for_valid_input(case: Case):
    arrays = case.inputs(jnp.float32)
    error, losses = checkify.checkify(jax.vmap(lambda arrays: case(arrays)))(stacked(arrays, arrays))
    assert error.get() is None
    np.testing.assert_allclose(losses, [case(arrays)] * 2, rtol=1e-6)


@pytest.mark.slow
@every_loss
def test_valid_input_produces_no_intermediate_nan(case: Case):
    # Op by op, which also checks constants; and compiled, which also checks the residuals of the gradient.
    arrays = case.inputs(jnp.float32)
    moved = {name: arrays[name] for name in case.gradients}

    def loss(moved: dict[str, Any]) -> jax.Array:
        return case({**arrays, **moved})

    with jax.debug_nans(True):
        with jax.disable_jit():
            jax.value_and_grad(loss)(moved)
        with jax.debug_infs(True):
            jax.value_and_grad(loss)(moved)
