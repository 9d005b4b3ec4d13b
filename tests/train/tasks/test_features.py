"""Foundation models without a decoder of pixels: features as the proxy, decoders made afresh."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import FLOAT32, NETWORK, random_images, random_weights, tiny_config
from train_cases import SMALL

import nec_jax
from coder import InputError
from nec_jax import NecParams, export_decoder_block, heads, latents
from nec_jax.models import nec
from nec_jax.models.freezing import trainable_rule
from nec_jax.models.mae import random_masking
from nec_jax.models.weight_tree import flatten_weights
from nec_jax.sources import open_source
from train.configs.options import Compress, Pretrain
from train.data import read_all
from train.engine.initial_model import config_for, feature_scale, initial_model, with_teacher
from train.main import main

GRID = (4, 4)


def features_model(seed: int = 0) -> tuple[NecParams, jax.Array]:
    """A model as training on features starts it, and images."""
    bare = tiny_config(decoder_target="none")
    images = random_images(seed, 4)
    base = NecParams(random_weights(bare), bare)
    config = tiny_config(decoder_target="features", decoder_depth=1)
    decoder = nec.init_weights(config, jax.random.key(0))["decoder"]
    decoder["target"] = feature_scale(latents(base, images))
    weights = {**base.weights, "decoder": decoder}
    weights = with_teacher(config, weights, trainable_rule("late", config))
    return NecParams(weights, config), jnp.asarray(images)


def test_a_new_decoder_of_features_is_the_identity() -> None:
    params, images = features_model()
    config = params.config
    y = jax.jit(lambda w: nec.latents(config, w, images))(params.weights)
    goal = jax.jit(lambda w: nec.targets(config, w, images))(params.weights)
    np.testing.assert_allclose(goal.mean((0, 1)), np.zeros(48), atol=1e-4)
    np.testing.assert_allclose(goal.std((0, 1)), np.ones(48), rtol=1e-3)
    predicted = jax.jit(lambda w, y: nec.reconstruct(config, w, y, GRID))(params.weights, y)
    np.testing.assert_allclose(predicted, goal, **NETWORK)

    @jax.jit
    def distortion(y: jax.Array) -> jax.Array:
        return nec.distortion(config, params.weights, y, goal, GRID, None, jnp.zeros((4, 16)))

    assert distortion(y) < 1e-8
    # What is lost counts in units of each channel's variance.
    means = jnp.broadcast_to(params.weights["decoder"]["target"]["mean"], y.shape)
    np.testing.assert_allclose(distortion(means), 1.0, rtol=1e-3)


def test_the_target_is_the_teacher_whatever_the_model_becomes() -> None:
    params, images = features_model()
    goal = nec.targets(params.config, params.weights, images)
    encoder = dict(params.weights["encoder"])
    encoder["norm"] = jax.tree.map(lambda x: 2 * x + 1, encoder["norm"])  # it trains
    changed = {**params.weights, "encoder": encoder}
    np.testing.assert_array_equal(nec.targets(params.config, changed, images), goal)
    y = nec.latents(params.config, changed, images)
    assert not np.allclose(y, nec.latents(params.config, params.weights, images))


def test_hidden_tokens_are_predicted_as_well() -> None:
    params, images = features_model()
    kept, masked = random_masking(jax.random.split(jax.random.key(0), 4), 16, 0.5)
    y = nec.latents(params.config, params.weights, images, kept)
    predicted = nec.reconstruct(params.config, params.weights, y, GRID, kept)
    assert predicted.shape == (4, 17, 48)
    # The new decoder knows nothing of what is hidden: the mean, which is zero.
    np.testing.assert_array_equal(predicted[:, 1:][masked == 1], 0.0)
    scale = params.weights["decoder"]["target"]
    order = jnp.arange(4)[:, None]
    visible = (y[:, 1:] - scale["mean"]) / scale["std"]
    np.testing.assert_allclose(predicted[:, 1:][order, kept], visible, **FLOAT32)


def test_features_need_a_teacher_and_a_decoder_is_needed_to_measure_anything() -> None:
    params, images = features_model()
    bare = {k: v for k, v in params.weights.items() if k != "teacher"}
    with pytest.raises(InputError, match='need "teacher"'):
        nec.targets(params.config, bare, images)
    config = tiny_config(decoder_target="none")
    weights = random_weights(config)
    assert "decoder" not in weights
    with pytest.raises(InputError, match=r"no decoder.*\(nec pretrain --init.*--proxy features"):
        nec.targets(config, weights, images)


def test_a_model_without_decoder_has_no_decoder_to_give(tmp_path: Path) -> None:
    config = tiny_config(decoder_target="none")
    params = NecParams(random_weights(config), config)
    with pytest.raises(InputError, match="no decoder to export"):
        export_decoder_block(params, tmp_path / "x.safetensors")
    y = latents(params, random_images(0, 4))
    with pytest.raises(InputError, match="with_decoder=False"):
        heads.fit(params, y, [0, 1, 0, 1], kind="attention", classes=("a", "b"), with_decoder=True)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["late", "all"])
def test_compression_by_features(encoder_only: Path, tmp_path: Path, trainable: str) -> None:
    main([
        "compress", *SMALL, "--init", str(encoder_only), "--proxy", "features", "--steps", "4",
        "--trainable", trainable, "--workdir", str(tmp_path), "--calibration-images", "32",
        "--gain", "identity",
    ])  # fmt: skip
    params, base = (nec_jax.load(p) for p in (tmp_path / "model.safetensors", encoder_only))
    assert (params.config.decoder_target, params.config.decoder_depth) == ("features", 1)
    assert set(params.weights) == {"encoder", "bottleneck", "decoder"}
    assert params.codec is not None
    options = Compress(data="blue-marble", chip=32, init=str(encoder_only), proxy="features")
    fresh = initial_model(options, base, open_source("blue-marble", "train", chip=32))
    before, after = flatten_weights(fresh.weights), flatten_weights(params.weights)
    rule = trainable_rule(trainable, params.config)
    moved = {name for name in after if not np.array_equal(before[name], after[name])}
    assert all(rule(name) for name in moved)
    assert "encoder/block_1/attn/qkv/kernel" in moved
    # The units of features are constants, even where all of the decoder trains.
    assert not any(name.startswith("decoder/target") for name in moved)
    assert ("encoder/patch_embed/kernel" in moved) == (trainable == "all")
    images = random_images(0, 2, 32)
    blobs = nec_jax.encode(params, images)
    np.testing.assert_array_equal(nec_jax.decode(params, blobs), nec_jax.embed(params, images))
    assert base.codec is None


def test_the_units_of_features_are_those_of_the_bands(encoder_only: Path) -> None:
    options = Compress(data="blue-marble", chip=32, init=str(encoder_only), proxy="features")
    source = open_source("blue-marble", "train", chip=32)
    first = initial_model(options, nec_jax.load(encoder_only), source)
    assert initial_model(options, first, source) is not first  # without its codec
    assert initial_model(options, first, source).weights is first.weights
    other = dataclasses.replace(options, bands=("blue=red", "green", "red=blue"))
    changed = initial_model(other, first, source)
    images = read_all(source, 32, limit=128).images
    expected = feature_scale(latents(changed, images))
    for part in ("mean", "std"):
        np.testing.assert_array_equal(changed.weights["decoder"]["target"][part], expected[part])
    # A decoder of pixels in the place of one of features is no smaller than others are.
    pixels = Pretrain(data="blue-marble", init=str(encoder_only), proxy="pixels")
    assert config_for(pixels, first.config).decoder_depth == 8


@pytest.mark.slow
def test_a_decoder_of_pixels_is_trained_before_an_encoder_is_adapted(
    encoder_only: Path, tmp_path: Path
) -> None:
    common = ["--init", str(encoder_only), "--steps", "3"]
    with pytest.raises(SystemExit, match=r"no decoder.*--proxy features, or pre-train a decoder"):
        main(["compress", *SMALL, *common, "--workdir", str(tmp_path / "refused")])
    with pytest.raises(SystemExit, match=r"a random one measures nothing: train one first"):
        main(["compress", *SMALL, *common, "--proxy", "pixels", "--workdir", str(tmp_path / "no")])
    main([
        "pretrain", *SMALL, *common, "--proxy", "pixels", "--trainable", "decoder",
        "--decoder-depth", "1", "--workdir", str(tmp_path / "decoder"),
    ])  # fmt: skip
    path = tmp_path / "decoder/model.safetensors"
    params, base = nec_jax.load(path), nec_jax.load(encoder_only)
    assert (params.config.decoder_target, params.config.decoder_depth) == ("pixels", 1)
    same = jax.tree.map(np.array_equal, params.weights["encoder"], base.weights["encoder"])
    assert all(jax.tree.leaves(same))
    main([
        "compress", *SMALL, "--init", str(path), "--steps", "3", "--calibration-images", "16",
        "--gain", "identity", "--workdir", str(tmp_path / "nec"),
    ])  # fmt: skip
    assert nec_jax.load(tmp_path / "nec/model.safetensors").codec is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretrain", "--proxy", "features"], "compares with the features of a model: pass --init"),
        (["pretrain", "--init", "smoke", "--decoder-depth", "3"], "this model has one of 1 blocks"),
    ],
)
def test_proxies_that_cannot_be_are_refused(
    smoke_mae: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(smoke_mae) if word == "smoke" else word for word in arguments]
    with pytest.raises(SystemExit, match=message):
        main([*arguments, *SMALL, "--workdir", str(tmp_path)])


def test_sizes_belong_to_the_model_that_is_started_from(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--init", "x", "--patch", "8", "--depth", "2"])
    assert "--patch, --depth: these come from --init" in " ".join(capsys.readouterr().err.split())
