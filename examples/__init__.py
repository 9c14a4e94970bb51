"""Examples of training with jaxloss; `python -m examples` runs them all."""

import time

STARTED = time.perf_counter()  # before JAX is imported
