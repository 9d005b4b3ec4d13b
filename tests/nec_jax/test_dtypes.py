"""Models are float32, in a process whose default is something else too."""

import functools
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import optax
import pytest
from dtype_case import HEADS, facts
from folders import TESTS
from head_cases import CLASSES, labelled, quick
from model_cases import random_weights, tiny_config

import nec_jax
from coder import InputError
from nec_jax import NecParams, heads
from nec_jax.heads.network import init_weights as init_head
from nec_jax.models.nec import forward, init_weights
from nec_jax.models.transform_bottleneck import blank
from nec_jax.models.weight_tree import flatten_weights
from train.engine.losses import rate_distortion
from train.engine.step import State, data_mesh, make_step


@pytest.mark.slow
def test_with_x64_models_heads_and_training_are_what_they_are_without(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    case = TESTS / "dtype_case.py"
    done = subprocess.run(
        [sys.executable, str(case), str(there)],
        env=os.environ | {"JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout), facts(here)
    assert found == expected
    assert expected["weights"]["dtypes"] == expected["embeddings"]["dtypes"] == ["float32"]
    # What was written there is read here, and is the same.
    model, twin = nec_jax.load(here / "model"), nec_jax.load(there / "model")
    for name, weight in flatten_weights(twin.weights).items():
        np.testing.assert_array_equal(weight, flatten_weights(model.weights)[name])
    for name in HEADS:
        y = labelled(5, 6)[0]
        own, other = (heads.predict_proba(heads.load(part / name), y) for part in (here, there))
        np.testing.assert_allclose(other, own, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decoder_target": "features"},
        {"decoder_target": "none", "layer_scale": True, "registers": 2, "pre_norm": True},
        {"positions": "learned", "decoder_positions": "learned", "precision": "bfloat16"},
    ],
)
def test_weights_of_all_kinds_are_float32_with_x64(changes):
    config = tiny_config(**changes)
    # Shapes and dtypes alone: nothing is compiled.
    kinds: list[tuple[Any, bool]] = [("linear", False), ("class-linear", False)]
    kinds += [("attention", False), ("token-linear", False), ("conv", False)]
    if config.decoder_target != "none":
        kinds += [("linear", True), ("conv", True)]
    with jax.enable_x64(True):
        key = jax.random.key(0)
        shapes = [jax.eval_shape(lambda key: init_weights(config, key), key)]
        for kind, decoder in kinds:
            size = (32, 32) if kind in ("conv", "token-linear") else None
            head = heads.HeadConfig(kind, CLASSES, (4, 4), decoder, size, config)
            shapes.append(jax.eval_shape(lambda key, c=head: init_head(c, key), key))
        shapes.append(blank(48, class_token=True))
        images = jax.ShapeDtypeStruct((4, 64, 64, 3), config.dtype)
        keys = jax.random.split(key, 4)
        step: Any = jax.ShapeDtypeStruct((), np.int32)
        mesh, tx = data_mesh(1), optax.adam(1e-3)
        rounded = (
            ("noise", None) if changes else ("noise", "straight-through", "soft", "hard", None)
        )
        for rounding in rounded if "pixels" in config.decoder_target else ():
            losses = functools.partial(forward, config, mask_ratio=0.75, rounding=rounding)
            shapes.append(jax.eval_shape(losses, shapes[0], images, keys))
            if rounding is None or changes:
                continue
            of = rate_distortion(config, 2.0, rounding, 0.75)
            state = State(step, shapes[0], jax.eval_shape(tx.init, shapes[0]))
            frozen: Any = jax.tree.map(lambda _: None, shapes[0])
            state, metrics = jax.eval_shape(
                make_step(of, tx, 10, mesh), state, frozen, {"image": images}, key
            )
            shapes += [state.trainable, metrics]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_weights_that_nobody_could_load_are_not_written(bare_model: NecParams, dtype, tmp_path):
    with jax.enable_x64(True):
        cast = jax.tree.map(lambda w: w.astype(dtype), random_weights(tiny_config()))
    with pytest.raises(InputError, match=f"weights are not float32 .*is {dtype}.*cast them"):
        nec_jax.save(NecParams(cast, tiny_config()), tmp_path / "model")
    head = quick(bare_model, "linear")
    with jax.enable_x64(True):
        cast = jax.tree.map(lambda w: w.astype(dtype), head.weights)
    with pytest.raises(InputError, match=f"4 of 4 weights are not float32 .*is {dtype}"):
        heads.save(heads.HeadParams(cast, head.config), tmp_path / "head")
    assert not list(tmp_path.iterdir())
