"""Run JAX with its own defaults, whatever the user has set for the rest of the process."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def jax_defaults() -> Iterator[None]:
    """Undo JAX settings that change or refuse a result, in this thread and for this block.

    Every public function runs in it. So the same images give the same bytes and the same seed the
    same weights, and code here may use implicit promotion and transfers. Settings of devices and
    debugging (`jax_default_device`, `jax_debug_nans`) stay the user's. No function of the user is
    called in it.
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
