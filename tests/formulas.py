"""The formula of every loss in plain Python, as a reference.

Numbers are decimal: they neither overflow nor underflow, and have enough digits for finite differences. This
file holds the losses that PyTorch has, for one sample; arrays are lists, named like the loss's arguments. The
formulas of the other losses are in `tests/cases`, where they also are the reference of the entries.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, getcontext
from typing import Any, NamedTuple

import numpy as np

CONTEXT = Context(prec=80, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
INFINITY = Decimal("inf")
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")

FORMULAS: dict[str, Callable[..., Decimal]] = {}
BEYOND_PYTORCH: dict[str, Callable[..., Any]] = {}


def evaluate(loss: str, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Decimal:
    """Returns the loss of one sample from decimal numbers; call it in a context such as `CONTEXT`."""
    if loss in BEYOND_PYTORCH:
        batch = evaluate_batch(loss, arrays, options)
        return total(np.ravel(batch.losses * batch.share))
    return FORMULAS[loss](**arrays, **options)


class Batch(NamedTuple):
    """The losses of a batch, their weights in the mean's denominator, and their factors in the sum."""

    losses: np.ndarray
    weight: np.ndarray
    share: np.ndarray


def evaluate_batch(loss: str, arrays: Mapping[str, Any], options: Mapping[str, Any]) -> Batch:
    """Returns the losses of a batch."""
    found = BEYOND_PYTORCH[loss]({name: np.array(array, object) for name, array in arrays.items()}, options)
    losses, *others = found if isinstance(found, tuple) else (found,)
    weight, share = [*others, 1, 1][:2]
    return Batch(
        np.asarray(losses, object),
        *(np.broadcast_to(np.asarray(array, object), np.shape(losses)) for array in (weight, share)),
    )


def formula(function: Callable[..., Decimal]) -> Callable[..., Decimal]:
    FORMULAS[function.__name__] = function
    return function


