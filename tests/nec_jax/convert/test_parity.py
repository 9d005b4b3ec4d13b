"""Imported models against the originals: fixtures that tests/parity/make.py made with them."""

import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from folders import TESTS

import nec_jax
from coder import FileError, InputError, ScalarCodec
from nec_jax import NecParams, convert_checkpoint, latents
from nec_jax.convert.positions import resize
from nec_jax.models import density, nec

GOLDEN = Path(os.environ.get("NEC_PARITY", TESTS / "parity/golden"))
CASES = sorted(path.parent.name for path in GOLDEN.glob("*/options.json"))
# Relative to the largest value: a float32 network of some dozen layers.
RELATIVE = 1e-5


def expected_of(name: str) -> dict[str, np.ndarray]:
    """What a case's original makes of its images."""
    return safetensors.numpy.load_file(GOLDEN / name / "expected.safetensors")


def import_case(name: str, **more: Any) -> tuple[NecParams, dict[str, np.ndarray]]:
    """The model of a case and what its original makes of its images."""
    told = json.loads((GOLDEN / name / "options.json").read_text())
    options: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in told["options"].items()}
    params = convert_checkpoint(GOLDEN / name / told["source"], **(options | more))
    return params, expected_of(name)


def assert_close(found: Any, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=RELATIVE, atol=RELATIVE * scale)


def test_the_fixtures_are_there() -> None:
    assert len(CASES) >= 18
    assert (GOLDEN / "resizing.safetensors").is_file()


@pytest.mark.parametrize("name", CASES)
def test_the_encoder_is_the_original(name: str) -> None:
    params, expected = import_case(name)
    assert_close(latents(params, expected["images"]), expected["tokens"])
    if "kept" in expected:
        images, kept = jnp.asarray(expected["images"]), jnp.asarray(expected["kept"])
        masked = nec.latents(params.config, params.weights, images, kept)
        assert_close(masked, expected["masked_tokens"])


def test_fixed_positions_are_recognised_and_learned_ones_kept() -> None:
    for name, positions in (("facebook-mae", "sincos"), ("transformers-mae", "learned")):
        config = import_case(name)[0].config
        assert (config.positions, config.decoder_positions) == (positions, positions)


@pytest.mark.parametrize(
    "name",
    [c for c in CASES if ("mae" in c or c[:3] in ("nec", "pri")) and "resized" not in c],
)
def test_the_decoder_and_the_masked_loss_are_the_original(name: str) -> None:
    params, expected = import_case(name)
    if "predicted" not in expected:
        assert params.config.decoder_target == "none"
        return
    config, weights = params.config, params.weights
    assert ("normalised" in name) == (config.decoder_target == "normalised-pixels")
    images, kept = jnp.asarray(expected["images"]), jnp.asarray(expected["kept"])
    y, grid = jnp.asarray(expected["masked_tokens"]), config.grid(*images.shape[1:3])
    assert_close(nec.reconstruct(config, weights, y, grid, kept), expected["predicted"])
    masked = jnp.ones((len(images), 16)).at[jnp.arange(len(images))[:, None], kept].set(0.0)
    goal = nec.targets(config, weights, images)
    loss = nec.distortion(config, weights, y, goal, grid, kept, masked)
    np.testing.assert_allclose(loss, expected["loss"][0], rtol=RELATIVE)


def test_the_decoder_of_a_resized_model_is_the_original() -> None:
    params, expected = import_case("transformers-mae-resized")
    tokens = jnp.asarray(expected["tokens"])
    assert_close(
        nec.reconstruct(params.config, params.weights, tokens, (6, 6)), expected["decoded"]
    )


@pytest.mark.parametrize("name", [c for c in CASES if c.startswith("nec")])
def test_density_symbols_and_tables_are_those_of_compressai(name: str) -> None:
    params, expected = import_case(name)
    codec, latent = params.codec, expected["latent"]
    assert isinstance(codec, ScalarCodec)
    np.testing.assert_array_equal(codec.quantise(latent), expected["symbols"])
    np.testing.assert_array_equal(codec.dequantise(codec.quantise(latent)), expected["y_hat"])
    found = density.bin_prob(
        params.weights["bottleneck"]["density"], jnp.asarray(expected["y_hat"])
    )
    likelihoods = expected["likelihoods"]
    np.testing.assert_allclose(np.maximum(found, 1e-9), likelihoods, rtol=1e-5, atol=1e-6)
    # Their 16-bit tables, exactly: 256 of our units for one of theirs.
    starts = np.concatenate([[0], np.cumsum(codec.tables.sizes)])
    for channel, cdf in enumerate(expected["cdf"]):
        weights = codec.tables.weights[starts[channel] : starts[channel + 1]]
        counts = np.diff(cdf[: len(weights) + 1])
        np.testing.assert_array_equal(weights, 256 * counts)


@pytest.mark.parametrize("name", [c for c in CASES if c.startswith("nec")])
def test_a_nec_model_encodes_and_decodes_at_once(name: str) -> None:
    params, expected = import_case(name)
    blobs = nec_jax.encode(params, expected["images"])
    decoded = nec_jax.decode(params, blobs)
    np.testing.assert_array_equal(decoded, nec_jax.embed(params, expected["images"]))


@pytest.mark.parametrize("name", [c for c in CASES if "after_block_1" in expected_of(c)])
def test_the_embedding_of_an_inner_block(name: str) -> None:
    params, expected = import_case(name, blocks=(1,))
    assert (params.config.depth, params.config.embedding_blocks) == (1, ())
    assert_close(latents(params, expected["images"]), expected["after_block_1"])
    both, _ = import_case(name, blocks=(1, 2))
    assert both.config.embedding_width == 2 * both.config.width
    y = latents(both, expected["images"])
    assert_close(y, np.concatenate([expected["after_block_1"], expected["tokens"]], axis=-1))


@pytest.mark.skipif(not (GOLDEN / "every-timm").is_dir(), reason="made by `make parity` alone")
def test_what_is_not_refused_of_timm_is_the_original() -> None:
    same, refused = 0, 0
    for folder in sorted((GOLDEN / "every-timm").iterdir()):
        try:
            params, expected = import_case(f"every-timm/{folder.name}")
        except (FileError, InputError):
            refused += 1
            continue
        tokens, kept = expected["tokens"], params.config.class_token
        extra = params.config.registers
        found = latents(params, expected["images"])
        assert_close(found, np.delete(tokens, range(kept, kept + extra), axis=1))
        same += 1
    print(f"of timm's architectures {same} are the same function, {refused} are refused")
    assert same > 50
    assert refused > 50


@pytest.mark.parametrize("how", ["bicubic", "antialiased", "dinov2"])
@pytest.mark.parametrize("side", [3, 4, 7, 10, 16])
def test_positions_are_resized_as_their_project_does(how: Any, side: int) -> None:
    expected = safetensors.numpy.load_file(GOLDEN / "resizing.safetensors")
    assert_close(resize(expected["positions"], side, how), expected[f"{how}_{side}"])
