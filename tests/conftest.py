"""The session is stricter than a user's: ranks and dtypes never promote silently, and warnings are errors."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
