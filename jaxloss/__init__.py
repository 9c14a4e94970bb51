"""PyTorch's loss functions for JAX: the same names, the same defaults, the same numbers.

Every loss is a pure compiled function of what the model hands over and the targets, with its options as
keywords. `reduce` takes losses of your own, or weights per sample, to the same sums and means. This package
needs JAX alone; the models in `jaxloss.models` and the training step in `jaxloss.training` need Flax, and the
step Optax, too.
"""

from jaxloss._distances import cosine_similarity as cosine_similarity
from jaxloss._distances import pairwise_distance as pairwise_distance
from jaxloss._reduction import reduce as reduce
from jaxloss.adaptive import adaptive_log_probs as adaptive_log_probs
from jaxloss.adaptive import adaptive_log_softmax as adaptive_log_softmax
from jaxloss.adaptive import adaptive_predict as adaptive_predict
from jaxloss.adaptive import init_adaptive_log_softmax as init_adaptive_log_softmax
from jaxloss.binary import binary_cross_entropy as binary_cross_entropy
from jaxloss.binary import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from jaxloss.binary import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from jaxloss.binary import soft_margin_loss as soft_margin_loss
from jaxloss.classification import cross_entropy as cross_entropy
from jaxloss.classification import kl_div as kl_div
from jaxloss.classification import nll_loss as nll_loss
from jaxloss.embedding import cosine_embedding_loss as cosine_embedding_loss
from jaxloss.embedding import hinge_embedding_loss as hinge_embedding_loss
from jaxloss.embedding import margin_ranking_loss as margin_ranking_loss
from jaxloss.embedding import triplet_margin_loss as triplet_margin_loss
from jaxloss.embedding import triplet_margin_with_distance_loss as triplet_margin_with_distance_loss
from jaxloss.likelihood import gaussian_nll_loss as gaussian_nll_loss
from jaxloss.likelihood import poisson_nll_loss as poisson_nll_loss
from jaxloss.margin import multi_margin_loss as multi_margin_loss
from jaxloss.margin import multilabel_margin_loss as multilabel_margin_loss
from jaxloss.regression import huber_loss as huber_loss
from jaxloss.regression import l1_loss as l1_loss
from jaxloss.regression import mse_loss as mse_loss
from jaxloss.regression import smooth_l1_loss as smooth_l1_loss
from jaxloss.sequence import ctc_loss as ctc_loss
from jaxloss.vocabulary import LinearLogProbs as LinearLogProbs
from jaxloss.vocabulary import linear_cross_entropy as linear_cross_entropy
from jaxloss.vocabulary import linear_log_probs as linear_log_probs
