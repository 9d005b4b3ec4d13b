"""What a user sets in JAX for other code changes nothing here, and stands in nothing's way."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convert_cases import GOLDEN, options_of
from head_cases import labelled, masked, quick
from model_cases import TIES, random_images
from train_cases import run_compress

import nec_jax
from nec_jax import NecParams, heads
from nec_jax.calibration import fit_latents
from nec_jax.jax_defaults import jax_defaults
from nec_jax.models import vit
from nec_jax.models.weight_tree import flatten_weights

SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "x64": lambda: jax.enable_x64(True),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "explicit transfers": lambda: jax.transfer_guard("disallow_explicit"),
    "no jit": jax.disable_jit,
    "matrix products": lambda: jax.default_matmul_precision("bfloat16"),
    "random bits": lambda: jax.default_prng_impl("rbg"),
    "threefry": lambda: jax.threefry_partitionable(False),
    "raw keys": lambda: jax.legacy_prng_key("error"),
    "NaN": lambda: jax.debug_nans(True),
    "infinity": lambda: jax.debug_infs(True),
}
# Under these everything is compiled anew: they are for the shorter test.
SLOW: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "leaks": jax.checking_leaks,
    "device": lambda: jax.default_device(jax.devices()[-1]),
}
REFUSING = ("rank promotion", "dtype promotion", "x64", "transfer guard", "random bits")
IMAGES = random_images(11, 3)
HEADS: list[tuple[heads.Kind, bool]] = [
    ("linear", False),
    ("linear", True),
    ("class-linear", False),
    ("attention", False),
    ("attention", True),
    ("token-linear", False),
    ("conv", False),
]


@contextlib.contextmanager
def all_that_refuse():
    with contextlib.ExitStack() as stack:
        for name in REFUSING:
            stack.enter_context(SETTINGS[name]())
        yield


def results(params: NecParams, folder: Path) -> dict[str, Any]:
    """What the package makes of a model, a checkpoint and images: arrays and bytes, by name."""
    nec_jax.save(params, folder / "model")
    model = nec_jax.load(folder / "model")
    blobs = nec_jax.encode(model, IMAGES)
    found: dict[str, Any] = flatten_weights(model.weights)
    found |= {f"blob {i}": blob for i, blob in enumerate(blobs)}
    found["decoded"] = nec_jax.decode(model, blobs)
    found["embedded"] = nec_jax.embed(model, IMAGES)
    found["latents"] = nec_jax.latents(model, IMAGES)
    calibrated = nec_jax.calibrate(model, (random_images(seed, 8) for seed in (1, 2)))
    found["codec"] = calibrated.codec.to_bytes() if calibrated.codec else b""
    nec_jax.export_decoder_block(model, folder / "block")
    found["block"] = (folder / "block").read_bytes()
    imported = nec_jax.convert_checkpoint(
        GOLDEN / "timm-registers/model.safetensors", **options_of("timm-registers")
    )
    found |= {f"imported {k}": v for k, v in flatten_weights(imported.weights).items()}
    for kind, decoder in HEADS:
        name = f"{kind} {decoder}"
        val = masked(1, 4) if kind in ("conv", "token-linear") else labelled(1, 8)
        heads.save(quick(model, kind, with_decoder=decoder, val=val), folder / "head")
        found[name] = (folder / "head").read_bytes()
        head = heads.load(folder / "head")
        found[f"{name} predicts"] = heads.predict_proba(head, labelled(5, 6)[0])
        found[f"{name} classifies"] = heads.predict(head, labelled(5, 6)[0])
    return found


@pytest.fixture(scope="module")
def expected(model: NecParams, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return results(model, tmp_path_factory.mktemp("defaults"))


@pytest.mark.parametrize("name", SETTINGS)
def test_models_and_heads_are_what_they_are_without(
    model: NecParams, expected: dict[str, Any], name: str, tmp_path: Path
) -> None:
    with SETTINGS[name]():
        found = results(model, tmp_path)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, bytes):
            assert found[key] == value, key
        else:
            assert found[key].dtype == value.dtype, key
            np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.fixture(scope="module")
def ladder(model: NecParams) -> NecParams:
    return fit_latents(model, nec_jax.latents(model, random_images(7, 16)), 0.3)


@pytest.mark.parametrize(
    ("name", "which"),
    [(name, "ladder") for name in (*SETTINGS, *SLOW)] + [(name, "model") for name in REFUSING],
)
def test_inside_of_a_jit_an_embedding_and_its_gradient_are_what_they_are_without(
    request: pytest.FixtureRequest, name: str, which: str
) -> None:
    params: NecParams = request.getfixturevalue(which)
    images, plain = jax.device_put(IMAGES), nec_jax.embed(params, IMAGES)

    def loss(params: NecParams) -> tuple[jax.Array, jax.Array]:
        y_hat = nec_jax.embed_traced(params, images)
        return jnp.square(y_hat).sum(), y_hat

    with (SETTINGS | SLOW)[name]():
        np.testing.assert_array_equal(nec_jax.embed(params, IMAGES), plain)
        gradient, y_hat = jax.jit(jax.grad(loss, has_aux=True))(params)
        gradient, y_hat = jax.device_get((gradient, y_hat))
    assert y_hat.dtype == np.float32
    assert np.mean(np.abs(y_hat - plain) > 1e-4) < TIES
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}


def test_training_is_what_it_is_without(smoke_mae: Path, smoke_nec: Path, tmp_path: Path) -> None:
    with all_that_refuse():
        found = run_compress(smoke_mae, tmp_path)
    usual = nec_jax.load(smoke_nec / "model.safetensors")
    assert found.codec == usual.codec
    jax.tree.map(np.testing.assert_array_equal, found.weights, usual.weights)


def test_outside_of_a_call_the_settings_are_the_users(model: NecParams) -> None:
    seen = []

    def images():
        for seed in (1, 2):
            seen.append(jnp.ones(1, jnp.float64).dtype)  # what a function of the user's computes
            yield random_images(seed, 8)

    with all_that_refuse(), jax.transfer_guard("allow"):
        assert jnp.ones(1).dtype == jnp.float64
        with jax_defaults():
            assert jnp.ones(1).dtype == jnp.float32
            assert jnp.ones(3) + jnp.ones((2, 3), jnp.int32) is not None
        assert jnp.ones(1).dtype == jnp.float64
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.add(jnp.ones(3), jnp.ones((2, 3)))
        nec_jax.calibrate(model, images())
    assert set(seen) == {np.dtype("float64")}


def test_attention_is_that_of_the_device_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's is not for a CPU that somebody with a GPU computes on."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    qkv = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 2, 8)), jnp.bfloat16)
    for device in (jax.devices("cpu")[0], "cpu"):
        with jax.default_device(device):
            assert vit.attend(qkv, "bfloat16").shape == (2, 5, 2, 8)
