"""PyTorch's loss functions for JAX, with the same names, defaults and values, plus losses beyond PyTorch.

Every loss is a pure jitted function that works under `grad`, `jvp`, `hessian`, `vmap`, `scan` and
`shard_map`. This page describes what all losses share; `help(jaxloss.huber_loss)` describes a single
loss. The losses depend only on JAX. `jaxloss.models` also needs Flax, and `jaxloss.training` needs
Flax, Optax and Orbax; the extra `train` installs them.

    >>> import jax, jaxloss
    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), jnp.array([0, 1])
    >>> loss, gradient = jax.value_and_grad(jaxloss.cross_entropy)(logits, labels)
    >>> loss
    Array(0.9076, dtype=float32)

Calling a loss
--------------
    loss(<model output>, targets, *, <options>, where=None, reduction="mean")

The model's output comes first, and its name says what is expected: `predictions`, `logits` (raw scores),
`log_probs`, `probs`, `scores`, `embeddings`, `distances` or `hidden`. The targets come second. Options
are keyword-only.

where: Boolean mask that broadcasts to the shape of `reduction="none"`. Masked elements never affect the
    value or the gradient, even if they are NaN, and do not count in the mean.
reduction: "mean", "sum", "none" for the loss of each element, or "sum_and_weight" for the pair
    (sum, weight) with mean == sum / weight. Add these pairs over micro-batches, devices and hosts to get
    the exact mean. `jaxloss.reduce` reduces custom losses in the same way.
axis: Class axis. Default: the last axis.
axis_name: Inside `jax.shard_map`, the mesh axis that shards the classes. Logits, probabilities, class
    weights and biases are then local shards; labels are indices over all classes. In losses that compare
    rows, such as `nt_xent_loss`, `clip_loss` and `circle_loss`, it shards the rows, and each local row is
    compared with the rows of all devices. "mean" and "sum" then reduce over the rows of all devices; "none"
    and "sum_and_weight" cover the local rows. `barlow_twins_loss` and `vicreg_loss` are statistics of all
    rows, so they return a scalar and take no `reduction`. If `shard_map` has `check_vma=False`, take
    gradients outside of it, as for any `psum`. Under `jit`, sharded arrays need no `axis_name`.

Arrays and dtypes
-----------------
Arrays may be NumPy arrays of any byte order, JAX arrays, Python numbers, `nnx.Variable`, or any object
with `__jax_array__`. Lists (except lists of lengths), PyTorch tensors and NumPy masked arrays raise a
TypeError; pass `jax.numpy.asarray(x)`, `x.numpy()`, or the mask as `where`. Predictions and targets never
broadcast against each other; weights and masks do.

Arithmetic and results are at least float32: bfloat16 and float16 inputs give a float32 loss, and
float64 stays float64. Integers and booleans are converted to the default float. A gradient has the
dtype of its input. `jax.default_matmul_precision` sets the precision of matrix products.

In losses over classes, integer targets are class indices, and floating-point targets are probabilities.

Invalid values
--------------
Compiled code cannot raise. An out-of-range label, or any other input outside its documented domain,
gives NaN in the value and in the gradient. Under `jax.experimental.checkify` it is an error that names
the argument and its domain. The mean over no elements, or over total weight 0, is NaN with gradient 0.
An empty sum is 0.

Options
-------
Numeric options are traced unless documented as static, so they can be scheduled, learned or swept
without recompiling. A Python number outside its domain raises a ValueError; an array outside it gives
NaN, or an error under checkify. Strings, booleans, axes, `ignore_index` and static numbers must be
Python values.

A PyTorch criterion with bound options is a `jax.tree_util.Partial` here, which `jit` and `grad` accept as
an argument. Bind static options with one `functools.partial` inside it; each new one is compiled again.

    >>> criterion = jax.tree_util.Partial(jaxloss.cross_entropy, weight=jnp.array([1.0, 2.0, 4.0]))
    >>> criterion(logits, labels)
    Array(1.0743, dtype=float32)

Exceptions
----------
TypeError: An argument is not an array of real numbers, labels are not integers, `where` is not boolean,
    or a static option is an array.
ValueError: Shapes do not match, an option is outside its domain, or the reduction is unknown.

Differences from PyTorch
------------------------
* The class axis is the last by default; for PyTorch's (N, C, d1, ...), pass `axis=1`.
* Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error.
* bfloat16 and float16 inputs are computed in float32, and the loss is float32.
* An out-of-range label gives NaN; PyTorch raises.
* If a mean divides by 0, its gradient is 0; PyTorch's is NaN in some losses.
* Labels may have any integer dtype; other targets may also be integers or booleans.
* Losses are also differentiable with respect to options and weights.
* `where`, "sum_and_weight" and `axis_name` are additions; `size_average` and `reduce` are omitted.
"""

