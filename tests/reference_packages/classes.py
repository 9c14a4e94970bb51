"""Reference packages for losses over classes, regions and lists."""

import functools
import importlib

import jax
import numpy as np

from tests.reference_packages import reference

# Classes. These packages expect the classes on axis 1.


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
        return np.full(logits.shape, np.nan)  # it clamps its logarithms
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
        return np.full(targets.shape, np.nan)  # it requires q < 1 and clamps its probabilities
    logits, targets, shape = _classes_second(logits, targets, axis)
    odds, valid = np.exp(logits), targets != ignore_index
    probs = odds / odds.sum(-1, keepdims=True)
    labels = np.where(valid, targets, 0)
    function = losses.CategoricalGeneralizedCrossEntropy(q, reduction=None)  # in float32
    return (np.asarray(function(labels, probs)) * valid).reshape(shape)


# Regions. These packages expect the classes on axis 1; ignored pixels are set to 0 in both arguments.


def _regions(probs, targets, axis, ignore_index):
    """Returns probabilities and targets as tensors of shape (N, C, pixels)."""
    torch = importlib.import_module("torch")
    if axis is None:
        probs, valid, targets = probs[:, None], targets != ignore_index, targets[:, None]
    elif targets.ndim < probs.ndim:
        valid = targets != ignore_index
        targets = np.moveaxis(np.eye(probs.shape[axis])[np.where(valid, targets, 0)], -1, 1)
        probs = np.moveaxis(probs, axis, 1)
    else:
        probs, targets = (np.moveaxis(array, axis, 1) for array in (probs, targets))
        valid = np.ones_like(probs[:, 0], bool)
    arrays = (array * valid[:, None] for array in (probs, targets))
    return [torch.tensor(array.reshape(*array.shape[:2], -1)) for array in arrays]


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

    def w(sizes):  # in float64 instead of MONAI's float32
        return torch.reciprocal(sizes.double() ** 2)

    probs, targets = _regions(probs, targets, axis, None)
    loss = losses.GeneralizedDiceLoss(smooth_nr=smooth, smooth_dr=smooth, batch=batch, reduction="none")
    loss.w_func = w
    found = loss(probs, targets.double()).numpy()
    return found.reshape(()) if batch else found[:, 0, 0]


@reference("segmentation_models_pytorch.losses.lovasz")
def lovasz_hinge_loss(lovasz, logits, targets, batch=False):
    logits, targets = (array.float() for array in _regions(logits, targets, None, None))  # it uses float32
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


# Sparse probabilities and ordered classes.


def _entmax(package, logits, targets, *, loss, axis=-1, ignore_index=-100):
    torch = importlib.import_module("torch")
    if targets.ndim == logits.ndim:  # it accepts labels only
        return np.full(np.delete(logits.shape, axis), np.nan)
    scores, labels, shape = _classes_second(logits, targets, axis)
    valid = labels != ignore_index
    found = getattr(package, loss)(reduction="none")(
        torch.tensor(scores), torch.tensor(np.where(valid, labels, 0))
    )
    return (found.numpy() * valid).reshape(shape)


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


# Lists.


def _of_rax(rax, scores, targets, *, loss, weight=None):
    with jax.enable_x64(True):
        weights = {} if weight is None else {"weights": weight}
        return np.asarray(getattr(rax, loss)(scores, targets, **weights, reduce_fn=None))


def _pairs_of_rax(rax, scores, targets, weight=None):
    if weight is not None:  # its weights are those of pairs
        return np.full(scores.shape[:-1], np.nan)
    return _of_rax(rax, scores, targets, loss="pairwise_logistic_loss").sum(-1)


reference("rax", "softmax_ranking_loss")(functools.partial(_of_rax, loss="softmax_loss"))
reference("rax", "listmle_loss")(functools.partial(_of_rax, loss="listmle_loss"))
reference("rax", "pairwise_logistic_loss")(_pairs_of_rax)
