"""What is lowered in precision, and what stays float32."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import random_images, random_weights, tiny_config

import nec_jax
from benchmarks.accelerator import model_flops
from nec_jax.models import nec
from nec_jax.models.freezing import trainable_rule
from nec_jax.models.nec import Losses, forward
from nec_jax.models.weight_tree import split
from train.configs.options import Compress
from train.engine.initial_model import config_for
from train.tasks.describe import count_flops

KEYS = jax.random.split(jax.random.key(0), 2)
IMAGES = jnp.asarray(random_images(3, 2))
ONE_BLOCK = {"depth": 1, "decoder_depth": 1}


def losses(weights: Any, precision: str) -> Losses:
    config = tiny_config(precision=precision, **ONE_BLOCK)
    return forward(config, weights, IMAGES, KEYS, mask_ratio=0.75, rounding="noise")


def gradient(weights: Any, precision: str) -> tuple[Any, Losses]:
    def total(weights: Any) -> tuple[jax.Array, Losses]:
        found = losses(weights, precision)
        return found.mse + found.bits_per_element, found

    return jax.grad(total, has_aux=True)(weights)


def operations(jaxpr: Any) -> Iterator[tuple[str, list[Any], Any]]:
    """Name, operand dtypes and parameters of every operation, those of inner programs too."""
    for equation in jaxpr.eqns:
        types = [v.aval.dtype for v in equation.invars if hasattr(v.aval, "dtype")]
        yield equation.primitive.name, types, equation.params
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from operations(getattr(inner, "jaxpr", inner))


def test_in_bfloat16_products_are_and_norms_softmax_and_density_are_not() -> None:
    weights = random_weights(tiny_config(**ONE_BLOCK))
    traced = jax.make_jaxpr(lambda w: losses(w, "bfloat16"))(weights)
    seen: dict[str, set] = {}
    for name, types, _ in operations(traced.jaxpr):
        seen.setdefault(name, set()).update(map(str, types))
    assert seen["dot_general"] == {"bfloat16"}
    for name in ("exp", "rsqrt", "tanh", "log", "reduce_max"):  # softmax, norms and the density
        assert seen[name] == {"float32"}, name


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32"])
def test_products_of_both_passes_are_asked_for_at_the_precision(precision: str) -> None:
    weights = random_weights(tiny_config(**ONE_BLOCK))
    traced = jax.make_jaxpr(lambda w: gradient(w, precision))(weights)
    found = [p["precision"] for name, _, p in operations(traced.jaxpr) if name == "dot_general"]
    kind = {"float32": jax.lax.Precision.HIGHEST, "tensorfloat32": jax.lax.Precision.HIGH}
    assert set(found) == {(kind[precision],) * 2}


@pytest.mark.slow
def test_bfloat16_changes_little_and_weights_and_results_stay_float32() -> None:
    weights = random_weights(tiny_config(**ONE_BLOCK))
    compiled = jax.jit(gradient, static_argnums=1)
    (exact_grad, exact), (rough_grad, rough) = (
        compiled(weights, precision) for precision in ("float32", "bfloat16")
    )
    assert rough.mse.dtype == rough.bits_per_element.dtype == jnp.float32
    assert 0 < abs(rough.mse / exact.mse - 1) < 0.02
    assert abs(rough.bits_per_element / exact.bits_per_element - 1) < 0.02
    for a, b in zip(jax.tree.leaves(rough_grad), jax.tree.leaves(exact_grad), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) <= 0.1 * np.linalg.norm(b) + 1e-6


def test_an_image_in_bfloat16_has_the_bytes_that_it_has_alone(model: nec_jax.NecParams) -> None:
    images = random_images(1, 11)
    blobs = nec_jax.encode(model, images, precision="bfloat16")
    assert blobs[9:10] == nec_jax.encode(model, images[9:10], precision="bfloat16")
    assert blobs != nec_jax.encode(model, images)
    decoded = nec_jax.decode(model, blobs)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, nec_jax.embed(model, images, precision="bfloat16"))


def test_training_has_the_precision_that_it_is_asked_for_and_the_model_keeps_it() -> None:
    config = tiny_config(precision="tensorfloat32")
    assert config_for(Compress(), config).precision == "tensorfloat32"
    assert config_for(Compress(precision="bfloat16"), config).precision == "bfloat16"


def test_the_flops_of_utilisation_are_those_that_xla_counts() -> None:
    config = nec_jax.model_config("vit-b", depth=1, decoder_depth=1)
    shapes = jax.eval_shape(lambda key: nec.init_weights(config, key), jax.random.key(0))
    parts = split(shapes, trainable_rule("paper", config))
    counted = count_flops(Compress(batch=1, trainable="paper"), config, *parts)
    assert 0.95 < model_flops(config, training=True) / counted < 1.05
