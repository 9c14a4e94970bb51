"""The edge-case certificate: every loss where losses often fail, compared with PyTorch and with mathematics.

`python -m tests.certificate` writes CERTIFICATE.md. All verdicts are computed. Each answer is compared with
PyTorch's, which `python -m tests.torch_oracle` has recorded; where the two differ, or PyTorch does not have
the loss, with the limit of a plain formula in decimal numbers; and where there is no limit, with a statement
of the docstring.
"""

import functools
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests import formulas, torch_oracle
from tests.case import Case, nested
from tests.situation import SITUATIONS, Point, Subject, direction, dtype_of, reduction_in
from tests.situations import SUBJECTS

HALF = PRECISION = {"float16": 2.0**-9, "bfloat16": 2.0**-6}  # twice the rounding error
EMPTY = ("empty", "masked")
PAGE = Path(__file__).with_name("CERTIFICATE.md")
QUANTITIES = ("value", "gradient", "jvp", "HVP")
EQUAL, LIMIT, NAN, WRONG = "=", "→", "N", "✗"

EMPTY_POINT = Point((), documented="is NaN with gradient 0", convention={"gradient": 0, "jvp": 0, "HVP": 0})

Answers = Mapping[str, np.ndarray]

# The answers of jaxloss.


def answers(subject: Subject) -> dict[str, list[Answers]]:
    """Returns jaxloss's answers at each point of each situation, from one compiled program."""
    cases = subject.cases()
    groups: dict[str, list[tuple[str, int]]] = {}  # points of one dtype and shape
    for situation, points in cases.items():
        for index in range(len(points)):
            alone = situation in EMPTY
            group = f"{situation} {index}" if alone else dtype_of(situation)
            groups.setdefault(group, []).append((situation, index))
    inputs: dict[str, dict[str, jax.Array]] = {}
    for group, places in groups.items():
        for name in subject.names:
            stacked = np.stack([cases[situation][index].arrays[name] for situation, index in places])
            dtype = dtype_of(group) if stacked.dtype.kind == "f" else "int32"
            inputs.setdefault(group, {})[name] = jnp.asarray(stacked, dtype)

    @jax.jit
    def program(inputs: dict[str, dict[str, jax.Array]]) -> dict[str, dict[str, jax.Array]]:
        found = {}
        for group, arrays in inputs.items():
            (situation, index), *_ = groups[group]
            case = cases[situation][index]
            found[group] = jax.vmap(lambda a, c=case, s=situation: derivatives(c, a, reduction_in(c, s)))(
                arrays
            )
        return found

    outputs = program(inputs)
    found: dict[str, list[Answers]] = {situation: [] for situation in cases}
    for group, places in groups.items():
        for row, (situation, _) in enumerate(places):
            found[situation].append({q: np.asarray(outputs[group][q][row], float) for q in QUANTITIES})
    return found


def derivatives(case: Case, arrays: dict[str, jax.Array], reduction: str | None) -> dict[str, jax.Array]:
    """Returns the four quantities of a case; gradients in several arguments are concatenated."""
    reduced = {} if reduction is None else {"reduction": reduction}
    moved = {name: arrays[name] for name in case.gradients}
    along, start = {}, 0
    whole = direction(sum(array.size for array in moved.values()))
    for name, array in moved.items():
        part = whole[start : start + array.size].reshape(array.shape)
        along[name], start = jnp.asarray(part).astype(array.dtype), start + array.size

    def loss(moved: dict[str, jax.Array]) -> jax.Array:
        return case({**arrays, **moved}, **reduced)

    (value, gradient), (tangent, product) = jax.jvp(jax.value_and_grad(loss), (moved,), (along,))

    def flat(arrays: dict[str, jax.Array]) -> jax.Array:
        return jnp.concatenate([arrays[name].ravel() for name in case.gradients])

    return {"value": value[None], "gradient": flat(gradient), "jvp": tangent[None], "HVP": flat(product)}


# The mathematical limits.


