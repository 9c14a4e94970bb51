"""The losses, one file for each family.

To add a loss:

1. Write the function in the file of its family, under `compiled`: convert the arguments with `agree`, compute
   the formula, and `return reduce_elementwise(...)` or `reduce_losses(...)`. `l1_loss` is a short example.
2. Export it in `jaxloss/__init__.py`.
3. Add entries to `tests/cases/<family>.py`. If PyTorch has the loss, record its answers with
   `python -m tests.torch_oracle`, and add a plain formula to `tests/formulas.py` and extreme points to
   `tests/situations.py`. If not, add formula (`beyond_pytorch`) and points (`row`) next to the entries, as in
   `tests/cases/quantile.py`, and compare the formula with a package in `tests/reference_packages`.
4. Add a case to a `tests/benchmarks/cases*.py` and a row to the README, and write the certificate with
   `python -m tests.certificate`.

Until then, these tests fail: `test_contract` (no entry), `test_certificate` (no row), `test_benchmarks` (not
timed) and `test_documentation` (docstring, README). `test_contract` runs all its laws on every entry.
"""
