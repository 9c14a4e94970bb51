"""Benchmarks of every loss against PyTorch, Optax and the one-line JAX form: `python -m tests.benchmarks`."""
