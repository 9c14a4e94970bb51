"""How fast each loss is beside PyTorch, Optax and the one-line JAX form: `python -m tests.benchmarks`."""