__version__ = "0.1.0"

from jaxloss._core.reduction import reduce as reduce
from jaxloss.losses.adaptive import adaptive_log_probs as adaptive_log_probs
from jaxloss.losses.adaptive import adaptive_log_softmax as adaptive_log_softmax
from jaxloss.losses.adaptive import adaptive_predict as adaptive_predict
from jaxloss.losses.adaptive import init_adaptive_log_softmax as init_adaptive_log_softmax
from jaxloss.losses.adversarial import discriminator_loss as discriminator_loss
from jaxloss.losses.adversarial import generator_loss as generator_loss
from jaxloss.losses.binary import binary_cross_entropy as binary_cross_entropy
from jaxloss.losses.binary import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from jaxloss.losses.binary import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from jaxloss.losses.binary import soft_margin_loss as soft_margin_loss
from jaxloss.losses.boxes import box_iou_loss as box_iou_loss
from jaxloss.losses.boxes import complete_box_iou_loss as complete_box_iou_loss
from jaxloss.losses.boxes import distance_box_iou_loss as distance_box_iou_loss
from jaxloss.losses.boxes import generalized_box_iou_loss as generalized_box_iou_loss
from jaxloss.losses.classification import cross_entropy as cross_entropy
from jaxloss.losses.classification import kl_div as kl_div
from jaxloss.losses.classification import nll_loss as nll_loss
from jaxloss.losses.contrastive import info_nce_loss as info_nce_loss
from jaxloss.losses.contrastive import nt_xent_loss as nt_xent_loss
from jaxloss.losses.contrastive import supervised_contrastive_loss as supervised_contrastive_loss
from jaxloss.losses.distillation import distillation_loss as distillation_loss
from jaxloss.losses.distillation import jensen_shannon_loss as jensen_shannon_loss
from jaxloss.losses.distillation import linear_distillation_loss as linear_distillation_loss
from jaxloss.losses.embedding import cosine_embedding_loss as cosine_embedding_loss
from jaxloss.losses.embedding import cosine_similarity as cosine_similarity
from jaxloss.losses.embedding import pairwise_distance as pairwise_distance
from jaxloss.losses.embedding import triplet_margin_loss as triplet_margin_loss
from jaxloss.losses.embedding import triplet_margin_with_distance_loss as triplet_margin_with_distance_loss
from jaxloss.losses.focal import asymmetric_loss as asymmetric_loss
from jaxloss.losses.focal import sigmoid_focal_loss as sigmoid_focal_loss
from jaxloss.losses.focal import softmax_focal_loss as softmax_focal_loss
from jaxloss.losses.images import ssim_loss as ssim_loss
from jaxloss.losses.likelihood import gaussian_nll_loss as gaussian_nll_loss
from jaxloss.losses.likelihood import poisson_nll_loss as poisson_nll_loss
from jaxloss.losses.lovasz import lovasz_hinge_loss as lovasz_hinge_loss
from jaxloss.losses.lovasz import lovasz_softmax_loss as lovasz_softmax_loss
from jaxloss.losses.margin import hinge_embedding_loss as hinge_embedding_loss
from jaxloss.losses.margin import hinge_loss as hinge_loss
from jaxloss.losses.margin import margin_ranking_loss as margin_ranking_loss
from jaxloss.losses.margin import multi_margin_loss as multi_margin_loss
from jaxloss.losses.margin import multilabel_margin_loss as multilabel_margin_loss
from jaxloss.losses.metric import arcface_loss as arcface_loss
from jaxloss.losses.metric import circle_loss as circle_loss
from jaxloss.losses.metric import cosface_loss as cosface_loss
from jaxloss.losses.metric import multi_similarity_loss as multi_similarity_loss
from jaxloss.losses.multimodal import clip_loss as clip_loss
from jaxloss.losses.multimodal import siglip_loss as siglip_loss
from jaxloss.losses.ordinal import coral_loss as coral_loss
from jaxloss.losses.ordinal import corn_loss as corn_loss
from jaxloss.losses.overlap import dice_loss as dice_loss
from jaxloss.losses.overlap import generalized_dice_loss as generalized_dice_loss
from jaxloss.losses.overlap import tversky_loss as tversky_loss
from jaxloss.losses.policy import grpo_loss as grpo_loss
from jaxloss.losses.policy import ppo_loss as ppo_loss
from jaxloss.losses.polynomial import generalized_cross_entropy as generalized_cross_entropy
from jaxloss.losses.polynomial import poly_cross_entropy as poly_cross_entropy
from jaxloss.losses.preference import bradley_terry_loss as bradley_terry_loss
from jaxloss.losses.preference import dpo_loss as dpo_loss
from jaxloss.losses.preference import kto_loss as kto_loss
from jaxloss.losses.preference import orpo_loss as orpo_loss
from jaxloss.losses.preference import simpo_loss as simpo_loss
from jaxloss.losses.quantile import crps_ensemble_loss as crps_ensemble_loss
from jaxloss.losses.quantile import crps_normal_loss as crps_normal_loss
from jaxloss.losses.quantile import expectile_loss as expectile_loss
from jaxloss.losses.quantile import quantile_loss as quantile_loss
from jaxloss.losses.ranking import approx_ndcg_loss as approx_ndcg_loss
from jaxloss.losses.ranking import listmle_loss as listmle_loss
from jaxloss.losses.ranking import pairwise_logistic_loss as pairwise_logistic_loss
from jaxloss.losses.ranking import softmax_ranking_loss as softmax_ranking_loss
from jaxloss.losses.regression import huber_loss as huber_loss
from jaxloss.losses.regression import l1_loss as l1_loss
from jaxloss.losses.regression import mape_loss as mape_loss
from jaxloss.losses.regression import mse_loss as mse_loss
from jaxloss.losses.regression import msle_loss as msle_loss
from jaxloss.losses.regression import smooth_l1_loss as smooth_l1_loss
from jaxloss.losses.robust import charbonnier_loss as charbonnier_loss
from jaxloss.losses.robust import general_robust_loss as general_robust_loss
from jaxloss.losses.robust import log_cosh_loss as log_cosh_loss
from jaxloss.losses.robust import wing_loss as wing_loss
from jaxloss.losses.self_supervised import barlow_twins_loss as barlow_twins_loss
from jaxloss.losses.self_supervised import dino_loss as dino_loss
from jaxloss.losses.self_supervised import vicreg_loss as vicreg_loss
from jaxloss.losses.sequence import ctc_loss as ctc_loss
from jaxloss.losses.sparse import entmax15_loss as entmax15_loss
from jaxloss.losses.sparse import sparsemax_loss as sparsemax_loss
from jaxloss.losses.survival import cox_loss as cox_loss
from jaxloss.losses.transducer import rnnt_loss as rnnt_loss
from jaxloss.losses.vocabulary import LinearLogProbs as LinearLogProbs
from jaxloss.losses.vocabulary import linear_cross_entropy as linear_cross_entropy
from jaxloss.losses.vocabulary import linear_log_probs as linear_log_probs
