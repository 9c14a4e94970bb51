"""Adversarial losses: formulas, entries and certificate rows."""

from tests.case import add
from tests.formulas import beyond_pytorch, positive_part, softplus
from tests.situation import INF, row

KINDS = ("non_saturating", "hinge", "wasserstein", "least_squares")


@beyond_pytorch("(),()->()")
def discriminator_loss(real, fake, kind="non_saturating"):
    return {
        "non_saturating": lambda: softplus(-real) + softplus(fake),
        "hinge": lambda: positive_part(1 - real) + positive_part(1 + fake),
        "wasserstein": lambda: fake - real,
        "least_squares": lambda: (real - 1) ** 2 + fake**2,
    }[kind]()


@beyond_pytorch("()->()")
def generator_loss(fake, kind="non_saturating"):
    return {
        "non_saturating": lambda: softplus(-fake),
        "hinge": lambda: -fake,
        "wasserstein": lambda: -fake,
        "least_squares": lambda: (fake - 1) ** 2,
    }[kind]()


for _kind in KINDS:
    add("discriminator_loss", _kind, lambda rng: {n: rng.randn(4) for n in ("real", "fake")}, kind=_kind)
    add("generator_loss", _kind, lambda rng: {"fake": rng.randn(4)}, kind=_kind)
    row(
        "discriminator_loss",
        "real fake",
        "real fake",
        {"kind": _kind},
        zeros=[(0.0, 0.0)],
        kinks=[(1.0, -1.0)],
        plus=[(INF, 0.0), (0.0, INF)],
        minus=[(-INF, 0.0), (0.0, -INF)],
        far=[(1e100, -1e100), (-1e4, 1e4)],
        half=[(0.5, -1.25), (-2.0, 3.0)],
    )
    row(
        "generator_loss",
        "fake",
        "fake",
        {"kind": _kind},
        zeros=[(0.0,)],
        plus=[(INF,)],
        minus=[(-INF,)],
        far=[(1e100,), (-1e100,)],
        half=[(0.5,), (-1.25,)],
    )
