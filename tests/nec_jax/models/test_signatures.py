"""The shapes and dtypes in signatures hold in tests (`checked_shapes`), and cost users nothing."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from nec_jax.models.density import bin_bits, init_density, match_moments
from nec_jax.models.vit import attend, patchify


def test_a_wrong_shape_or_dtype_is_found_where_it_enters() -> None:
    params = init_density(jax.random.key(0), 3)
    assert bin_bits(params, jnp.zeros((2, 3))).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="bin_bits"):
        bin_bits(params, jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(TypeCheckError, match="match_moments"):
        match_moments(params, jnp.zeros(3), jnp.ones(4))
    with pytest.raises(TypeCheckError, match="patchify"):
        patchify(jnp.zeros((8, 8, 3)), 4)
    with pytest.raises(TypeCheckError, match="attend"):
        attend(jnp.zeros((2, 5, 4, 3, 8)), "float32")


def test_outside_of_tests_nothing_is_checked() -> None:
    program = (
        "import sys, jax.numpy as jnp, nec_jax.models.vit as vit\n"
        "assert vit.patchify(jnp.zeros((1, 8, 8, 3)), 4).shape == (1, 4, 48)\n"
        "assert 'beartype' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