def beyond_pytorch(signature: str | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the formula of a loss that PyTorch does not have.

    The formula takes arrays and options by name. It returns the losses, or a tuple of losses, weights in the
    mean's denominator and, unless they are 1, factors in the sum. `signature` is that of `numpy.vectorize`:
    "(),()->()" is elementwise, "(c),()->()" takes scores and a label. None passes the whole batch.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def of_batch(arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Any:
            if signature is None:
                return function(**arrays, **options)
            outputs = signature.partition("->")[2].count("(")
            of_parts = np.vectorize(
                lambda *parts: function(**dict(zip(arrays, parts, strict=True)), **options),
                otypes=[object] * outputs,
                signature=signature,
            )
            return of_parts(*arrays.values())

        BEYOND_PYTORCH[function.__name__] = of_batch
        return function

    return register


def exp(x: Decimal) -> Decimal:
    return x.exp()


def log(x: Decimal) -> Decimal:
    return x.ln()


def softplus(x: Decimal) -> Decimal:
    """Returns log(1 + exp(x)), also if exp(x) has too many digits."""
    return max(x, Decimal(0)) + log(1 + exp(-abs(x)))


def times(weight: Decimal, loss: Decimal) -> Decimal:
    """Returns weight · loss, and 0 if the weight is 0, even for an infinite loss."""
    return Decimal(0) if weight == 0 else weight * loss


def total(numbers: Iterable[Decimal]) -> Decimal:
    return sum(numbers, Decimal(0))


def power(base: Decimal, exponent: Decimal) -> Decimal:
    return Decimal(0) if base == 0 else exp(exponent * log(base))


# Finite differences.

_active: list["FiniteDifferences"] = []


class FiniteDifferences:
    """A formula with finite differences about a point: kinks have slope 0, frozen numbers are constants."""

    def __init__(self, function: Callable[[np.ndarray], Any], point: np.ndarray):
        sizes = [Decimal(1), *(abs(number) for number in point if number)]
        getcontext().prec = CONTEXT.prec + 3 * int((max(sizes) / min(sizes)).log10())
        self.step = Decimal("1e-25") * min(sizes)
        self._function = function
        self._frozen: list[Any] = []
        self._replayed: Iterator[Any] | None = None
        self(point)
        self._replayed = iter(self._frozen)

    def __call__(self, point: np.ndarray) -> Any:
        if self._replayed is not None:
            self._replayed = iter(self._frozen)
        _active.append(self)
        try:
            return self._function(point)
        finally:
            _active.pop()

    def slopes(self, point: np.ndarray) -> np.ndarray:
        """Returns the derivative of each output, one row for each coordinate of the point."""
        steps = self.step * np.eye(len(point), dtype=int).astype(object)
        return np.array([(self(point + step) - self(point - step)) / (2 * self.step) for step in steps])

    def frozen(self, number: Any) -> Any:
        if self._replayed is not None:
            return next(self._replayed)
        self._frozen.append(number)
        return number


def frozen(number: Any) -> Any:
    """Returns the number without its derivative, like `stop_gradient`."""
    return _active[-1].frozen(number) if _active else number


def kinked(number: Decimal) -> Decimal:
    """Returns 0 for numbers within the finite differences about 0, so that a kink there has slope 0."""
    return Decimal(0) if _active and abs(number) < 100 * _active[-1].step else number


def absolute(number: Decimal) -> Decimal:
    return abs(kinked(number))


def positive_part(number: Decimal) -> Decimal:
    return max(Decimal(0), kinked(number))


# Values.


@formula
def mse_loss(predictions, targets):
    return (predictions - targets) ** 2


@formula
def l1_loss(predictions, targets):
    return abs(predictions - targets)


@formula
def smooth_l1_loss(predictions, targets, beta=1):
    error = abs(predictions - targets)
    return error**2 / (2 * Decimal(beta)) if error < beta else error - Decimal(beta) / 2


@formula
def huber_loss(predictions, targets, delta=1):
    return Decimal(delta) * smooth_l1_loss(predictions, targets, delta)


@formula
def poisson_nll_loss(predictions, targets, log_input=True, full=False, eps=1e-8):
    rate = exp(predictions) if log_input else predictions
    loss = rate - times(targets, predictions if log_input else log(predictions + Decimal(eps)))
    if full and targets > 1:
        loss += targets * log(targets) - targets + log(2 * PI * targets) / 2
    return loss


@formula
def gaussian_nll_loss(predictions, targets, var, full=False, eps=1e-6):
    var = max(var, Decimal(eps))
    constant = log(2 * PI) if full else Decimal(0)
    return (log(var) + (predictions - targets) ** 2 / var + constant) / 2


# Classes.


def log_softmax(scores):
    log_normalizer = log(total(map(exp, scores)))
    return [score - log_normalizer for score in scores]


def of_labels(
    loss: Callable[[list[Decimal], int], Decimal],
    logits: np.ndarray,
    targets: np.ndarray,
    axis: int,
    weight: np.ndarray | None,
    ignore_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns weight[y] · loss of the log-probabilities and the label y of each position, and weight[y]."""
    scores = np.moveaxis(logits, axis, -1)
    losses, weights = (np.full(np.shape(targets), Decimal(0)) for _ in range(2))
    for place in np.ndindex(*np.shape(targets)):
        label = targets[place]
        if label != ignore_index:
            weights[place] = Decimal(1) if weight is None else weight[label]
            losses[place] = times(weights[place], loss(log_softmax(scores[place]), label))
    return losses, weights


@formula
def cross_entropy(logits, targets, weight=None, label_smoothing=0):
    count, smoothing = len(logits), Decimal(label_smoothing)
    weight = weight or [Decimal(1)] * count
    hard = not isinstance(targets, list)
    probs = [Decimal(c == targets) for c in range(count)] if hard else targets
    mixed = [(1 - smoothing) * prob + smoothing / count for prob in probs]
    neg_log_probs = (-log_prob for log_prob in log_softmax(logits))
    return total(times(w * t, s) for w, t, s in zip(weight, mixed, neg_log_probs, strict=True))


@formula
def linear_cross_entropy(hidden, kernel, targets):
    return cross_entropy([dot(hidden, column) for column in columns(kernel)], targets)


@formula
def nll_loss(log_probs, targets, weight=None):
    return times(weight[targets] if weight else Decimal(1), -log_probs[targets])


@formula
def kl_div(log_probs, targets, log_target=False):
    probs, logs = (exp(targets), targets) if log_target else (targets, log(targets))
    return times(probs, logs - log_probs)


@formula
def multi_margin_loss(scores, targets, p=1, margin=1, weight=None):
    right = scores[targets]
    hinges = (max(0, Decimal(margin) - right + score) for c, score in enumerate(scores) if c != targets)
    return times(weight[targets] if weight else Decimal(1), total(h**p for h in hinges)) / len(scores)


@formula
def multilabel_margin_loss(scores, targets):
    right = list(itertools.takewhile(lambda label: label != -1, targets))
    wrong = [c for c in range(len(scores)) if c not in right]
    return total(max(0, 1 - scores[j] + scores[i]) for j in right for i in wrong) / len(scores)


# Binary losses.


@formula
def binary_cross_entropy(probs, targets):
    yes, no = max(log(probs), Decimal(-100)), max(log(1 - probs), Decimal(-100))
    return -(targets * yes + (1 - targets) * no)


@formula
def binary_cross_entropy_with_logits(logits, targets, pos_weight=1):
    yes, no = log(1 + exp(-logits)), log(1 + exp(logits))
    return times(pos_weight * targets, yes) + times(1 - targets, no)


@formula
def sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2):
    p = 1 / (1 + exp(-logits))
    miss = p * (1 - targets) + (1 - p) * targets
    focus = power(miss, Decimal(gamma)) if gamma else Decimal(1)
    loss = times(focus, binary_cross_entropy_with_logits(logits, targets))
    share = Decimal(1) if alpha is None else Decimal(alpha) * targets + (1 - Decimal(alpha)) * (1 - targets)
    return times(share, loss)


@formula
def soft_margin_loss(scores, targets):
    return log(1 + exp(-targets * scores))


@formula
def multilabel_soft_margin_loss(logits, targets, weight=None):
    weight = weight or [Decimal(1)] * len(logits)
    losses = map(binary_cross_entropy_with_logits, logits, targets)
    return total(map(times, weight, losses)) / len(logits)


# Embeddings.


def dot(x, y):
    return total(a * b for a, b in zip(x, y, strict=True))


def length(x):
    return dot(x, x).sqrt()


@formula
def pairwise_distance(x1, x2, p=2.0, eps=1e-6):
    magnitudes = [abs(a - b + Decimal(eps)) for a, b in zip(x1, x2, strict=True)]
    if p == 0:
        return Decimal(sum(m != 0 for m in magnitudes))
    if p == float("inf"):
        return max(magnitudes)
    return power(total(power(m, Decimal(p)) for m in magnitudes), 1 / Decimal(p))


@formula
def cosine_similarity(x1, x2, eps=1e-8):
    return dot(x1, x2) / (max(length(x1), Decimal(eps)) * max(length(x2), Decimal(eps)))


@formula
def hinge_embedding_loss(distances, targets, margin=1):
    return distances if targets == 1 else max(Decimal(0), Decimal(margin) - distances)


@formula
def margin_ranking_loss(scores1, scores2, targets, margin=0):
    return max(Decimal(0), Decimal(margin) - targets * (scores1 - scores2))


@formula
def cosine_embedding_loss(embeddings1, embeddings2, targets, margin=0):
    squares = [dot(x, x) + Decimal("1e-12") for x in (embeddings1, embeddings2)]
    cosine = dot(embeddings1, embeddings2) / (squares[0] * squares[1]).sqrt()
    return 1 - cosine if targets == 1 else max(Decimal(0), cosine - Decimal(margin))


@formula
def triplet_margin_loss(anchors, positives, negatives, margin=1, p=2.0, eps=1e-6, swap=False):
    near, far = (pairwise_distance(anchors, other, p, eps) for other in (positives, negatives))
    far = min(far, pairwise_distance(positives, negatives, p, eps)) if swap else far
    return max(Decimal(0), Decimal(margin) + near - far)


@formula
def triplet_margin_with_distance_loss(anchors, positives, negatives, margin=1, swap=False):
    return triplet_margin_loss(anchors, positives, negatives, margin=margin, swap=swap)


# Sequences and vocabularies.


@formula
def ctc_loss(log_probs, targets, input_lengths, target_lengths, blank=0):
    labels, found = targets[:target_lengths], Decimal(0)
    for path in itertools.product(range(len(log_probs[0])), repeat=input_lengths):
        if [label for label, _ in itertools.groupby(path) if label != blank] == labels:
            found += exp(total(frame[label] for frame, label in zip(log_probs, path, strict=False)))
    return -log(found)


def columns(kernel):
    return list(map(list, zip(*kernel, strict=True)))


@formula
def adaptive_log_softmax(hidden, params, targets, cutoffs):
    head, tails = params["head"], params["tail"]
    scores = [dot(hidden, column) for column in columns(head["kernel"])]
    if "bias" in head:
        scores = list(map(Decimal.__add__, scores, head["bias"]))
    if targets < cutoffs[0]:
        return -log_softmax(scores)[targets]
    tail = max(i for i, first in enumerate(cutoffs) if first <= targets)
    features = [dot(hidden, column) for column in columns(tails[tail]["down"])]
    within = [dot(features, column) for column in columns(tails[tail]["up"])]
    return -log_softmax(scores)[cutoffs[0] + tail] - log_softmax(within)[targets - cutoffs[tail]]
