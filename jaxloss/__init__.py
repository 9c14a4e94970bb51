"""PyTorch's loss functions for JAX: the same names, the same defaults, the same numbers.

Every loss is a pure compiled function of what the model hands over and the targets, with its options as
keywords. `reduce` takes losses of your own, or weights per sample, to the same sums and means. This package
needs JAX alone; the models in `jaxloss.models` and the training step in `jaxloss.training` need Flax, and the
step Optax, too.
"""

from jaxloss._core.distances import cosine_similarity as cosine_similarity
from jaxloss._core.distances import pairwise_distance as pairwise_distance
from jaxloss._core.reduction import reduce as reduce
from jaxloss.losses.adaptive import adaptive_log_probs as adaptive_log_probs
from jaxloss.losses.adaptive import adaptive_log_softmax as adaptive_log_softmax
from jaxloss.losses.adaptive import adaptive_predict as adaptive_predict
from jaxloss.losses.adaptive import init_adaptive_log_softmax as init_adaptive_log_softmax
from jaxloss.losses.binary import binary_cross_entropy as binary_cross_entropy
from jaxloss.losses.binary import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from jaxloss.losses.binary import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from jaxloss.losses.binary import soft_margin_loss as soft_margin_loss
from jaxloss.losses.classification import cross_entropy as cross_entropy
from jaxloss.losses.classification import kl_div as kl_div
from jaxloss.losses.classification import nll_loss as nll_loss
from jaxloss.losses.embedding import cosine_embedding_loss as cosine_embedding_loss
from jaxloss.losses.embedding import hinge_embedding_loss as hinge_embedding_loss
from jaxloss.losses.embedding import margin_ranking_loss as margin_ranking_loss
from jaxloss.losses.embedding import triplet_margin_loss as triplet_margin_loss
from jaxloss.losses.embedding import triplet_margin_with_distance_loss as triplet_margin_with_distance_loss
from jaxloss.losses.likelihood import gaussian_nll_loss as gaussian_nll_loss
from jaxloss.losses.likelihood import poisson_nll_loss as poisson_nll_loss
from jaxloss.losses.margin import multi_margin_loss as multi_margin_loss
from jaxloss.losses.margin import multilabel_margin_loss as multilabel_margin_loss
from jaxloss.losses.regression import huber_loss as huber_loss
from jaxloss.losses.regression import l1_loss as l1_loss
from jaxloss.losses.regression import mse_loss as mse_loss
from jaxloss.losses.regression import smooth_l1_loss as smooth_l1_loss
from jaxloss.losses.sequence import ctc_loss as ctc_loss
from jaxloss.losses.vocabulary import LinearLogProbs as LinearLogProbs
from jaxloss.losses.vocabulary import linear_cross_entropy as linear_cross_entropy
from jaxloss.losses.vocabulary import linear_log_probs as linear_log_probs
