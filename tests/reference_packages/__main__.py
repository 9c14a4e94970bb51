"""Holds the formulas of the losses beyond PyTorch against the packages that people use, once.

`python -m tests.reference_packages` prints a line for each loss: how far formula and package are apart on the
entries of the catalogue that the package can answer. Arguments name the losses, by default all. pytest does
not run it. It needs

    pip install torch==2.13.0 torchvision==0.28.0 kornia monai timm segmentation-models-pytorch
    pip install pytorch-msssim dm_pix scikit-learn scoringrules optax keras entmax coral-pytorch torchsurv rax
    pip install info-nce-pytorch open_clip_torch lightly pytorch-metric-learning warprnnt-numba packaging
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from decimal import localcontext
from typing import Any

import jax
import numpy as np

from tests import formulas
from tests.catalogue import CASES, Case
from tests.oracle import decimals

Answer = Callable[..., Any]
REFERENCES: dict[str, list[tuple[str, Answer]]] = {}


def reference(package: str, *losses: str) -> Callable[[Answer], Answer]:
    """Registers what asks a package, given it and an entry's arrays and options, for the losses of "none".

    What the package cannot answer is NaN; one that has the mean alone returns that.
    """

    def register(answer: Answer) -> Answer:
        for loss in losses or (answer.__name__,):
            REFERENCES.setdefault(loss, []).append((package, answer))
        return answer

    return register


# Robust and relative errors.


@reference("kornia.losses")
def general_robust_loss(losses, predictions, targets, alpha=1.0, scale=1.0):
    members = {1: "charbonnier_loss", 0: "cauchy_loss", -2: "geman_mcclure_loss", -np.inf: "welsch_loss"}
    if float(alpha) not in members:
        return np.full(predictions.shape, np.nan)
    torch = importlib.import_module("torch")
    member = getattr(losses, members[float(alpha)])
    arrays = (torch.tensor(array / scale) for array in (predictions, targets))
    return member(*arrays, reduction="none").numpy()


@reference("keras")
def log_cosh_loss(keras, predictions, targets):
    keras.config.set_floatx("float64")
    losses = elementwise(keras.losses.LogCosh(reduction=None), targets, predictions)
    return np.where(np.abs(predictions - targets) < 0.1, np.nan, losses)  # where its digits cancel


@reference("sklearn.metrics")
def mape_loss(metrics, predictions, targets, eps=1e-6):
    losses = elementwise(metrics.mean_absolute_percentage_error, targets, predictions)
    return np.where(np.abs(targets) < eps, np.nan, losses)  # its own eps is another one


@reference("sklearn.metrics")
def msle_loss(metrics, predictions, targets):
    return elementwise(metrics.mean_squared_log_error, targets, predictions)


def elementwise(score, *arrays):
    """Returns the scores of batches of one."""
    scores = [
        np.asarray(score(*(np.array([x]) for x in one))) for one in zip(*map(np.ravel, arrays), strict=True)
    ]
    return np.reshape(scores, arrays[0].shape)


# Quantiles and distributions.


@reference("sklearn.metrics")
def quantile_loss(metrics, predictions, targets, quantiles=0.5):
    if np.ndim(quantiles):
        pairs = list(zip(np.moveaxis(predictions, -1, 0), quantiles, strict=True))
        return np.stack([quantile_loss(metrics, p, targets, q) for p, q in pairs], -1)
    return elementwise(functools.partial(metrics.mean_pinball_loss, alpha=quantiles), targets, predictions)


@reference("scoringrules")
def crps_ensemble_loss(scoringrules, predictions, targets, fair=False):
    if fair and predictions.shape[-1] == 1:  # divides by 0
        return np.full(targets.shape, np.nan)
    return scoringrules.crps_ensemble(targets, predictions, estimator="fair" if fair else "nrg")


@reference("scoringrules")
def crps_normal_loss(scoringrules, predictions, targets, scale):
    return scoringrules.crps_normal(targets, predictions, scale)


# Yes or no.


@reference("optax")
def hinge_loss(optax, scores, targets, margin=1.0, squared=False):
    losses = margin * optax.hinge_loss(scores / margin, targets)
    return np.asarray(losses ** (2 if squared else 1))


# Boxes and images.


@reference("torchvision.ops")
def box_iou_loss(ops, predictions, targets, eps=1e-7):
    torch = importlib.import_module("torch")
    if eps != 1e-7:  # it has none
        return np.full(predictions.shape[:-1], np.nan)
    every = ops.box_iou(*(torch.tensor(boxes.reshape(-1, 4)) for boxes in (predictions, targets)))
    return 1 - torch.diagonal(every).reshape(predictions.shape[:-1]).numpy()


def torchvision_loss(ops, predictions, targets, *, loss, eps=1e-7):
    torch = importlib.import_module("torch")
    if loss == "complete_box_iou_loss" and eps != 1e-7:  # which does not reach its distance
        return np.full(predictions.shape[:-1], np.nan)
    return getattr(ops, loss)(torch.tensor(predictions), torch.tensor(targets), eps=eps).numpy()


for _loss in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
    reference("torchvision.ops", _loss)(functools.partial(torchvision_loss, loss=_loss))


@reference("pytorch_msssim", "ssim_loss")  # whose window is float32
def pytorch_msssim(package, predictions, targets, max_val=1.0, window_size=11, sigma=1.5, k1=0.01, k2=0.03):
    torch = importlib.import_module("torch")
    images = [torch.tensor(np.moveaxis(images, -1, 1)) for images in (predictions, targets)]
    options = {"data_range": max_val, "win_size": window_size, "win_sigma": sigma, "K": (k1, k2)}
    return 1 - package.ssim(*images, size_average=False, **options).numpy()


@reference("dm_pix", "ssim_loss")
def dm_pix(package, predictions, targets, window_size=11, sigma=1.5, **options):
    return 1 - package.ssim(predictions, targets, filter_size=window_size, filter_sigma=sigma, **options)


# Rows of embeddings.


@reference("info_nce")
def info_nce_loss(
    package, embeddings, targets, negatives=None, temperature=0.1, symmetric=False, normalize=True
):
    torch = importlib.import_module("torch")
    if symmetric or not normalize:  # it has neither
        return np.full(len(embeddings), np.nan)
    arrays = [None if a is None else torch.tensor(a) for a in (embeddings, targets, negatives)]
    mode = "paired" if negatives is not None and negatives.ndim == 3 else "unpaired"
    return package.info_nce(*arrays, temperature, "none", mode).numpy()


def open_clip_loss(package, embeddings, targets, *, loss, logit_scale, logit_bias=None, normalize=False):
    torch = importlib.import_module("torch")
    arrays = [torch.tensor(array) for array in (embeddings, targets)]
    if normalize:
        arrays = [torch.nn.functional.normalize(array) for array in arrays]
    options = [None if option is None else torch.tensor(option) for option in (logit_scale, logit_bias)]
    return getattr(package, loss)()(*arrays, *options).numpy()


for _loss, _name in (("clip_loss", "ClipLoss"), ("siglip_loss", "SigLipLoss")):
    reference("open_clip.loss", _loss)(functools.partial(open_clip_loss, loss=_name))


@reference("lightly.loss")
def nt_xent_loss(losses, embeddings, targets, temperature=0.5, normalize=True):
    torch = importlib.import_module("torch")
    assert normalize
    return losses.NTXentLoss(temperature)(torch.tensor(embeddings), torch.tensor(targets)).numpy()


def metric_learning_loss(losses, embeddings, targets, *, loss, normalize=True, **options):
    torch = importlib.import_module("torch")
    reducers, distances = (
        importlib.import_module(f"pytorch_metric_learning.{name}") for name in ("reducers", "distances")
    )
    if not normalize and loss == "CircleLoss":  # it refuses other similarities
        return np.full(len(embeddings), np.nan)
    options = {"m" if name == "margin" else name: float(option) for name, option in options.items()}
    options["reducer"] = reducers.DoNothingReducer()
    if not normalize:
        options["distance"] = distances.DotProductSimilarity(normalize_embeddings=False)
    if loss == "NTXentLoss":
        pairs = len(embeddings)
        embeddings, targets = np.concatenate([embeddings, targets]), np.tile(np.arange(pairs), 2)
        options = {"temperature": 0.5, **options}
    function = getattr(losses, loss)(**options)
    found = function(torch.tensor(embeddings), torch.tensor(targets))["loss"]["losses"]
    return found.reshape(2, -1).mean(0).numpy() if loss == "NTXentLoss" else found.numpy().ravel()


for _loss, _name in (
    ("nt_xent_loss", "NTXentLoss"),
    ("supervised_contrastive_loss", "SupConLoss"),
    ("circle_loss", "CircleLoss"),
    ("multi_similarity_loss", "MultiSimilarityLoss"),
):
    reference("pytorch_metric_learning.losses", _loss)(functools.partial(metric_learning_loss, loss=_name))


# Classes. These packages have the classes on axis 1.


def _classes_second(logits, targets, axis):
    """Returns logits with the classes on axis 1, and the shape of the losses."""
    logits = np.moveaxis(logits, axis, -1)
    return logits.reshape(-1, logits.shape[-1]), np.reshape(targets, -1), logits.shape[:-1]


@reference("kornia.losses")
def softmax_focal_loss(losses, logits, targets, axis=-1, gamma=2.0, weight=None, ignore_index=-100):
    torch = importlib.import_module("torch")
    logits, targets, shape = _classes_second(logits, targets, axis)
    arrays = torch.tensor(logits), torch.tensor(targets)
    weight = None if weight is None else torch.tensor(weight)
    found = losses.focal_loss(*arrays, None, gamma, "none", weight=weight, ignore_index=ignore_index)
    return found.sum(1).numpy().reshape(shape)


@reference("timm.loss")
def asymmetric_loss(
    loss, logits, targets, gamma_neg=4.0, gamma_pos=1.0, clip=0.05, stop_focus_gradient=False
):
    torch = importlib.import_module("torch")
    if np.abs(logits).max() > 15:
        return np.full(logits.shape, np.nan)  # its logarithms are bounded
    options = gamma_neg, gamma_pos, clip, 1e-30, stop_focus_gradient
    function = loss.AsymmetricLossMultiLabel(*options, reduction="none")  # in float32
    return function(torch.tensor(logits), torch.tensor(targets)).numpy()


@reference("optax.losses")
def poly_cross_entropy(
    losses, logits, targets, axis=-1, epsilon=2.0, weight=None, ignore_index=-100, label_smoothing=0.0
):
    if weight is not None or label_smoothing:
        return np.full(np.delete(logits.shape, axis), np.nan)
    with jax.enable_x64(True):
        probs = (
            np.moveaxis(np.eye(logits.shape[axis])[targets], -1, axis)
            if targets.dtype.kind == "i"
            else targets
        )
        return np.asarray(losses.poly_loss_cross_entropy(logits, probs, epsilon=epsilon, axis=axis))


@reference("keras.losses")
def generalized_cross_entropy(losses, logits, targets, axis=-1, q=0.7, ignore_index=-100):
    if q == 1 or np.abs(logits).max() > 15:
        return np.full(targets.shape, np.nan)  # its q is below 1, and its probabilities are bounded
    logits, targets, shape = _classes_second(logits, targets, axis)
    odds, kept = np.exp(logits), targets != ignore_index
    probs = odds / odds.sum(-1, keepdims=True)
    labels = np.where(kept, targets, 0)
    function = losses.CategoricalGeneralizedCrossEntropy(q, reduction=None)  # in float32
    return (np.asarray(function(labels, probs)) * kept).reshape(shape)


# Metric learning and distillation.


def _with_margin(losses, loss, degrees_or_cosine, scale, embeddings, kernel, targets):
    torch = importlib.import_module("torch")
    reducer = importlib.import_module("pytorch_metric_learning.reducers").DoNothingReducer()
    options = {"margin": degrees_or_cosine, "scale": scale, "reducer": reducer}
    function = getattr(losses, loss)(kernel.shape[1], kernel.shape[0], **options).double()
    function.W.data = torch.tensor(kernel)
    rows, labels = torch.tensor(np.atleast_2d(embeddings)), torch.tensor(np.atleast_1d(targets))
    found = function(rows, labels)
    return found["loss"]["losses"].detach().numpy().reshape(np.shape(targets))


@reference("pytorch_metric_learning.losses")
def arcface_loss(losses, embeddings, kernel, targets, margin=0.5, scale=64.0):
    return _with_margin(losses, "ArcFaceLoss", np.rad2deg(margin), scale, embeddings, kernel, targets)


@reference("pytorch_metric_learning.losses")
def cosface_loss(losses, embeddings, kernel, targets, margin=0.35, scale=64.0):
    return _with_margin(losses, "CosFaceLoss", margin, scale, embeddings, kernel, targets)


@reference("torch.nn.functional")
def linear_distillation_loss(
    functional, hidden, kernel, teacher_hidden, teacher_kernel, bias=0, teacher_bias=0, temperature=1.0
):
    torch = importlib.import_module("torch")
    layers = (hidden, kernel, bias), (teacher_hidden, teacher_kernel, teacher_bias)
    student, teacher = (torch.tensor((x @ w + b) / temperature).log_softmax(-1) for x, w, b in layers)
    possible = torch.isfinite(teacher)  # it has NaN where both are -inf
    losses = functional.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * torch.where(possible, losses, 0).sum(-1).numpy()


# Regions. The packages have the classes on axis 1, and pixels to ignore are left out of both arguments.


def _regions(probs, targets, axis, ignore_index):
    """Returns tensors of shape (N, C, pixels)."""
    torch = importlib.import_module("torch")
    if axis is None:
        probs, kept, targets = probs[:, None], targets != ignore_index, targets[:, None]
    elif targets.ndim < probs.ndim:
        kept = targets != ignore_index
        targets = np.moveaxis(np.eye(probs.shape[axis])[np.where(kept, targets, 0)], -1, 1)
        probs = np.moveaxis(probs, axis, 1)
    else:
        probs, targets = (np.moveaxis(array, axis, 1) for array in (probs, targets))
        kept = np.ones_like(probs[:, 0], bool)
    return [torch.tensor((array * kept[:, None]).reshape(*array.shape[:2], -1)) for array in (probs, targets)]


def _of_monai(
    loss,
    smooth,
    probs,
    targets,
    axis,
    batch,
    include_background,
    skip_absent,
    weight,
    ignore_index,
    **options,
):
    probs, targets = _regions(probs, targets, axis, ignore_index)
    options |= {"smooth_nr": smooth, "smooth_dr": smooth, "batch": batch, "reduction": "none"}
    found = loss(**options)(probs, targets.double()).numpy()
    found = found.reshape(*found.shape[:1] if batch else found.shape[:2])
    if weight is not None:
        found = found * weight
    if skip_absent:
        found = found * (targets.numpy().sum(-1) > 0)
    if axis is None:
        return found[..., 0]
    return found if include_background else found[..., 1:]


@reference("monai.losses")
def dice_loss(
    losses,
    probs,
    targets,
    axis=-1,
    smooth=1e-5,
    squared=False,
    batch=False,
    include_background=True,
    skip_absent=False,
    weight=None,
    ignore_index=-100,
):
    arrays = probs, targets, axis, batch, include_background, skip_absent, weight, ignore_index
    return _of_monai(losses.DiceLoss, smooth, *arrays, squared_pred=squared)


@reference("monai.losses")
def tversky_loss(
    losses,
    probs,
    targets,
    axis=-1,
    alpha=0.5,
    beta=0.5,
    gamma=1.0,
    smooth=1e-5,
    batch=False,
    include_background=True,
    skip_absent=False,
    weight=None,
    ignore_index=-100,
):
    arrays = probs, targets, axis, batch, include_background, skip_absent, None, ignore_index
    found = _of_monai(losses.TverskyLoss, smooth, *arrays, alpha=alpha, beta=beta) ** gamma
    return found if weight is None else found * weight[0 if include_background else 1 :]


@reference("monai.losses")
def generalized_dice_loss(losses, probs, targets, axis=-1, smooth=1e-5, batch=False):
    torch = importlib.import_module("torch")

    def w(sizes):  # in float64, and not in MONAI's float32
        return torch.reciprocal(sizes.double() ** 2)

    probs, targets = _regions(probs, targets, axis, None)
    loss = losses.GeneralizedDiceLoss(smooth_nr=smooth, smooth_dr=smooth, batch=batch, reduction="none")
    loss.w_func = w
    found = loss(probs, targets.double()).numpy()
    return found.reshape(()) if batch else found[:, 0, 0]


@reference("segmentation_models_pytorch.losses.lovasz")
def lovasz_hinge_loss(lovasz, logits, targets, batch=False):
    logits, targets = (array.float() for array in _regions(logits, targets, None, None))  # as its gradient
    rows = [slice(None)] if batch else [slice(n, n + 1) for n in range(len(logits))]
    found = [lovasz._lovasz_hinge(logits[row], targets[row], per_image=False).item() for row in rows]
    return np.array(found[0] if batch else found)


@reference("segmentation_models_pytorch.losses.lovasz")
def lovasz_softmax_loss(lovasz, probs, targets, axis=-1, batch=True, classes="present", ignore_index=-100):
    torch = importlib.import_module("torch")
    probs, targets = torch.tensor(np.moveaxis(probs, axis, 1)).float(), torch.tensor(targets)
    probs = probs.reshape(*probs.shape[:2], -1, 1)
    targets = targets.reshape(len(targets), -1, 1)
    rows = [slice(None)] if batch else [slice(n, n + 1) for n in range(len(probs))]
    images = [(probs[row], targets[row]) for row in rows]
    found = [lovasz._lovasz_softmax(*image, classes, False, ignore_index).item() for image in images]
    return np.array(found[0] if batch else found)


# Times until an event.


@reference("torchsurv.loss.cox")
def cox_loss(cox, scores, times, events, ties="efron"):
    torch = importlib.import_module("torch")
    losses = np.zeros(scores.shape)
    for time in set(times[events > 0]):  # it adds up what happens at one time
        now = (times == time) & (events > 0)
        tensors = torch.tensor(scores), torch.tensor(now), torch.tensor(times)
        total = cox.neg_partial_log_likelihood(*tensors, ties_method=ties, reduction="sum").item()
        losses[now] = (total + scores[now].sum()) / now.sum() - scores[now]
    return losses


# Lists.


def _of_rax(rax, scores, targets, *, loss, weight=None):
    with jax.enable_x64(True):
        weights = {} if weight is None else {"weights": weight}
        return np.asarray(getattr(rax, loss)(scores, targets, **weights, reduce_fn=None))


def _pairs_of_rax(rax, scores, targets, weight=None):
    if weight is not None:  # of pairs
        return np.full(scores.shape[:-1], np.nan)
    return _of_rax(rax, scores, targets, loss="pairwise_logistic_loss").sum(-1)


reference("rax", "softmax_ranking_loss")(functools.partial(_of_rax, loss="softmax_loss"))
reference("rax", "listmle_loss")(functools.partial(_of_rax, loss="listmle_loss"))
reference("rax", "pairwise_logistic_loss")(_pairs_of_rax)


# Sparse probabilities and ordered classes.


def _entmax(package, logits, targets, *, loss, axis=-1, ignore_index=-100):
    torch = importlib.import_module("torch")
    if targets.ndim == logits.ndim:  # it takes labels
        return np.full(np.delete(logits.shape, axis), np.nan)
    scores, labels, shape = _classes_second(logits, targets, axis)
    kept = labels != ignore_index
    found = getattr(package, loss)(reduction="none")(
        torch.tensor(scores), torch.tensor(np.where(kept, labels, 0))
    )
    return (found.numpy() * kept).reshape(shape)


reference("entmax", "sparsemax_loss")(functools.partial(_entmax, loss="SparsemaxLoss"))
reference("entmax", "entmax15_loss")(functools.partial(_entmax, loss="Entmax15Loss"))


@reference("coral_pytorch.losses")
def coral_loss(losses, logits, targets):
    torch = importlib.import_module("torch")
    levels = targets[..., None] > np.arange(logits.shape[-1])
    arrays = (torch.tensor(array).reshape(-1, logits.shape[-1]) for array in (logits, levels.astype(float)))
    return losses.coral_loss(*arrays, reduction=None).numpy().reshape(targets.shape)


@reference("coral_pytorch.losses")
def corn_loss(losses, logits, targets):
    torch = importlib.import_module("torch")
    classes = logits.shape[-1] + 1
    rows = zip(
        torch.tensor(logits).reshape(-1, 1, classes - 1), torch.tensor(targets).reshape(-1), strict=True
    )
    found = [
        losses.corn_loss(row, label[None], classes).item() * min(label + 1, classes - 1)
        for row, label in rows
    ]
    return np.reshape(found, targets.shape)


# Teachers and views.


@reference("torch.nn.functional")
def distillation_loss(functional, logits, targets, axis=-1, temperature=1.0):
    student, teacher = log_softmaxes(functional, logits, targets, axis, temperature)
    losses = functional.kl_div(student, teacher, log_target=True, reduction="none")
    return temperature**2 * losses.sum(axis).numpy()


@reference("torch.nn.functional")
def jensen_shannon_loss(functional, logits, targets, axis=-1, beta=0.5, temperature=1.0):
    """The formula of TRL's generalized_jsd_loss, which reduces its losses."""
    torch = importlib.import_module("torch")
    student, teacher = log_softmaxes(functional, logits, targets, axis, temperature)

    def divergence(log_probs, others):
        return functional.kl_div(others, log_probs, log_target=True, reduction="none").sum(axis)

    if beta in (0, 1):
        return (divergence(student, teacher) if beta else divergence(teacher, student)).numpy()
    shares = torch.log(torch.tensor([beta, 1 - beta], dtype=torch.float64))
    mixture = torch.logaddexp(teacher + shares[0], student + shares[1])
    return (beta * divergence(teacher, mixture) + (1 - beta) * divergence(student, mixture)).numpy()


