"""Reference packages for losses of embeddings, and for distillation."""

import functools
import importlib

import numpy as np

from tests.reference_packages import reference

# Rows of embeddings.


@reference("info_nce")
def info_nce_loss(
    package, embeddings, targets, negatives=None, temperature=0.1, symmetric=False, normalize=True
):
    torch = importlib.import_module("torch")
    if symmetric or not normalize:  # it has neither option
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
    if not normalize and loss == "CircleLoss":  # it accepts only cosine similarities
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
    possible = torch.isfinite(teacher)  # kl_div gives NaN where both are -inf
    losses = functional.kl_div(student, teacher, reduction="none", log_target=True)
    return temperature**2 * torch.where(possible, losses, 0).sum(-1).numpy()


# Teachers and views of self-supervised learning.


@reference("torch.nn.functional")
def distillation_loss(functional, logits, targets, axis=-1, temperature=1.0):
    student, teacher = log_softmaxes(functional, logits, targets, axis, temperature)
    losses = functional.kl_div(student, teacher, log_target=True, reduction="none")
    return temperature**2 * losses.sum(axis).numpy()


@reference("torch.nn.functional")
def jensen_shannon_loss(functional, logits, targets, axis=-1, beta=0.5, temperature=1.0):
    """Computes the formula of TRL's generalized_jsd_loss, which has no unreduced losses."""
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
    if eps != 1e-5:  # the eps of its batch normalization is fixed
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
        # Each call updates the center, and its own temperature would be float32.
        function.center = (
            torch.tensor(0.0 if center is None else center).double().expand(1, 1, logits.shape[-1])
        )
        views = (list(torch.tensor(array[:, n : n + 1])) for array in (targets, logits))
        return function(*views, teacher_temp=np.float64(teacher_temperature)).item()

    return np.array([of_image(n) for n in range(logits.shape[1])])