def limits(case: Case, above: tuple[str, ...]) -> Answers:
    """Returns the limits of the formula's value and derivatives at a point.

    Infinities are approached as 1/h, and the zeros of the arguments `above` as h, for three small h.
    """
    is_approached = any(
        np.isinf(array).any() or (name in above and not array.all()) for name, array in case.arrays.items()
    )
    steps = ("1e-10", "1e-11", "1e-12") if is_approached else ("1",)
    with localcontext(formulas.CONTEXT):
        ways = [_differences(case, above, Decimal(h)) for h in steps]
        return {
            quantity: np.array([_limit(*way) for way in zip(*(way[quantity] for way in ways), strict=True)])
            for quantity in ways[0]
        }


def _differences(case: Case, above: tuple[str, ...], h: Decimal) -> dict[str, list[Decimal]]:
    """Returns the value and its central differences, with infinities and some zeros replaced."""

    def near(number: float, from_above: bool) -> Decimal:
        if np.isinf(number):
            return int(np.sign(number)) / h
        return h if from_above and number == 0 else Decimal(number)

    arrays: dict[str, Any] = {
        name: np.vectorize(lambda x, a=name in above: near(float(x), a), otypes=[object])(array)
        if array.dtype.kind == "f"
        else array.astype(object)
        for name, array in case.arrays.items()
    }
    point = np.concatenate([arrays[name].ravel() for name in case.gradients])
    along = np.array([Decimal(number) for number in direction(len(point))])

    def value(point: Any) -> Decimal:
        lists = nested({name: array.tolist() for name, array in case.at_point(arrays, point).items()})
        return formulas.evaluate(case.loss, lists, case.options)

    formula = formulas.FiniteDifferences(value, point)
    step = formula.step * along
    ahead, behind = formula.slopes(point + step), formula.slopes(point - step)
    return {
        "value": [formula(point)],
        "jvp": [(formula(point + step) - formula(point - step)) / (2 * formula.step)],
        "gradient": list(formula.slopes(point)),
        "HVP": list((ahead - behind) / (2 * formula.step)),
    }


def _limit(first: Decimal, second: Decimal | None = None, third: Decimal | None = None) -> float:
    """Extrapolates the limit of a sequence, which is infinite if its steps do not shrink."""
    if second is None or third is None:
        return float(first)
    before, step = second - first, third - second
    if not step.is_finite() or abs(step) < Decimal("1e-15") * max(1, abs(third)):
        return float(third)
    if abs(step) > Decimal("0.95") * abs(before):
        return float("inf") if step > 0 else float("-inf")
    return float(third + step * (step / before) / (1 - step / before))


# Verdicts.


class Finding(NamedTuple):
    """The verdict on a quantity, jaxloss's answer (as the reference it equals) and PyTorch's, if any."""

    verdict: str
    ours: np.ndarray
    theirs: np.ndarray | None


def findings(
    subject: Subject, ours: Mapping[str, list[Answers]], record: Mapping[str, Any]
) -> dict[str, list[dict[str, Finding]]]:
    """Returns for each situation a list of points, each with a finding for every quantity."""
    documented = (inspect.getdoc(part) or "" for part in (getattr(jaxloss, subject.loss), jaxloss))
    documentation = " ".join(" ".join(documented).split())
    found: dict[str, list[dict[str, Finding]]] = {}
    for situation, cases in subject.cases().items():
        points = subject.points.get(situation, [EMPTY_POINT] * len(cases))
        recorded = record.get(f"{subject.title} / {situation}", [])
        if cases[0].is_beyond_pytorch:
            recorded = [{"digest": case.digest()} for case in cases]
        for case, point, answer, asked in zip(cases, points, ours[situation], recorded, strict=True):
            if asked["digest"] != case.digest():
                raise ValueError(f"run python -m tests.torch_oracle: {case.name} / {situation} is new")
            if point.documented not in documentation:
                raise ValueError(f"the docstring of {case.loss} does not say: {point.documented}")
            theirs = {q: np.array(values) for q, values in asked.items() if q != "digest"}
            found.setdefault(situation, []).append(_judged(situation, case, point, answer, theirs))
    return found


