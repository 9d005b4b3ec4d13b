"""Laws of a training step: what trains, what stays, and that devices do not matter."""

import json
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folders import TESTS
from model_cases import random_weights

from nec_jax.models.architecture import ModelConfig, model_config
from nec_jax.models.freezing import trainable_rule
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import merge, path_name, split
from train.configs.options import Compress
from train.engine import losses
from train.engine.step import data_mesh, init_state, make_step, optimiser
from train.main import main
from train.tasks import describe
from train.tasks.first_density import GAIN_LADDER, calibrate_bottleneck

STEPS = 3


def small_config() -> ModelConfig:
    return model_config(
        "vit-ti", image_size=32, patch=8, width=24, depth=1, heads=2,
        decoder_width=16, decoder_depth=1, decoder_heads=2,
    )  # fmt: skip


def noise_images(config: ModelConfig, seed: int, size: int = 8) -> Any:
    shape = (size, config.image_size, config.image_size, config.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def run_steps(
    options: Compress, config: ModelConfig, devices: int = 1, microbatch: int | None = None
) -> tuple[dict, dict, list[float]]:
    """The weights before and after a few steps on noise images, and their losses."""
    mesh = data_mesh(devices)
    before = random_weights(config)
    tx = optimiser(options, options.density_lr)
    trainable, frozen = split(before, trainable_rule(options.trainable, config))
    state = init_state(trainable, tx, mesh)
    goal = losses.rate_distortion(config, options.lam, options.rounding, 0.75)
    step = make_step(goal, tx, options.steps, mesh, microbatch)
    found = []
    for i in range(STEPS):
        state, metrics = step(state, frozen, {"image": noise_images(config, i)}, jax.random.key(1))
        found.append(float(metrics["loss"]))
    return before, merge(state.trainable, frozen), found


@pytest.mark.parametrize(
    "trainable", ["paper+gain", pytest.param("density", marks=pytest.mark.slow)]
)
def test_what_is_named_trains_and_all_else_stays_bit_identical(trainable: str) -> None:
    config = small_config()
    options = Compress(steps=STEPS, trainable=trainable, lr=1e-3)
    before, after, _ = run_steps(options, config)
    rule = trainable_rule(trainable, config)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (path_name(path), bool((a != b).any())), before, after
    )
    pairs = jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple))
    assert all(changed is False for name, changed in pairs if not rule(name))
    still = [name for name, changed in pairs if rule(name) and not changed]
    assert not still, f"named as trainable, but did not move: {still}"


def test_the_step_pays_for_what_trains_alone() -> None:
    def flops(trainable: str) -> float:
        config = model_config("vit-ti", image_size=64, patch=8, depth=6)
        options = Compress(trainable=trainable, batch=2)
        weights = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
        kept, frozen = split(weights, trainable_rule(trainable, config))
        return describe.count_flops(options, config, kept, frozen)

    whole = flops("all")
    # Activations' gradients pass through all blocks, frozen weights' gradients are not computed.
    assert flops("paper") < 0.75 * whole


def test_a_cached_prefix_costs_nothing(capsys: pytest.CaptureFixture) -> None:
    def flops(*more: str) -> float:
        options = ["--arch", "vit-ti", "--proxy", "features", "--trainable", "late", "--batch", "2"]
        main(["describe", *options, *more])
        return json.loads(capsys.readouterr().out)["flops_per_step"]

    # Eleven blocks forward, of 196 tokens and a class token.
    tokens, width = 197, 192
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    saved = flops() - flops("--cache", "runs/cache")
    assert saved == pytest.approx(2 * 11 * block, rel=0.1)


def test_frozen_weights_have_no_optimiser_state() -> None:
    config = small_config()
    options = Compress(trainable="paper")
    trainable, _ = split(random_weights(config), trainable_rule("paper", config))
    count = sum(x.size for x in jax.tree.leaves(trainable))
    state = optimiser(options, 1e-3).init(trainable)
    # Adam: two moments a weight; the rest are a few step counters.
    moments = sum(x.size for x in jax.tree.leaves(state) if x.ndim)
    assert moments == 2 * count


def test_only_matrices_decay() -> None:
    weights = {"encoder": {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}}
    tx = optimiser(Compress(lr=1.0, weight_decay=0.5))
    updates: Any
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, weights), tx.init(weights), weights)
    assert np.allclose(updates["encoder"]["fc"]["kernel"], -0.5)
    assert not np.any(updates["encoder"]["fc"]["bias"])