def log_softmaxes(functional, logits, targets, axis, temperature):
    torch = importlib.import_module("torch")
    return [functional.log_softmax(torch.tensor(array) / temperature, axis) for array in (logits, targets)]


@reference("lightly.loss")
def barlow_twins_loss(losses, embeddings, targets, lambda_param=5e-3, eps=1e-5):
    torch = importlib.import_module("torch")
    if eps != 1e-5:  # that of its batch normalization
        return np.array(np.nan)
    return losses.BarlowTwinsLoss(lambda_param)(torch.tensor(embeddings), torch.tensor(targets)).numpy()


@reference("lightly.loss")
def vicreg_loss(losses, embeddings, targets, **options):
    torch = importlib.import_module("torch")
    return losses.VICRegLoss(**options)(torch.tensor(embeddings), torch.tensor(targets)).numpy()


@reference("lightly.loss")
def dino_loss(losses, logits, targets, student_temperature=0.1, teacher_temperature=0.04, center=None):
    torch = importlib.import_module("torch")
    function = losses.DINOLoss(
        logits.shape[-1], teacher_temp=teacher_temperature, student_temp=student_temperature
    )

    def of_image(n):
        # It moves the center with every call; and its temperature would be float32.
        function.center = (
            torch.tensor(0.0 if center is None else center).double().expand(1, 1, logits.shape[-1])
        )
        views = (list(torch.tensor(array[:, n : n + 1])) for array in (targets, logits))
        return function(*views, teacher_temp=np.float64(teacher_temperature)).item()

    return np.array([of_image(n) for n in range(logits.shape[1])])


