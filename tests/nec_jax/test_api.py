"""The public API: every sentence of its contract, on a tiny model with real bytes."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from model_cases import NETWORK, TIES, pretrained, random_images, tiny_config

import coder
import nec_jax
from coder import InputError, ScalarCodec
from nec_jax import NecParams, api

REAL_BITS_FACTOR, REAL_BYTES_CONSTANT = 1.01, 16
SIDES = [64, 224]


@functools.cache
def eight_images(side: int) -> np.ndarray:
    return random_images(side, 8, side)


@pytest.fixture(scope="module", params=SIDES)
def coded(request: pytest.FixtureRequest, model: NecParams):
    """(8 images of a size, their blobs)."""
    images = eight_images(request.param)
    return images, nec_jax.encode(model, images)


def test_decode_of_encode_is_embed_bit_for_bit(model, coded):
    images, blobs = coded
    y_hat, embedded = nec_jax.decode(model, blobs), nec_jax.embed(model, images)
    assert y_hat.dtype == embedded.dtype == np.float32
    assert y_hat.shape == (8, 1 + (images.shape[1] // 16) ** 2, 48)
    assert y_hat.tobytes() == embedded.tobytes()
    assert len(np.unique(y_hat)) > 500


def test_images_of_any_sides_that_the_patch_divides(model):
    images = random_images(0, 2, 64)[:, :48]
    y_hat = nec_jax.decode(model, nec_jax.encode(model, images))
    assert y_hat.shape == (2, 1 + 3 * 4, 48)
    np.testing.assert_array_equal(y_hat, nec_jax.embed(model, images))


def test_a_consumer_decodes_with_the_codec_alone(model, coded, tmp_path: Path):
    _, blobs = coded
    model.codec.save(tmp_path / "codec")
    codec = coder.load(tmp_path / "codec")
    for blob, expected in zip(blobs, nec_jax.decode(model, blobs), strict=True):
        np.testing.assert_array_equal(codec.decode(blob), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_an_images_bytes_do_not_depend_on_the_size_of_its_batch(model, coded, count):
    images, blobs = coded
    y = nec_jax.latents(model, images)
    for start in range(0, 8, count):
        part = slice(start, start + count)
        assert nec_jax.encode(model, images[part]) == blobs[part]
        # Floats that differ by 1e-6 seldom change a byte: hold the cause down, not the effect.
        np.testing.assert_array_equal(nec_jax.latents(model, images[part]), y[part])


def test_an_images_bytes_do_not_depend_on_its_neighbours(model, coded):
    images, blobs = coded
    y = nec_jax.latents(model, images)
    rng = np.random.default_rng(0)
    for _ in range(3):
        order = rng.permutation(8)
        assert nec_jax.encode(model, images[order]) == [blobs[i] for i in order]
        np.testing.assert_array_equal(nec_jax.latents(model, images[order]), y[order])
    # More images than a coding batch, some of them twice.
    many = np.concatenate([images, images[::-1], images[3:4]])
    assert nec_jax.encode(model, many) == [*blobs, *blobs[::-1], blobs[3]]
    assert len(set(blobs)) == 8


def test_blobs_decode_in_any_order_and_company(model, coded):
    _, blobs = coded
    y_hat = nec_jax.decode(model, blobs)
    np.testing.assert_array_equal(nec_jax.decode(model, blobs[5:2:-1]), y_hat[5:2:-1])


def test_batches_are_padded_to_the_stored_coding_batch(model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        api,
        "_latents",
        lambda config, _, x: seen.append((len(x), config.precision)) or x[:, :17, :48, 0],
    )
    for params, settings in (
        (model, {}),
        (nec_jax.with_coding(model, coding_batch=3), {}),
        (model, {"coding_batch": 5, "precision": "bfloat16"}),
    ):
        nec_jax.latents(nec_jax.with_coding(params, **settings), random_images(0, 7))
    assert seen == [(8, "float32"), *3 * [(3, "float32")], *2 * [(5, "bfloat16")]]
    for function in (nec_jax.encode, nec_jax.embed):
        seen.clear()
        monkeypatch.setattr(ScalarCodec, "encode", lambda *_, **__: b"")
        function(model, random_images(0, 2), coding_batch=2, precision="tensorfloat32")
        assert seen == [(2, "tensorfloat32")]


def test_a_batch_is_coded_while_the_next_is_computed_and_no_further_ahead(model, monkeypatch):
    seen = []
    latents = api._latents
    monkeypatch.setattr(api, "_latents", lambda *a: seen.append("model") or latents(*a))
    monkeypatch.setattr(ScalarCodec, "encode", lambda *_, **__: seen.append("coder") or b"")
    nec_jax.encode(model, random_images(0, 7), coding_batch=2)
    ahead = ["model", "coder", "coder"]
    assert seen == ["model", *3 * ahead, "coder"]


def test_a_pool_codes_the_same_bytes(model, coded):
    images, blobs = coded
    with coder.Pool(model.codec, workers=2) as pool:
        assert nec_jax.encode(model, images, pool=pool) == blobs
        assert nec_jax.encode(model, images[:3], pool=pool) == blobs[:3]
        other = dataclasses.replace(model, codec=dataclasses.replace(model.codec, quality=1))
        with pytest.raises(InputError, match="another codec: make it of this model's"):
            nec_jax.encode(other, images, pool=pool)
    wrong: list[Any] = [(4, "int"), (True, "bool"), (coder.Pool, "type"), (model.codec, "Codec")]
    for not_one, kind in wrong:
        with pytest.raises(InputError, match=rf"pool is a \w*{kind}: give a coder.Pool"):
            nec_jax.encode(model, images, pool=not_one)


def test_an_overridden_coding_batch_is_recorded_in_the_model(model, tmp_path: Path):
    changed = nec_jax.with_coding(model, coding_batch=3, precision="bfloat16")
    nec_jax.save(changed, tmp_path / "m")
    config = nec_jax.load(tmp_path / "m").config
    assert (config.coding_batch, config.precision) == (3, "bfloat16")
    assert dataclasses.replace(config, coding_batch=8, precision="float32") == model.config
    assert nec_jax.with_coding(model) is model


def test_latents_are_what_embed_rounds(model, coded):
    images, _ = coded
    y = nec_jax.latents(model, images)
    codec = model.codec
    np.testing.assert_array_equal(nec_jax.embed(model, images), codec.dequantise(codec.quantise(y)))
    apart = np.abs(y - nec_jax.embed(model, images)) / codec.steps
    assert 0.4 < apart.max() < 0.5001


def test_embed_traced_is_embed_up_to_counted_ties(model):
    images = eight_images(224)

    @jax.jit
    def head(params, images):
        return 2.0 * nec_jax.embed_traced(params, images) - 1.0

    ours = nec_jax.embed(model, images)
    traced = (np.asarray(head(model, images)) + 1) / 2
    assert traced.shape == ours.shape
    steps = np.abs(traced - ours) / model.codec.steps
    moved = steps > 0.5
    assert moved.mean() < TIES
    np.testing.assert_allclose(steps[moved], 1, rtol=1e-2)  # one step, no more
    np.testing.assert_allclose(traced[~moved], ours[~moved], **NETWORK)


def test_real_bytes_are_close_to_the_estimate(model, coded):
    _, blobs = coded
    for blob in blobs:
        symbols, _ = model.codec.decode_symbols(blob)
        estimate = model.codec.estimate_bits(symbols) / 8
        assert estimate <= len(blob) <= REAL_BITS_FACTOR * estimate + REAL_BYTES_CONSTANT


def test_without_a_class_token_there_are_as_many_tokens_as_patches(grid_only_model):
    images, params = random_images(0, 4), grid_only_model
    y_hat = nec_jax.decode(params, nec_jax.encode(params, images))
    assert y_hat.shape == (4, 16, 48)
    np.testing.assert_array_equal(y_hat, nec_jax.embed(params, images))
    # The same weights with it: it comes first, then the grid.
    config = dataclasses.replace(params.config, code_class_token=True)
    both = dataclasses.replace(params, config=config)
    np.testing.assert_array_equal(
        nec_jax.latents(both, images)[:, 1:], nec_jax.latents(params, images)
    )


def test_thirteen_bands_of_floats_are_images_too():
    bands = tuple(f"B{i:02d}" for i in range(13))
    config = tiny_config(
        bands=bands,
        mean=(0.4,) * 13,
        std=(0.2,) * 13,
        dtype="float32",
        value_range=(0.0, 1.0),
        depth=1,
    )
    images = (random_images(0, 4, 64, 13) / 255).astype(np.float32)
    params = nec_jax.calibrate(pretrained(config, images), images)
    y_hat = nec_jax.decode(params, nec_jax.encode(params, images))
    np.testing.assert_array_equal(y_hat, nec_jax.embed(params, images))


def test_the_public_names():
    assert set(nec_jax.__all__) >= {
        "NecParams",
        "load",
        "save",
        "encode",
        "decode",
        "embed",
        "embed_traced",
    }
    assert all(hasattr(nec_jax, name) for name in nec_jax.__all__)
    assert issubclass(InputError, coder.CodecError)