@pytest.mark.parametrize(
    "rounding", ["noise", "soft", pytest.param("straight-through", marks=pytest.mark.slow)]
)
def test_the_loss_does_not_depend_on_the_batch_size(rounding: str) -> None:
    # The rate is a mean: the same images twice over give the loss of one copy (up to noise).
    config = small_config()
    goal = losses.rate_distortion(config, 10.0, rounding, 0.0)  # type: ignore[arg-type]
    weights = random_weights(config)
    images = noise_images(config, 0, 32)
    keys, progress = jax.random.split(jax.random.key(0), 64), jnp.zeros(())
    loss = jax.jit(goal.loss)
    one = loss(weights, {"image": images}, keys[:32], progress)[0]
    two = loss(weights, {"image": jnp.concatenate([images, images])}, keys, progress)[0]
    assert np.isclose(one, two, rtol=1e-2)


def test_validation_measures_rounded_symbols() -> None:
    config = small_config()
    goal = losses.rate_distortion(config, 10.0, "noise", 0.5)
    weights = random_weights(config)
    weights["bottleneck"]["log_gain"] = jnp.full(config.width, -6.0)  # everything rounds to zero
    keys = jax.random.split(jax.random.key(0), 8)
    validate, images = jax.jit(goal.validate), noise_images(config, 0)
    values = validate(weights, {"image": images}, keys)
    shifted = jax.tree.map(lambda x: x, weights)
    shifted["encoder"]["norm"]["scale"] = 1.01 * weights["encoder"]["norm"]["scale"]
    # Symbols that are all zero carry nothing: changing y a little changes no metric.
    again = validate(shifted, {"image": images}, keys)
    assert values["mse"] == again["mse"]
    assert values["bits_per_element"] == again["bits_per_element"]


def test_calibration_finds_finer_steps_for_a_larger_lambda() -> None:
    config = small_config()
    weights = random_weights(config)
    gains = []
    for lam in (0.1, 1000.0):
        fitted, facts = calibrate_bottleneck(
            config, weights, noise_images(config, 0, 16), jax.random.key(0),
            lam=lam, mask_ratio=0.5, gain="calibrated",
        )  # fmt: skip
        assert facts["gain"] in GAIN_LADDER
        gains.append(facts["gain"])
        same = jax.tree.map(
            lambda a, b: bool((a == b).all()), weights["encoder"], fitted["encoder"]
        )
        assert all(jax.tree.leaves(same))
    assert gains[1] > gains[0]


def test_calibration_takes_the_gain_that_it_is_given() -> None:
    config = small_config()
    weights, images = random_weights(config), noise_images(config, 0, 16)

    def log_gain(gain: float) -> np.ndarray:
        fitted, facts = calibrate_bottleneck(
            config, weights, images, jax.random.key(0), lam=10.0, mask_ratio=0.5, gain=gain
        )
        assert facts["gain"] == gain
        return np.asarray(fitted["bottleneck"]["log_gain"])

    np.testing.assert_allclose(log_gain(1.5) - log_gain(0.5), np.log(3), rtol=1e-5)


def test_calibration_can_set_the_gain_to_one() -> None:
    config = small_config()
    weights = random_weights(config)
    fitted, _ = calibrate_bottleneck(
        config, weights, noise_images(config, 0, 16), jax.random.key(0),
        lam=10.0, mask_ratio=0.5, gain="identity",
    )  # fmt: skip
    assert not np.any(fitted["bottleneck"]["log_gain"])
    before = weights["bottleneck"]["density"]["bias_0"]
    assert np.any(before != fitted["bottleneck"]["density"]["bias_0"])


def test_microbatches_give_the_step_of_the_whole_batch() -> None:
    config = small_config()
    options = Compress(steps=STEPS, trainable="density", density_lr=1e-3)
    _, whole, seen = run_steps(options, config)
    _, parts, again = run_steps(options, config, microbatch=2)
    assert np.allclose(seen, again, rtol=1e-5)
    # Adam's first steps have the size of the learning rate, whatever that of the gradient.
    near = jax.tree.map(
        lambda a, b: np.allclose(a, b, atol=STEPS * options.density_lr), whole, parts
    )
    assert all(jax.tree.leaves(near))


def test_a_mesh_of_devices_gives_the_losses_of_one() -> None:
    # Fake devices exist only if asked for before JAX starts: hence another process.
    program = (
        "import json, jax; jax.config.update('jax_num_cpu_devices', 8)\n"
        f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / 'train/engine')!r}]\n"
        "from test_step import Compress, STEPS, run_steps, small_config\n"
        "options = Compress(steps=STEPS, trainable='density')\n"
        "print(json.dumps(run_steps(options, small_config(), 8)[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    _, _, alone = run_steps(Compress(steps=STEPS, trainable="density"), small_config())
    assert np.allclose(json.loads(done.stdout), alone, rtol=1e-4)
