"""The session is stricter than a user's: ranks and dtypes never promote silently, and warnings are errors."""

import jax

from jaxloss import _blocks

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Few classes are as many blocks as a user's large vocabulary.
_blocks._BLOCK = 8