def _judged(situation: str, case: Case, point: Point, ours: Answers, theirs: Answers) -> dict[str, Finding]:
    along = direction(ours["gradient"].size)
    if "gradient" in theirs:
        theirs = {**theirs, "jvp": _sum(theirs["gradient"] * along)}
    truth = functools.cache(lambda: limits(case, point.above))

    def expected(quantity: str) -> Iterator[np.ndarray]:
        if quantity in point.convention:
            yield np.broadcast_to(point.convention[quantity], ours[quantity].shape)
        if quantity == "jvp" and situation not in HALF:
            yield _sum(ours["gradient"] * along)
        if situation not in EMPTY:
            yield truth()[quantity]

    found: dict[str, Finding] = {}
    for quantity in QUANTITIES:
        answer, asked = ours[quantity], theirs.get(quantity)
        equal = np.zeros(answer.shape, bool)
        if asked is not None:
            equal = _close(answer, asked, PRECISION.get(situation, 1e-9))
        verdict = LIMIT if case.is_beyond_pytorch or not equal.all() else EQUAL
        shown = np.where(equal, answer if asked is None else asked, answer)
        # In half precision, where PyTorch's answers have few digits, jaxloss's must always equal the truth.
        unsettled = ~equal if situation not in HALF else np.ones_like(equal)
        if point.documented and not equal.all() and np.isnan(answer[~equal]).all():
            verdict, unsettled = NAN, np.zeros_like(equal)
        for right in expected(quantity) if unsettled.any() else ():
            settled = unsettled & _close(answer, right, _precision(situation, quantity))
            shown, unsettled = np.where(settled, right, shown), unsettled & ~settled
        found[quantity] = Finding(WRONG if unsettled.any() else verdict, shown, asked)
    return found


def _sum(terms: np.ndarray) -> np.ndarray:
    return np.array([sum(terms.tolist())])  # np.sum warns about infinities of opposite sign


def _precision(situation: str, quantity: str) -> float:
    """Returns the tolerance against the truth: the rounding error of the returned dtype."""
    if situation not in HALF:
        return 1e-6 if quantity in ("jvp", "HVP") else 1e-9
    return PRECISION[situation] if quantity in ("gradient", "HVP") else 2e-6


def _close(ours: np.ndarray, others: np.ndarray, precision: float) -> np.ndarray:
    finite = np.abs(others[np.isfinite(others)])
    tiny = precision * np.max(finite, initial=0) if precision > 1e-9 else 0
    return np.isclose(ours, others, rtol=precision, atol=max(tiny, 1e-12), equal_nan=True)


# The page.

HEAD = """\
# The edge-case certificate

The answers of every loss where losses often fail, compared with PyTorch {version}.
`python -m tests.certificate` writes this page. A test fails if the page is stale or a verdict is wrong.

Each cell holds four verdicts: on the value, the gradient, the derivative along a direction (jvp) and the
product of the Hessian with it (HVP).

| | |
| --- | --- |
| `=` | equal to PyTorch |
| `→` | the mathematical limit, or the docstring's convention, where PyTorch differs or has no answer |
| `N` | NaN by design, and the docstring says so |
| · | does not apply; the last list says why |

For a situation with several points, a cell shows the verdict that comes last in this table; all differences
are listed below. Limits are those of a plain formula in decimal numbers of 80 digits, with finite differences
at points that approach the situation. Arithmetic is float64, except in the last two columns. There jaxloss
must equal the truth within the rounding error of the dtype, and is marked equal to PyTorch where PyTorch's
rounding allows it. Derivatives are with respect to all arguments that PyTorch differentiates. Empty and fully
masked batches are reduced to their mean; for PyTorch, which has no mask, unmasked rows are selected.

"""


