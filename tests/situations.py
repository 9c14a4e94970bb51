"""The rows of the certificate."""

from typing import Any

from tests.situation import INF, SUBJECTS, Point, at, row

__all__ = ["SUBJECTS"]

# Values.

_ERRORS = {
    "zeros": [(0.0, 0.0)],
    "plus": [(INF, 0.0), (0.0, INF)],
    "minus": [(-INF, 0.0), (0.0, -INF)],
    "far": [(1e200, -1e200), (1e-200, 0.0)],
    "half": [(0.5, -1.25), (300.0, -2.0)],
}
_KINKS = [(1.0, 0.0), (0.0, 1.0), (2.0, 2.0)]
row("mse_loss", "predictions targets", "predictions targets", **_ERRORS)
for _loss, _options in (
    ("l1_loss", {}),
    ("smooth_l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("huber_loss", {}),
):
    row(_loss, "predictions targets", "predictions targets", _options, kinks=_KINKS, **_ERRORS)

_BELOW = "A rate below -eps also has gradient NaN"
row(
    "poisson_nll_loss",
    "predictions targets",
    "predictions targets",
    {"full": True},
    zeros=[(0.0, 0.0)],
    kinks=[(0.5, 1.0)],
    plus=[
        at(
            INF,
            0.0,
            documented="targets <= 0 get the gradient of the other terms",
            convention={"gradient": [INF, -INF], "HVP": [INF, -1]},
        ),
        (INF, 2.0),
    ],
    minus=[(-INF, 0.0), (-INF, 2.0)],
    far=[(800.0, 2.0), (-800.0, 2.0)],
    half=[(0.5, 1.5), (6.0, 40.0)],
)
row(
    "poisson_nll_loss",
    "predictions targets",
    "predictions targets",
    {"log_input": False},
    zeros=[(0.0, 0.0), (0.0, 2.0)],
    plus=[(INF, 0.0), (INF, 2.0)],
    minus=[at(-INF, 1.0, documented=_BELOW)],
    far=[(1e300, 2.0), (1e-300, 2.0)],
    half=[(0.5, 1.5), (300.0, 40.0)],
)
row(
    "gaussian_nll_loss",
    "predictions targets var",
    "predictions targets var",
    zeros=[(0.0, 0.0, 0.0)],
    kinks=[(1.0, 0.0, 1e-6)],
    plus=[(INF, 0.0, 1.0), (0.0, 1.0, INF)],
    minus=[(-INF, 0.0, 1.0), at(0.0, 1.0, -INF, documented="A negative variance")],
    far=[(1e200, 0.0, 1.0), (1e160, 0.0, 1e300)],
    half=[(0.5, -1.25, 0.75), (300.0, -2.0, 4.0)],
)

# Classes.

_LOGITS = {
    "zeros": [([0.0, 0.0, 0.0], 1)],
    "plus": [([INF, 0.0, 1.0], 0), ([INF, 0.0, 1.0], 1)],
    "minus": [([-INF, 0.0, 1.0], 1), ([-INF, 0.0, 1.0], 0)],
    "far": [([1e4, 0.0, -1e4], 0), ([1e4, 0.0, -1e4], 1)],
    "half": [([0.5, -1.25, 2.0], 1), ([300.0, 0.5, -200.0], 1)],
}
row("cross_entropy", "logits targets", "logits", **_LOGITS)
row("cross_entropy", "logits targets", "logits", {"label_smoothing": 0.25}, **_LOGITS)
row(
    "cross_entropy",
    "logits targets weight",
    "logits",
    {},
    zeros=[([0.0, 0.0, 0.0], 1, [0.0, 0.0, 1.0])],
    plus=[([INF, 0.0, 1.0], 1, [1.0, 0.0, 2.0])],
    minus=[([-INF, 0.0, 1.0], 0, [0.0, 1.0, 2.0])],
    far=[([1e4, 0.0, -1e4], 1, [1.0, 0.5, 2.0])],
    half=[([0.5, -1.25, 2.0], 1, [1.0, 0.5, 2.0])],
)
row(
    "cross_entropy",
    "logits targets",
    "logits targets",
    zeros=[([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), ([0.0, 0.0, 0.0], [0.0, 1.0, 0.0])],
    plus=[([INF, 0.0, 1.0], [1.0, 0.0, 0.0])],
    minus=[([-INF, 0.0, 1.0], [0.0, 0.5, 0.5]), ([-INF, 0.0, 1.0], [0.5, 0.5, 0.0])],
    far=[([1e4, 0.0, -1e4], [0.5, 0.5, 0.0])],
    half=[([0.5, -1.25, 2.0], [0.25, 0.75, 0.0]), ([300.0, 0.5, -200.0], [0.25, 0.75, 0.0])],
)
_COLUMNS = [[1.0, 0.5, -1.0], [0.25, 2.0, 1.5]]
row(
    "linear_cross_entropy",
    "hidden kernel targets",
    "hidden kernel",
    zeros=[([0.0, 0.0], _COLUMNS, 1), ([0.5, 1.0], [[0.0] * 3] * 2, 1)],
    plus=[([INF, 1.0], _COLUMNS, 1)],
    minus=[([-INF, 1.0], _COLUMNS, 0)],
    far=[([1e4, -1e4], _COLUMNS, 1), ([1e4, 1e4], _COLUMNS, 0)],
    half=[([0.5, -1.25], _COLUMNS, 1), ([3.0, -2.0], _COLUMNS, 2)],
)
row(
    "nll_loss",
    "log_probs targets",
    "log_probs",
    zeros=[([0.0, 0.0, 0.0], 1)],
    plus=[([INF, 0.0, -1.0], 0)],
    minus=[([-INF, 0.0, -1.0], 0), ([-INF, 0.0, -1.0], 1)],
    far=[([-1e300, 0.0, -1.0], 0)],
    half=[([-0.5, -1.25, -2.0], 1), ([-300.0, -0.5, -200.0], 0)],
)
row(
    "kl_div",
    "log_probs targets",
    "log_probs targets",
    zeros=[(0.0, 1.0), at(0.0, 0.0, above=("targets",)), at(-1.0, 0.0, above=("targets",))],
    plus=[(INF, 0.5), (-1.0, INF)],
    minus=[
        (-INF, 0.5),
        at(
            -INF,
            0.0,
            above=("targets",),
            documented="A target of probability 0 has loss 0, even if `log_probs` is -inf",
            convention={"value": 0, "HVP": [0.5, 0]},
        ),
        at(-1.0, -INF, documented="A negative target probability also has gradient NaN"),
    ],
    far=[(-1e300, 0.5), (-1.0, 1e-300)],
    half=[(-0.5, 0.25), (-300.0, 0.75)],
)
row(
    "kl_div",
    "log_probs targets",
    "log_probs targets",
    {"log_target": True},
    zeros=[(0.0, 0.0)],
    plus=[(INF, -1.0), (-1.0, INF)],
    minus=[(-INF, -1.0), (-1.0, -INF), (-INF, -INF)],
    far=[(-1e300, -1.0), (-1.0, -800.0)],
    half=[(-0.5, -1.25), (-300.0, -0.5)],
)
_SCORES = {
    "zeros": [([0.0, 0.0, 0.0], 1)],
    "kinks": [
        at(
            [1.0, 0.0, -5.0],
            0,
            documented="With p = 1 the gradient at the kink is 0",
            convention={"HVP": 0},
        )
    ],
    "plus": [([INF, 0.0, 1.0], 0), ([INF, 0.0, 1.0], 1)],
    "minus": [([-INF, 0.0, 1.0], 1), ([-INF, 0.0, 1.0], 0)],
    "far": [([1e200, 0.0, -1e200], 1)],
    "half": [([0.5, -1.25, 2.0], 1), ([300.0, 0.5, -200.0], 1)],
}
row("multi_margin_loss", "scores targets", "scores", {"p": 1}, **_SCORES)
row("multi_margin_loss", "scores targets", "scores", {"p": 2}, **_SCORES)
row(
    "multilabel_margin_loss",
    "scores targets",
    "scores",
    zeros=[([0.0, 0.0, 0.0], [1, -1, 0])],
    kinks=[
        at(
            [1.0, 0.0, 0.25],
            [0, -1, 0],
            documented="Second derivatives exist and are 0",
            convention={"HVP": 0},
        )
    ],
    plus=[([INF, 0.0, 1.0], [0, -1, 0]), ([INF, 0.0, 1.0], [1, 2, -1])],
    minus=[([-INF, 0.0, 1.0], [1, -1, 0]), ([-INF, 0.0, 1.0], [0, -1, 0])],
    far=[([1e200, 0.0, -1e200], [1, -1, 0])],
    half=[([0.5, -1.25, 2.0], [1, 0, -1]), ([300.0, 0.5, -200.0], [1, -1, 0])],
)

# Binary losses.

_BOUNDED: dict[str, Any] = {
    "documented": "Second derivatives are those of the bounded gradient",
    "convention": {"HVP": [1.5e12, -1e12]},
}
row(
    "binary_cross_entropy",
    "probs targets",
    "probs targets",
    zeros=[at(0.0, 0.0, **_BOUNDED), at(0.0, 1.0, **_BOUNDED)],
    kinks=[at(1e-50, 1.0, **_BOUNDED)],
    plus=[at(INF, 1.0, documented="Probabilities and targets outside [0, 1] give NaN")],
    minus=[at(-INF, 0.0, documented="Probabilities and targets outside [0, 1] give NaN")],
    far=[at(1.0, 1.0, **_BOUNDED), at(1.0, 0.0, **_BOUNDED), at(1e-300, 1.0, **_BOUNDED)],
    half=[(0.25, 0.75), (0.5, 1.0)],
)
_SIGMOID = {
    "zeros": [(0.0, 0.0), (0.0, 1.0)],
    "plus": [(INF, 1.0), (INF, 0.0), (INF, 0.5)],
    "minus": [(-INF, 0.0), (-INF, 1.0), (-INF, 0.5)],
    "far": [(1e4, 1.0), (1e4, 0.0), (-1e4, 0.0)],
    "half": [(0.5, 0.75), (300.0, 0.25)],
}
row("binary_cross_entropy_with_logits", "logits targets", "logits targets", **_SIGMOID)
row(
    "binary_cross_entropy_with_logits",
    "logits targets pos_weight",
    "logits targets",
    **{name: [(*values, 2.0) for values in points] for name, points in _SIGMOID.items()},
)
_INFINITE: dict[str, Any] = {"documented": "Where the loss is infinite, its second derivative is NaN"}
row(
    "sigmoid_focal_loss",
    "logits targets",
    "logits",
    **_SIGMOID
    | {
        "plus": [(INF, 1.0), at(INF, 0.0, **_INFINITE)],
        "minus": [(-INF, 0.0), at(-INF, 1.0, **_INFINITE)],
    },
)
row(
    "soft_margin_loss",
    "scores targets",
    "scores",
    zeros=[(0.0, 1.0), (0.0, -1.0)],
    plus=[(INF, 1.0), (INF, -1.0)],
    minus=[(-INF, -1.0), (-INF, 1.0)],
    far=[(1e4, 1.0), (1e4, -1.0)],
    half=[(0.5, 1.0), (300.0, -1.0)],
)
row(
    "multilabel_soft_margin_loss",
    "logits targets",
    "logits targets",
    zeros=[([0.0, 0.0, 0.0], [0.0, 1.0, 0.5])],
    plus=[([INF, 0.0, 1.0], [1.0, 0.0, 1.0]), ([INF, 0.0, 1.0], [0.0, 0.0, 1.0])],
    minus=[([-INF, 0.0, 1.0], [0.0, 0.0, 1.0]), ([-INF, 0.0, 1.0], [1.0, 0.0, 1.0])],
    far=[([1e4, -1e4, 1.0], [1.0, 0.0, 1.0]), ([1e4, -1e4, 1.0], [0.0, 1.0, 1.0])],
    half=[([0.5, -1.25, 2.0], [0.25, 1.0, 0.0]), ([300.0, 0.5, -200.0], [0.25, 1.0, 0.0])],
)

# Embeddings.

row(
    "hinge_embedding_loss",
    "distances targets",
    "distances",
    zeros=[(0.0, 1.0), (0.0, -1.0)],
    kinks=[(1.0, -1.0)],
    plus=[(INF, 1.0), (INF, -1.0)],
    minus=[(-INF, 1.0), (-INF, -1.0)],
    far=[(1e300, 1.0), (1e300, -1.0)],
    half=[(0.25, -1.0), (300.0, 1.0)],
)
row(
    "margin_ranking_loss",
    "scores1 scores2 targets",
    "scores1 scores2",
    zeros=[(0.0, 0.0, 1.0)],
    kinks=[(2.0, 2.0, 1.0), (2.0, 2.0, -1.0)],
    plus=[(INF, 0.0, 1.0), (INF, 0.0, -1.0)],
    minus=[(-INF, 0.0, 1.0), (0.0, -INF, 1.0)],
    far=[(1e300, -1e300, -1.0)],
    half=[(0.5, 0.75, 1.0), (300.0, -200.0, -1.0)],
)
_X, _Y, _Z = [0.5, -1.25, 2.0], [1.0, 0.75, -0.5], [-0.25, 0.5, 1.5]
_ZEROS, _UP, _DOWN = [0.0, 0.0, 0.0], [INF, 0.5, 1.0], [-INF, 0.5, 1.0]
_HUGE = [3e200, -1e200, 2e200]
_OVERFLOW = "If a squared norm itself overflows, the loss is NaN"
row(
    "cosine_embedding_loss",
    "embeddings1 embeddings2 targets",
    "embeddings1 embeddings2",
    zeros=[(_ZEROS, _Y, 1.0), (_ZEROS, _ZEROS, -1.0)],
    kinks=[([1.0, 0.0, 0.0], [0.0, 2.0, 0.0], -1.0)],
    plus=[at(_UP, _Y, 1.0, documented=_OVERFLOW)],
    minus=[at(_DOWN, _Y, 1.0, documented=_OVERFLOW)],
    far=[at(_HUGE, _Y, 1.0, documented=_OVERFLOW)],
    same=[(_X, _X, 1.0), (_X, _X, -1.0)],
    half=[(_X, _Y, 1.0), ([300.0, 1.0, -200.0], _X, -1.0)],
)


def _distances(loss: str, options: dict[str, Any], *, exact: bool) -> None:
    triple = loss.startswith("triplet")

    def fill(x: list[float], y: list[float], **decides: Any) -> Point:
        return at(x, y, _Z, **decides) if triple else at(x, y, **decides)

    names = "anchors positives negatives" if triple else "x1 x2"
    count = 3 if triple else 2
    infinite: dict[str, Any] = (
        {"documented": "both distances are infinite, value and gradient are NaN"} if triple else {}
    )
    alike: dict[str, Any] = {"convention": {"HVP": 0}} if exact else {}
    if exact and not triple:
        alike["documented"] = "for equal vectors, second derivatives are 0, too"
    ties: str | list[Point] = [fill([1.0, 1.0, 0.0], _ZEROS)] if exact else "none: eps shifts them"
    if exact and triple:  # distances of 5 and 6, which differ by the margin
        ties = [at([1.0, 1.0, 0.0], _ZEROS, _Z), at(_ZEROS, [3.0, 4.0, 0.0], [-6.0, 0.0, 0.0])]
    row(
        loss,
        names,
        names,
        options,
        zeros=[at(*[_ZEROS] * count, **alike)],
        kinks=ties,
        plus=[fill(_UP, _Y, **infinite)],
        minus=[fill(_DOWN, _Y, **infinite)],
        far=[fill(_HUGE, _Y, **infinite)],
        same=[at(*[_X] * count, **alike)],
        half=[fill(_X, _Y), fill([300.0, 1.0, -200.0], _Y)],
    )


for _order in (1.0, 2.0, 3.0, INF):
    _distances("pairwise_distance", {"p": _order, "eps": 0.0}, exact=True)
_distances("triplet_margin_loss", {}, exact=False)
_distances("triplet_margin_loss", {"eps": 0.0, "swap": True}, exact=True)
_distances("triplet_margin_with_distance_loss", {}, exact=False)
row(
    "cosine_similarity",
    "x1 x2",
    "x1 x2",
    zeros=[(_ZEROS, _Y), (_ZEROS, _ZEROS)],
    plus=[(_UP, _Y)],
    minus=[(_DOWN, _Y)],
    far=[
        at(_HUGE, _Y, documented="If a squared norm overflows, the similarity is NaN"),
        ([3e-200, -1e-200, 2e-200], _Y),
    ],
    same=[(_X, _X)],
    half=[(_X, _Y), ([300.0, 1.0, -200.0], _X)],
)

# Sequences and vocabularies.

_FRAMES = [[-1.0, -0.5, -2.0], [-0.25, -1.5, -3.0], [-2.0, -1.0, -0.5], [-0.75, -1.25, -1.0]]
_NEVER = "At infinite values it is 0, not NaN"


def _with(frame: list[float]) -> list[list[float]]:
    return [*_FRAMES[:1], frame, *_FRAMES[2:]]


row(
    "ctc_loss",
    "log_probs targets input_lengths target_lengths",
    "log_probs",
    zeros=[([[0.0] * 3] * 4, [1, 2], 4, 2)],
    kinks=[(_FRAMES, [1, 1], 4, 2)],
    plus=[at(_with([INF, -1.0, -1.0]), [1, 2], 4, 2, documented="a log-probability of +inf gives NaN")],
    minus=[
        (_with([-INF, -1.0, -2.0]), [1, 2], 4, 2),
        at(_FRAMES, [1, 1], 2, 2, documented=_NEVER, convention={"gradient": 0, "jvp": 0, "HVP": 0}),
    ],
    far=[(_with([-1e4, -0.5, -1e4]), [1, 2], 4, 2)],
    half=[(_FRAMES, [1, 2], 4, 2), (_with([-300.0, -0.5, -200.0]), [1, 2], 4, 2)],
)
_KERNELS = (
    [[0.5, -1.0, 0.25, 1.0], [1.5, 0.5, -0.75, 0.25]],
    [[1.0], [-0.5]],
    [[0.5, -1.5, 1.0]],
)
row(
    "adaptive_log_softmax",
    "hidden params.head.kernel params.tail.0.down params.tail.0.up targets",
    "hidden params.head.kernel",
    {"cutoffs": (3,)},
    zeros=[([0.0, 0.0], *_KERNELS, 4)],
    plus=[([INF, 1.0], *_KERNELS, 1)],
    minus=[([-INF, 1.0], *_KERNELS, 4)],
    far=[([1e4, -1e4], *_KERNELS, 1), ([1e4, -1e4], *_KERNELS, 5)],
    half=[([0.5, -1.25], *_KERNELS, 1), ([3.0, -2.0], *_KERNELS, 4)],
)
