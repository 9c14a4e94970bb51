"""Holds the formulas of the losses beyond PyTorch against the packages that people use, once.

`python -m tests.reference_packages` prints a line for each loss: how far formula and package are apart on the
entries of the catalogue that the package can answer. Arguments name the losses, by default all. pytest does
not run it. It needs

    pip install torch==2.13.0 torchvision==0.28.0 scikit-learn pytorch-msssim dm_pix
"""

import functools
import importlib
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
    """Registers what asks a package: given it, and an entry's arrays and options, for losses in "none".

    Where it returns None the package cannot answer.
    """

    def register(answer: Answer) -> Answer:
        for loss in losses or (answer.__name__,):
            REFERENCES.setdefault(loss, []).append((package, answer))
        return answer

    return register


# Quantiles.


@reference("sklearn.metrics")
def quantile_loss(metrics, predictions, targets, quantiles=0.5):
    if np.ndim(quantiles):
        pairs = list(zip(np.moveaxis(predictions, -1, 0), quantiles, strict=True))
        return np.stack([quantile_loss(metrics, p, targets, q) for p, q in pairs], -1)
    pairs = zip(targets.ravel(), predictions.ravel(), strict=True)
    losses = [metrics.mean_pinball_loss([t], [p], alpha=quantiles) for t, p in pairs]
    return np.reshape(losses, targets.shape)


# Boxes and images.


@reference("torchvision.ops")
def box_iou_loss(ops, predictions, targets, eps=1e-7):
    import torch

    if eps != 1e-7 or has_flat(predictions, targets):
        return None  # it has no eps, and makes 0 / 0 of points
    every = ops.box_iou(*(torch.tensor(boxes.reshape(-1, 4)) for boxes in (predictions, targets)))
    return 1 - torch.diagonal(every).reshape(predictions.shape[:-1]).numpy()


def torchvision_loss(ops, predictions, targets, *, loss, eps=1e-7):
    import torch

    if loss == "complete_box_iou_loss" and (eps != 1e-7 or has_flat(predictions, targets)):
        return None  # its eps is not that of the distance, and boxes without height give NaN
    return getattr(ops, loss)(torch.tensor(predictions), torch.tensor(targets), eps=eps).numpy()


for _loss in ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
    reference("torchvision.ops", _loss)(functools.partial(torchvision_loss, loss=_loss))


def has_flat(*boxes):
    return any(np.any(each[..., 2:] == each[..., :2]) for each in boxes)


@reference("pytorch_msssim", "ssim_loss")
def pytorch_msssim(package, predictions, targets, max_val=1.0, window_size=11, sigma=1.5, k1=0.01, k2=0.03):
    import torch

    images = [torch.tensor(np.moveaxis(images, -1, 1)) for images in (predictions, targets)]
    options = {"data_range": max_val, "win_size": window_size, "win_sigma": sigma, "K": (k1, k2)}
    return 1 - package.ssim(*images, size_average=False, **options).numpy()


@reference("dm_pix", "ssim_loss")
def dm_pix(package, predictions, targets, window_size=11, sigma=1.5, **options):
    with jax.enable_x64(True):
        similarity = package.ssim(
            predictions, targets, filter_size=window_size, filter_sigma=sigma, **options
        )
        return 1 - np.asarray(similarity)


def main() -> None:
    """Prints the largest difference of each loss from each package."""
    for loss in sys.argv[1:] or REFERENCES:
        for package, answer in REFERENCES[loss]:
            compare(loss, package, answer)


def compare(loss: str, package: str, answer: Answer) -> None:
    """Prints the largest difference of a loss from a package, relative to the largest loss of the entry."""
    module, cases, differences = importlib.import_module(package), [c for c in CASES if c.loss == loss], []
    for case in cases:
        theirs = answer(module, **case.arrays, **case.options)
        if theirs is not None:
            ours = formula(case)
            assert np.shape(theirs) == ours.shape, (case.name, np.shape(theirs), ours.shape)
            differences.append(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours), initial=1e-300))
    print(f"{loss}: {max(differences):.1e} from {package} in {len(differences)} of {len(cases)} entries")


def formula(case: Case) -> np.ndarray:
    """Returns the losses of an entry by their formula."""
    with localcontext(formulas.CONTEXT):
        arrays = {name: decimals(array) for name, array in case.arrays.items()}
        losses, _ = formulas.evaluate_batch(case.loss, arrays, case.options)
        return losses.astype(float)


if __name__ == "__main__":
    main()
