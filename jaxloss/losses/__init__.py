"""One file a family of losses.

To add a loss:

1. Write the function in its family's file, under `compiled`: arguments become arrays that agree, the formula,
   `return reduce_elementwise(...)` or `return reduce_losses(...)`. `l1_loss` is a short example.
2. Export it in `jaxloss/__init__.py`.
3. Add entries to `tests/cases/<family>.py`. If PyTorch has the loss, `python -m tests.torch_oracle` records
   its answers; add a plain formula to `tests/formulas.py`, and extreme points to `tests/situations.py`. If
   not, formula (`beyond_pytorch`) and points (`row`) stand beside the entries, as in
   `tests/cases/quantile.py`, and `tests/reference_packages` holds the formula against a package.
4. Add a case to `tests/benchmarks/cases.py` or one beside it and a row to README;
   `python -m tests.certificate` writes the certificate.

Until then these fail: `test_contract` (no entry), `test_certificate` (no row), `test_benchmarks` (not timed)
and `test_documentation` (docstring, README). Once it has an entry, every law of the contract runs on it.
"""
