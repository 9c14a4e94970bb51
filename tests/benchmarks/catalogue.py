"""The cases of every loss."""

from tests.benchmarks import cases as cases
from tests.benchmarks import cases_alignment as cases_alignment
from tests.benchmarks import cases_beyond as cases_beyond
from tests.benchmarks import cases_pairs as cases_pairs
from tests.benchmarks import cases_vision as cases_vision
from tests.benchmarks.case import CASES as CASES
from tests.benchmarks.case import publics as publics
