"""The catalogue: every loss in every situation that `test_contract` compares with PyTorch or a formula."""

from tests.case import CASES as CASES
from tests.case import REDUCTIONS as REDUCTIONS
from tests.case import Case as Case
from tests.case import cotangent as cotangent
from tests.case import nested as nested
from tests.cases import adversarial as adversarial
from tests.cases import binary as binary
from tests.cases import boxes as boxes
from tests.cases import classification as classification
from tests.cases import contrastive as contrastive
from tests.cases import distillation as distillation
from tests.cases import embedding as embedding
from tests.cases import focal as focal
from tests.cases import images as images
from tests.cases import lovasz as lovasz
from tests.cases import metric as metric
from tests.cases import ordinal as ordinal
from tests.cases import overlap as overlap
from tests.cases import policy as policy
from tests.cases import polynomial as polynomial
from tests.cases import preference as preference
from tests.cases import quantile as quantile
from tests.cases import ranking as ranking
from tests.cases import regression as regression
from tests.cases import robust as robust
from tests.cases import self_supervised as self_supervised
from tests.cases import sequence as sequence
from tests.cases import sparse as sparse
from tests.cases import survival as survival
from tests.cases import transducer as transducer
from tests.cases import vocabulary as vocabulary


def _kind(case: Case) -> tuple[object, ...]:
    first = next(iter(case.arrays.values()))
    return case.loss, first.ndim == 0, *case.arrays, *case.options


# One of the entries that differ only in their numbers, for properties that do not depend on numbers.
KINDS = list({_kind(case): case for case in reversed(CASES)}.values())
