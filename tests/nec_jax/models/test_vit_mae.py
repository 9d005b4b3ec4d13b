"""The vision transformer and the masked autoencoder around it."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FLOAT32, NETWORK, filled, random_images, tiny_config

from coder import InputError
from coder.task_heads.head_layers import sincos_positions
from nec_jax import ModelConfig, model_config
from nec_jax.models.mae import Decoder, DecoderStem, masked_mse, random_masking
from nec_jax.models.vit import Encoder, Mlp, layer_norm, patchify, unpatchify

GRID = (4, 4)


@functools.cache
def encoder(config: ModelConfig):
    """(patches of all tokens, weights, the encoder as a function of patches and kept tokens)."""
    side = config.image_size
    grid = config.grid(side, side)
    patches = jax.random.normal(jax.random.key(1), (3, grid[0] * grid[1], config.patch_dim))
    shapes = jax.eval_shape(lambda k: Encoder(config).init(k, patches, grid), jax.random.key(0))
    weights = filled(shapes)
    weights["params"]["patch_embed"]["bias"] *= 0
    encode = jax.jit(lambda x, kept=None: Encoder(config).apply(weights, x, grid, kept))
    return patches, weights["params"], encode


@pytest.mark.parametrize(("grid", "width"), [((3, 5), 16), ((14, 14), 768), ((1, 1), 4)])
def test_positions_encode_the_column_first_then_the_row_as_sines_then_cosines(grid, width):
    # MAE's get_2d_sincos_pos_embed, number by number.
    positions = sincos_positions(grid, width)
    assert positions.shape == (grid[0] * grid[1], width)
    assert positions.dtype == np.float32
    quarter = width // 4
    expected = np.empty((*grid, width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for i in range(quarter):
                omega = 10000 ** (-i / quarter)
                expected[row, column, i] = math.sin(column * omega)
                expected[row, column, quarter + i] = math.cos(column * omega)
                expected[row, column, 2 * quarter + i] = math.sin(row * omega)
                expected[row, column, 3 * quarter + i] = math.cos(row * omega)
    np.testing.assert_allclose(positions.reshape(expected.shape), expected, **FLOAT32)


@pytest.mark.parametrize("shape", [(2, 8, 12, 3), (1, 4, 4, 1), (3, 4, 8, 13)])
def test_unpatchify_inverts_patchify(shape):
    images = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    patches = patchify(images, 4)
    assert patches.shape == (shape[0], shape[1] * shape[2] // 16, 16 * shape[3])
    grid = (shape[1] // 4, shape[2] // 4)
    np.testing.assert_array_equal(unpatchify(patches, grid, 4), images)


def test_patches_go_row_by_row_and_their_pixels_row_column_band():
    patch, columns, bands = 2, 3, 5
    images = np.arange(4 * 6 * bands).reshape(1, 4, 6, bands)
    patches = patchify(jnp.asarray(images), patch)
    for r in range(2):
        for s in range(columns):
            for p in range(patch):
                for q in range(patch):
                    for c in range(bands):
                        value = patches[0, r * columns + s, (p * patch + q) * bands + c]
                        assert value == images[0, r * patch + p, s * patch + q, c]


@pytest.mark.parametrize(
    ("tokens", "ratio", "count"), [(196, 0.75, 49), (196, 0.0, 196), (5, 0.5, 2)]
)
def test_masking_keeps_the_given_part_of_every_image_without_repetition(tokens, ratio, count):
    kept, masked = random_masking(jax.random.split(jax.random.key(0), 7), tokens, ratio)
    assert kept.shape == (7, count)
    assert masked.shape == (7, tokens)
    for visible, hidden in zip(np.asarray(kept), np.asarray(masked), strict=True):
        np.testing.assert_array_equal(np.sort(visible), np.flatnonzero(hidden == 0))
        assert set(np.unique(hidden)) <= {0.0, 1.0}


def test_masking_is_uniform_in_place_and_in_order():
    images, tokens, count = 4000, 8, 4
    kept, _ = random_masking(jax.random.split(jax.random.key(0), images), tokens, 0.5)
    frequency = np.stack([np.bincount(column, minlength=tokens) for column in np.asarray(kept).T])
    expected = images / tokens
    assert frequency.shape == (count, tokens)
    # Five standard deviations of a binomial: 32 cells, so one in 50,000 keys would fail.
    assert np.abs(frequency - expected).max() < 5 * math.sqrt(expected * (1 - 1 / tokens))


def test_masks_come_from_the_key_and_from_nothing_else():
    one, again = (
        random_masking(jax.random.split(jax.random.key(3), 4), 64, 0.75) for _ in range(2)
    )
    other = random_masking(jax.random.split(jax.random.key(4), 4), 64, 0.75)
    np.testing.assert_array_equal(one[0], again[0])
    assert not np.array_equal(one[0], other[0])
    assert not np.array_equal(one[0][0], one[0][1])


@pytest.mark.parametrize("ratio", [1.0, -0.5, 0.99])
def test_a_mask_ratio_that_keeps_nothing_or_too_much_is_refused(ratio):
    with pytest.raises(ValueError, match=f"mask ratio {ratio} keeps"):
        random_masking(jax.random.split(jax.random.key(0), 1), 16, ratio)


def test_the_encoder_is_equivariant_to_the_order_of_the_kept_tokens():
    patches, _, encode = encoder(tiny_config())
    everything = encode(patches)
    assert everything.shape == (3, 17, 48)
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in range(3)])
    permuted = encode(patches, order)
    np.testing.assert_allclose(permuted[:, 0], everything[:, 0], **NETWORK)
    for got, expected, kept in zip(permuted[:, 1:], everything[:, 1:], order, strict=True):
        np.testing.assert_allclose(got, expected[kept], **NETWORK)
    assert not np.allclose(permuted[:, 1:], everything[:, 1:], **NETWORK)


def test_hidden_patches_do_not_reach_the_encoder():
    patches, _, encode = encoder(tiny_config())
    kept, masked = random_masking(jax.random.split(jax.random.key(5), 3), 16, 0.75)
    tokens = encode(patches, kept)
    assert tokens.shape == (3, 5, 48)
    np.testing.assert_array_equal(encode(patches + 100 * masked[..., None], kept), tokens)
    assert not np.allclose(encode(patches + 1.0, kept), tokens, **NETWORK)


def test_without_blocks_a_token_is_its_patch_and_its_place():
    config = tiny_config(depth=0)
    patches, weights, encode = encoder(config)
    tokens = encode(patches)
    for index in (0, 6, 15):
        changed = encode(patches.at[:, index].add(1.0))
        moved = np.flatnonzero((changed != tokens).any(axis=(0, 2)))
        np.testing.assert_array_equal(moved, [1 + index])
    # Empty patches: only the positions tell the tokens apart.
    empty = encode(jnp.zeros_like(patches))
    x = sincos_positions(GRID, config.width)
    x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
    expected = x * weights["norm"]["scale"] + weights["norm"]["bias"]
    np.testing.assert_allclose(empty[0, 1:], expected, **FLOAT32)


@pytest.mark.parametrize(
    ("height", "width", "bands"), [(32, 32, 1), (16, 80, 3), (48, 32, 13), (512, 512, 4)]
)
def test_any_grid_and_any_number_of_bands(height, width, bands):
    names = tuple(f"B{i:02d}" for i in range(bands))
    config = tiny_config(bands=names, mean=(0.0,) * bands, std=(1.0,) * bands)
    grid = config.grid(height, width)
    assert grid == (height // 16, width // 16)

    def autoencode(key):
        patches = patchify(jnp.zeros((2, height, width, bands)), config.patch)
        tokens, _ = Encoder(config).init_with_output(key, patches, grid)
        return tokens, Decoder(config).init_with_output(key, tokens, grid)[0]

    tokens, pixels = jax.eval_shape(autoencode, jax.random.key(0))
    assert tokens.shape == (2, 1 + grid[0] * grid[1], 48)
    assert pixels.shape == (2, grid[0] * grid[1], 256 * bands)


@pytest.mark.parametrize("side", [250, 8, 0])
def test_an_image_side_that_the_patch_does_not_divide_is_refused(side):
    message = f"image side {side} is not a multiple of the patch 16: pad or crop"
    for height, width in ((side, 64), (64, side)):
        with pytest.raises(InputError, match=message):
            tiny_config().grid(height, width)
    if side > 0:
        with pytest.raises(InputError, match=message):
            tiny_config(image_size=side)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bands": ("a", "b")}, "2 bands need as many means and stds"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
        ({"mean": (0.0, math.nan, 0.0)}, "finite"),
        ({"heads": 5}, "heads must divide the width"),
        ({"width": 6, "heads": 3}, "multiples of 4"),
        ({"decoder_width": 6, "decoder_heads": 3, "positions": "learned"}, "multiples of 4"),
        ({"patch": 0}, "patch is 0: give a whole number from 1"),
        ({"depth": 2.0}, "depth is 2.0: give a whole number"),
        ({"depth": 1000}, "more than 256 blocks"),
        ({"dtype": "float64"}, "dtype is 'float64': choose from uint8"),
        ({"value_range": (1.0, 1.0)}, "value_range .* is empty"),
        ({"precision": "half"}, "precision is 'half': choose from float32"),
        ({"activation": "relu"}, "activation is 'relu': choose from gelu, gelu-tanh, quick-gelu"),
        ({"epsilon": 0.0}, "epsilon is 0.0: give a number between 0 and 1"),
        ({"registers": -1}, "registers is -1: give a whole number from 0"),
        ({"class_token": False}, "no class token: set code_class_token to false"),
        ({"embedding_blocks": (1,)}, r"embedding_blocks are \[1\]: .* last block, 2"),
        ({"embedding_blocks": (2, 2)}, "give rising numbers from 1"),
        ({"decoder_target": "sound"}, "decoder_target is 'sound': choose from none, pixels"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**overrides)


def test_an_unknown_architecture_or_field_is_refused():
    with pytest.raises(ValueError, match="'vit-x': choose from vit-ti, vit-s, vit-b"):
        model_config("vit-x")
    with pytest.raises(TypeError, match="dept"):
        model_config("vit-ti", dept=3)


def test_layer_norm_has_the_epsilon_of_mae():
    x = jnp.array([[1e-3, -1e-3, 1e-3, -1e-3]])  # its variance is the epsilon
    y, _ = layer_norm("norm").init_with_output(jax.random.key(0), x)
    np.testing.assert_allclose(y, x / math.sqrt(2e-6), **FLOAT32)


def test_the_mlp_uses_the_exact_gelu():
    x = jnp.linspace(-3, 3, 13)[:, None]
    ones = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    y: Any = Mlp(1).apply({"params": {"fc1": ones, "fc2": ones}}, x)
    expected = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x[:, 0].tolist()]
    np.testing.assert_allclose(y[:, 0], expected, **FLOAT32)
    assert not np.allclose(nn.gelu(x, approximate=True)[:, 0], expected, **FLOAT32)


def test_the_decoder_puts_visible_tokens_in_their_places():
    config = tiny_config()
    tokens = jax.random.normal(jax.random.key(0), (2, 17, 48))
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in range(2)])
    shapes = jax.eval_shape(lambda key: Decoder(config).init(key, tokens, GRID), jax.random.key(0))
    weights = filled(shapes)
    decode = jax.jit(lambda tokens, kept=None: Decoder(config).apply(weights, tokens, GRID, kept))
    shuffled = jnp.stack([t[jnp.append(0, 1 + o)] for t, o in zip(tokens, order, strict=True)])
    np.testing.assert_allclose(decode(shuffled, order), decode(tokens), **NETWORK)


def test_hidden_tokens_are_the_mask_token_in_their_places():
    stem = DecoderStem(tiny_config())
    tokens = jax.random.normal(jax.random.key(0), (1, 3, 48))
    kept = jnp.array([[9, 4]])
    x, variables = stem.init_with_output(jax.random.key(1), tokens, GRID, kept)
    positions = sincos_positions(GRID, 32)
    weights: Any = variables["params"]
    embedded = np.asarray(tokens[0] @ weights["embed"]["kernel"])
    expected = np.asarray(weights["mask_token"]) + positions
    expected[[9, 4]] = embedded[1:] + positions[[9, 4]]
    np.testing.assert_allclose(x[0, 1:], expected, **FLOAT32)
    np.testing.assert_allclose(x[0, 0], embedded[0], **FLOAT32)


def test_the_loss_is_over_hidden_patches_only():
    patches = jnp.asarray(random_images(0, 2, 64).reshape(2, 16, 768), jnp.float32) / 255
    masked = jnp.zeros((2, 16)).at[0, 3].set(1).at[1, 7].set(1).at[1, 8].set(1)
    predicted = patches + 2.0 * masked[..., None]
    np.testing.assert_allclose(masked_mse(predicted, patches, masked), 4.0, **FLOAT32)
    visible = patches + 2.0 * (1 - masked[..., None])
    np.testing.assert_allclose(masked_mse(visible, patches, masked), 0.0, **FLOAT32)
    # Hidden patches weigh the same in whatever image they are.
    one = patches.at[0, 3].add(3.0)
    np.testing.assert_allclose(masked_mse(one, patches, masked), 9.0 / 3, **FLOAT32)


def test_the_loss_is_over_all_patches_when_none_is_hidden():
    patches = jnp.zeros((2, 16, 768))
    loss = masked_mse(patches.at[0, 0].set(4.0), patches, jnp.zeros((2, 16)))
    np.testing.assert_allclose(loss, 16.0 / 32, **FLOAT32)
