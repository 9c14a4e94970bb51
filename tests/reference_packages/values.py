"""Reference packages for losses of values, boxes, images, sequences and survival times."""

import functools
import importlib

import numpy as np

from tests.reference_packages import reference

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
    return np.where(np.abs(predictions - targets) < 0.1, np.nan, losses)  # it suffers from cancellation


@reference("sklearn.metrics")
def mape_loss(metrics, predictions, targets, eps=1e-6):
    losses = elementwise(metrics.mean_absolute_percentage_error, targets, predictions)
    return np.where(np.abs(targets) < eps, np.nan, losses)  # it has another eps


@reference("sklearn.metrics")
def msle_loss(metrics, predictions, targets):
    return elementwise(metrics.mean_squared_log_error, targets, predictions)


def elementwise(score, *arrays):
    """Returns the scores of single elements."""
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


# Binary losses.


@reference("optax")
def hinge_loss(optax, scores, targets, margin=1.0, squared=False):
    losses = margin * optax.hinge_loss(scores / margin, targets)
    return np.asarray(losses ** (2 if squared else 1))


# Boxes and images.


@reference("torchvision.ops")
def box_iou_loss(ops, predictions, targets, eps=1e-7):
    torch = importlib.import_module("torch")
    if eps != 1e-7:  # it has no eps
        return np.full(predictions.shape[:-1], np.nan)
    every = ops.box_iou(*(torch.tensor(boxes.reshape(-1, 4)) for boxes in (predictions, targets)))
    return 1 - torch.diagonal(every).reshape(predictions.shape[:-1]).numpy()


def torchvision_loss(ops, predictions, targets, *, loss, eps=1e-7):
    torch = importlib.import_module("torch")
    if loss == "complete_box_iou_loss" and eps != 1e-7:  # it does not pass eps on to the distance
        return np.full(predictions.shape[:-1], np.nan)
    return getattr(ops, loss)(torch.tensor(predictions), torch.tensor(targets), eps=eps).numpy()


for _loss in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
    reference("torchvision.ops", _loss)(functools.partial(torchvision_loss, loss=_loss))


@reference("pytorch_msssim", "ssim_loss")  # its window is float32
def pytorch_msssim(package, predictions, targets, max_val=1.0, window_size=11, sigma=1.5, k1=0.01, k2=0.03):
    torch = importlib.import_module("torch")
    images = [torch.tensor(np.moveaxis(images, -1, 1)) for images in (predictions, targets)]
    options = {"data_range": max_val, "win_size": window_size, "win_sigma": sigma, "K": (k1, k2)}
    return 1 - package.ssim(*images, size_average=False, **options).numpy()


@reference("dm_pix", "ssim_loss")
def dm_pix(package, predictions, targets, window_size=11, sigma=1.5, **options):
    return 1 - package.ssim(predictions, targets, filter_size=window_size, filter_sigma=sigma, **options)


# Survival times.


@reference("torchsurv.loss.cox")
def cox_loss(cox, scores, times, events, ties="efron"):
    torch = importlib.import_module("torch")
    losses = np.zeros(scores.shape)
    for time in set(times[events > 0]):  # it sums the losses of tied events
        now = (times == time) & (events > 0)
        tensors = torch.tensor(scores), torch.tensor(now), torch.tensor(times)
        total = cox.neg_partial_log_likelihood(*tensors, ties_method=ties, reduction="sum").item()
        losses[now] = (total + scores[now].sum()) / now.sum() - scores[now]
    return losses


# Sequences.


@reference("warprnnt_numba")
def rnnt_loss(package, logits, targets, input_lengths, target_lengths, blank=0):
    torch = importlib.import_module("torch")
    losses = []
    for scores, labels, frames, count in zip(logits, targets, input_lengths, target_lengths, strict=True):
        cut = torch.tensor(scores[None, :frames, : count + 1]).float()  # it sums in float32
        sizes = (torch.tensor([size], dtype=torch.int32) for size in (frames, count))
        loss = package.RNNTLossNumba(blank % scores.shape[-1], reduction="none")
        losses.append(loss(cut.log_softmax(-1), torch.tensor(labels[None, :count]).int(), *sizes).item())
    return np.array(losses)
