"""JAX with its own defaults, whatever the user has set for the rest of the process."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def jax_defaults() -> Iterator[None]:
    """Undo, in this thread and for as long as it lasts, settings that change or refuse a result.

    Everything that is called from outside runs in it: the same images give the same bytes, the same
    seed the same weights, and nothing here has to do without implicit promotion or transfers.
    Devices and debugging (`jax_default_device`, `jax_debug_nans`) stay the user's. A function of
    the user's is not called in it.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision(None),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.legacy_prng_key("allow"),
        jax.transfer_guard("allow"),
        jax.disable_jit(False),
    ):
        yield
