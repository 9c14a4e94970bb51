"""Compares the formulas of the losses beyond PyTorch with widely used packages.

`python -m tests.reference_packages` prints a line for each loss: the largest difference between formula and
package on the catalogue entries to which the package applies. Arguments name the losses, by default all.
pytest does not run it. It needs

    pip install torch==2.13.0 torchvision==0.28.0 kornia monai timm segmentation-models-pytorch
    pip install pytorch-msssim dm_pix scikit-learn scoringrules optax keras entmax coral-pytorch torchsurv rax
    pip install info-nce-pytorch open_clip_torch lightly pytorch-metric-learning warprnnt-numba packaging
"""

import importlib
import os
import sys
from decimal import localcontext

import jax
import numpy as np

from tests import formulas
from tests.catalogue import CASES, Case
from tests.oracle import decimals
from tests.reference_packages import REFERENCES, Answer
from tests.reference_packages import classes as classes
from tests.reference_packages import rows as rows
from tests.reference_packages import values as values


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
    """Returns the losses of an entry, or their mean, by the formula."""
    with localcontext(formulas.CONTEXT):
        arrays = {name: decimals(array) for name, array in case.arrays.items()}
        losses, weight, _ = formulas.evaluate_batch(case.loss, arrays, case.options)
        return np.asarray(np.sum(losses) / np.sum(weight) if of_mean else losses, float)


if __name__ == "__main__":
    main()