# Sequences.


@reference("warprnnt_numba")
def rnnt_loss(package, logits, targets, input_lengths, target_lengths, blank=0):
    torch = importlib.import_module("torch")
    losses = []
    for scores, labels, frames, count in zip(logits, targets, input_lengths, target_lengths, strict=True):
        cut = torch.tensor(scores[None, :frames, : count + 1]).float()  # as its sums
        sizes = (torch.tensor([size], dtype=torch.int32) for size in (frames, count))
        loss = package.RNNTLossNumba(blank % scores.shape[-1], reduction="none")
        losses.append(loss(cut.log_softmax(-1), torch.tensor(labels[None, :count]).int(), *sizes).item())
    return np.array(losses)


def main() -> None:
    """Prints the largest difference of each loss from each package."""
    os.environ["KERAS_BACKEND"] = "jax"
    jax.config.update("jax_enable_x64", True)
    for loss in sys.argv[1:] or REFERENCES:
        for package, answer in REFERENCES[loss]:
            compare(loss, package, answer)


def compare(loss: str, package: str, answer: Answer) -> None:
    """Prints the largest difference of a loss from a package, relative to the largest loss of the entry."""
    module, differences, answered, asked = importlib.import_module(package), [0.0], 0, 0
    for case in (case for case in CASES if case.loss == loss):
        arrays = {name: array.copy() for name, array in case.arrays.items()}  # rax writes into them
        theirs = np.asarray(answer(module, **arrays, **case.options))
        ours = formula(case, of_mean=not theirs.ndim)
        assert theirs.shape == ours.shape, (case.name, theirs.shape, ours.shape)
        known = ~np.isnan(theirs)
        differences.append(
            np.max(np.abs(ours - theirs)[known], initial=0) / np.max(np.abs(ours), initial=1e-300)
        )
        answered, asked = answered + known.sum(), asked + known.size
    print(f"{loss}: {max(differences):.1e} from {package}, which answers {answered} of {asked}")


def formula(case: Case, of_mean: bool) -> np.ndarray:
    """Returns the losses of an entry by their formula, or their mean."""
    with localcontext(formulas.CONTEXT):
        arrays = {name: decimals(array) for name, array in case.arrays.items()}
        losses, weight, _ = formulas.evaluate_batch(case.loss, arrays, case.options)
        return np.asarray(np.sum(losses) / np.sum(weight) if of_mean else losses, float)


if __name__ == "__main__":
    main()