def page(found: Mapping[str, Mapping[str, list[dict[str, Finding]]]]) -> str:
    """Returns the certificate, from the findings on each row."""
    compared = [subject for subject in SUBJECTS if not subject.is_beyond_pytorch]
    beyond = [subject for subject in SUBJECTS if subject.is_beyond_pytorch]
    lines = [HEAD.format(version=torch_oracle.VERSION), *_table(compared, found)]
    lines += [
        "",
        "## Beyond PyTorch",
        "",
        "Losses that PyTorch does not have are compared with the limit.",
        "",
    ]
    lines += _table(beyond, found)
    lines += ["", "## Where the answers differ", "", "Numbers are rounded to three digits."]
    for subject in compared:
        lines += _differences_of(subject, found[subject.title])
    lines += ["", "## Where PyTorch and jaxloss are both NaN", ""]
    for subject in compared:
        both = [
            f"{SITUATIONS[situation]} ({', '.join(quantities)})"
            for situation, points in found[subject.title].items()
            if (quantities := [q for q in QUANTITIES if any(_both_nan(point[q]) for point in points)])
        ]
        lines += [f"- `{subject.title}`: {'; '.join(both)}"] if both else []
    lines += ["", "## Situations that do not apply", ""]
    reasons: dict[str, list[str]] = {}
    for subject in (*compared, *beyond):
        for situation, name in SITUATIONS.items():
            if situation not in found[subject.title]:
                why = subject.points.get(situation, "no mean and no mask")
                reasons.setdefault(f"{name}: {why}", []).append(f"`{subject.title}`")
    lines += [f"- {reason}: {'; '.join(titles)}" for reason, titles in reasons.items()]
    return "\n".join(lines) + "\n"


def _table(subjects: Sequence[Subject], found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [f"| | {' | '.join(SITUATIONS.values())} |", "| --- " * (len(SITUATIONS) + 1) + "|"]
    for subject in subjects:
        cells = (_cell(found[subject.title].get(situation, [])) for situation in SITUATIONS)
        lines.append(f"| `{subject.title}` | {' | '.join(cells)} |")
    return lines


def _cell(points: list[dict[str, Finding]]) -> str:
    if not points:
        return "·"
    order = (EQUAL, LIMIT, NAN, WRONG)
    return " ".join(max((point[q].verdict for point in points), key=order.index) for q in QUANTITIES)


def _differences_of(subject: Subject, found: Mapping[str, list[dict[str, Finding]]]) -> list[str]:
    cases = subject.cases()
    rows = [
        f"| {SITUATIONS[situation]} | {_inputs(case)} | {quantity} | {_digits(finding.theirs, situation)} "
        f"| {_digits(finding.ours, situation)} |"
        for situation in SITUATIONS
        for case, point in zip(cases.get(situation, []), found.get(situation, []), strict=True)
        for quantity, finding in point.items()
        if finding.verdict != EQUAL
    ]
    head = ["", f"### `{subject.title}`", "", "| situation | at | | PyTorch | jaxloss |", "| --- " * 5 + "|"]
    return head + rows if rows else []


def _both_nan(finding: Finding) -> bool:
    return finding.theirs is not None and bool((np.isnan(finding.ours) & np.isnan(finding.theirs)).any())


def _inputs(case: Case) -> str:
    if "where" in case.options or not all(array.size for array in case.arrays.values()):
        return ""
    shown = (f"{n}={json.dumps(a.tolist())}" for n, a in case.arrays.items() if not n.startswith("params"))
    return "`" + ", ".join(shown).replace("Infinity", "inf") + "`"


def _digits(answer: np.ndarray | None, situation: str) -> str:
    """Formats numbers with three digits; those below the rounding error of the largest become 0."""
    if answer is None:
        return "none"
    largest = np.max(np.abs(answer[np.isfinite(answer)]), initial=0)
    kept = np.where(np.abs(answer) < PRECISION.get(situation, 1e-9) * largest, 0, answer)
    return ", ".join(f"{number + 0:.3g}" for number in kept)


def main() -> None:
    """Writes the page."""
    with jax.enable_x64(True):
        PAGE.write_text(page(certified()), encoding="utf-8")


def certified() -> dict[str, dict[str, list[dict[str, Finding]]]]:
    """Returns the findings on every row; requires x64 to be enabled."""
    record = json.loads(torch_oracle.EDGES.read_text())
    return {subject.title: findings(subject, answers(subject), record) for subject in SUBJECTS}


if __name__ == "__main__":
    main()
