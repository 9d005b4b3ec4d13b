"""`coder.load_head` computes in NumPy what the head computes in JAX, from the same file."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from model_cases import filled, tiny_config
from refined_cases import refining_model

import coder
from coder import FileError, InputError
from coder.format import container
from coder.task_heads.head_settings import NO_MATTER, ModelFacts
from coder.task_heads.task_head import weight_shapes
from nec_jax import ModelConfig, heads
from nec_jax.heads.network import init_weights
from nec_jax.models.refiner_network import arrays_of

CLASSES = ("farm", "forest", "water", "town")
GRID, QUALITY = (3, 5), 4
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}  # of probabilities, as the docs say
KINDS = [
    ("linear", False, None),
    ("linear", True, None),
    ("class-linear", False, None),
    ("attention", False, None),
    ("attention", True, None),
    ("token-linear", False, (17, 33)),
    ("token-linear", True, (2, 9)),
    ("conv", False, (17, 7)),
    ("conv", True, (24, 40)),
]


def made(
    path: Path, kind: Any, with_decoder: bool, mask_size: Any, model: ModelConfig, grid=GRID, **more
) -> heads.HeadParams:
    """A head of random weights, which is written to a file."""
    config = heads.HeadConfig(kind, CLASSES, grid, with_decoder, mask_size, model, **more)
    weights = filled(jax.eval_shape(partial(init_weights, config), jax.random.key(0)))
    if "scaling" in weights:
        weights["scaling"]["std"] = np.abs(weights["scaling"]["std"]) + 0.5
    if config.refine:
        codec = refining_model(model.code_class_token).codec
        assert codec is not None
        weights["refiner"] = arrays_of(codec.at(QUALITY))
    head = heads.HeadParams(weights, config)
    heads.save(head, path)
    return head


def embeddings(tokens: int, width: int = 48, count: int = 19) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (2 * rng.normal(size=(count, tokens, width)) + 0.5).astype(np.float32)


def assert_same(head: heads.HeadParams, path: Path, y: np.ndarray) -> None:
    found = coder.load_head(path)
    assert found.classes == head.config.classes
    expected, probabilities = heads.predict_proba(head, y), found.predict_proba(y)
    assert (probabilities.dtype, probabilities.shape) == (np.float32, expected.shape)
    np.testing.assert_allclose(probabilities, expected, **CLOSE)
    classes, theirs = found.predict(y), expected.argmax(-1)
    assert (classes.dtype, classes.shape) == (np.int32, theirs.shape)
    first, second = np.sort(expected, axis=-1)[..., :-3:-1].transpose(-1, *range(expected.ndim - 1))
    clear = first - second > 2 * CLOSE["atol"]
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(classes[clear], theirs[clear])
    # More than one class, or nothing was compared.
    assert len(np.unique(theirs)) > 1


@pytest.mark.parametrize(("kind", "with_decoder", "mask_size"), KINDS)
def test_probabilities_and_classes_are_the_same(
    tmp_path: Path, kind: Any, with_decoder: bool, mask_size: Any
) -> None:
    head = made(tmp_path / "head", kind, with_decoder, mask_size, tiny_config())
    assert_same(head, tmp_path / "head", embeddings(16))


@pytest.mark.parametrize("with_decoder", [True, False])
def test_models_without_class_token(tmp_path: Path, with_decoder: bool) -> None:
    model = tiny_config(code_class_token=False)
    head = made(tmp_path / "head", "attention", with_decoder, None, model)
    assert_same(head, tmp_path / "head", embeddings(15))


@pytest.mark.parametrize(("kind", "with_decoder"), [("attention", False), ("linear", True)])
def test_models_that_differ(tmp_path: Path, kind: Any, with_decoder: bool) -> None:
    """Learned positions, another epsilon, MLPs of another width, embeddings of two blocks."""
    others = {"epsilon": 0.01, "mlp_ratio": 2, "embedding_blocks": (1, 2)}
    model = tiny_config(decoder_positions="learned", **others)
    head = made(tmp_path / "head", kind, with_decoder, None, model, grid=(4, 4))
    assert_same(head, tmp_path / "head", embeddings(17, 96))


@pytest.mark.parametrize(("kind", "class_token"), [("linear", True), ("attention", False)])
def test_heads_that_refine(tmp_path: Path, kind: Any, class_token: bool) -> None:
    params = refining_model(class_token)
    assert params.codec is not None
    assert params.codec.refiner is not None
    name = params.codec.refiner.fingerprint.hex()
    head = made(tmp_path / "head", kind, False, None, params.config, refiner=name)
    y = embeddings(15 + class_token)
    assert_same(head, tmp_path / "head", y)
    plain = dataclasses.replace(head.config, refiner=None)
    weights = {name: part for name, part in head.weights.items() if name != "refiner"}
    heads.save(heads.HeadParams(weights, plain), tmp_path / "plain")
    found = [coder.load_head(tmp_path / name).predict_proba(y) for name in ("head", "plain")]
    assert not np.allclose(*found, atol=1e-3)


@pytest.mark.parametrize(("kind", "with_decoder", "mask_size"), KINDS)
def test_the_shapes_of_all_weights_are_known(kind, with_decoder, mask_size) -> None:
    for positions in ("sincos", "learned"):
        model = tiny_config(decoder_positions=positions)
        config = heads.HeadConfig(kind, CLASSES, (4, 4), with_decoder, mask_size, model)
        leaves = jax.eval_shape(partial(init_weights, config), jax.random.key(0))
        paths = jax.tree_util.tree_leaves_with_path(leaves)
        expected = {"/".join(key.key for key in path): leaf.shape for path, leaf in paths}
        assert weight_shapes(config) == expected


def test_every_setting_of_a_model_is_known() -> None:
    """A new setting: does a head depend on it? Then `ModelFacts` needs it."""
    own = {field.name: field.default for field in dataclasses.fields(ModelFacts)}
    theirs = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    assert own.keys() | NO_MATTER == theirs.keys()
    assert own.keys().isdisjoint(NO_MATTER)
    assert own.items() <= theirs.items()


def test_embeddings_are_refused_as_in_jax(tmp_path: Path) -> None:
    head = made(tmp_path / "head", "linear", False, None, tiny_config())
    found = coder.load_head(tmp_path / "head")
    y = embeddings(16)
    hole, half = y.copy(), y.astype("c8")
    hole[3, 2, 1] = np.nan
    others = [y[:, :10], y[..., :47], y[0], y[:0], hole, half, np.ma.masked_invalid(hole), None]
    for wrong in [*others, np.zeros((2, 3, 5, 48)), [[1.0], [2.0, 3.0]]]:
        messages = set()
        for use in (
            partial(heads.predict, head),
            partial(heads.predict_proba, head),
            found.predict,
            found.predict_proba,
        ):
            with pytest.raises(InputError) as caught:
                use(wrong)
            messages.add(str(caught.value))
        assert len(messages) == 1


def test_files_are_refused_as_in_jax(tmp_path: Path) -> None:
    path = tmp_path / "head"
    made(path, "linear", False, None, tiny_config())
    tensors, content = container.read(path, "head")
    config = content["config"]
    changes: list[dict[str, Any]] = [{"kind": "tree"}, {"classes": "ab"}, {"grid": [4]}]
    changes += [{"mask_size": [8, 8]}, {"model": None}, {"with_decoder": 1}, {"surplus": 1}]
    changes += [{"model": config["model"] | change} for change in ({"gate": 1}, {"heads": 5})]
    files = [(tensors, {"config": config | change}) for change in changes]
    files += [
        (tensors, {"config": config | {"kind": "attention"}}),
        (tensors, content | {"surplus": 1}),
        (tensors | {"more": np.zeros(2, "f4")}, content),
        (tensors | {"scaling/std": np.zeros(48, "f8")}, content),
    ]
    for parts in files:
        container.write(path, "head", *parts)
        messages = []
        for load in (heads.load, coder.load_head):
            with pytest.raises(FileError) as caught:
                load(path)
            messages.append(str(caught.value).split(":")[1])
        assert messages[0] == messages[1]
