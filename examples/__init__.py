"""Examples of training with jaxloss; `python -m examples` runs them all."""

import importlib.util
import time

STARTED = time.perf_counter()  # before JAX is imported

_NEEDED = ("jax", "flax", "optax", "orbax", "matplotlib", "sklearn", "tqdm")
if _missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
    raise ModuleNotFoundError(f"the examples need {', '.join(_missing)}: pip install '.[examples]'")
