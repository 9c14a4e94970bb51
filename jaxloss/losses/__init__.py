"""One file a family of losses.

To add a loss:

1. Write the function in its family's file, under `compiled`: arguments become arrays that agree, the formula,
   `return reduce_elementwise(...)` or `return reduce_losses(...)`. `sigmoid_focal_loss` is a short example.
2. Export it in `jaxloss/__init__.py`.
3. Add entries to `tests/cases/<family>.py`, and the oracle: PyTorch's loss of that name, or a formula in
   `tests/torch_oracle.py`, whose record `python -m tests.torch_oracle` writes.
4. Add its plain formula to `tests/formulas.py`, its extreme points to `tests/situations.py`, a case to
   `tests/benchmarks/cases.py` and a row to README; `python -m tests.certificate` writes the certificate.

Until then these fail: `test_contract` (no entry), `test_certificate` (no row), `test_benchmarks` (not timed)
and `test_documentation` (docstring, README). Once it has an entry, every law of the contract runs on it.
"""
