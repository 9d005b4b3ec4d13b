"""Heads that refine: they are heads of refined embeddings, and take plain ones."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from folders import TESTS
from head_cases import CLASSES, labelled, masked
from refined_cases import ladder_model, refining_model

import nec_jax
from coder import FileError, InputError
from coder.format import container
from nec_jax import NecParams, heads
from nec_jax.models.refiner_network import arrays_of

CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 2e-4}  # of probabilities
LINEAR = [("linear", False), ("linear", True), ("class-linear", False), ("token-linear", False)]
VARIANTS = [
    *LINEAR,
    ("token-linear", True),
    ("attention", False),
    ("attention", True),
    pytest.param("conv", False, marks=pytest.mark.slow),
    pytest.param("conv", True, marks=pytest.mark.slow),
]
QUALITY = 4


def data(kind: str, seed: int, count: int, quality: int = QUALITY) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings that the codec decoded at a quality, and targets."""
    y, t = (masked if kind in ("conv", "token-linear") else labelled)(seed, count)
    codec = ladder_model().codec
    assert codec is not None
    one = codec.at(quality)
    return one.dequantise(one.quantise(y, (4, 4)), (4, 4)), t


def by_hand(params: NecParams, y: np.ndarray) -> np.ndarray:
    """Embeddings as the refiner of the codec refines them, in NumPy."""
    assert params.codec is not None
    one = params.codec.at(QUALITY)
    assert one.refiner is not None
    return np.stack([one.refiner.refine(part, (4, 4), one.fingerprint) for part in y])


@functools.cache
def fitted(kind: heads.Kind, with_decoder: bool = False) -> heads.HeadParams:
    """A head that refines, fitted for a moment."""
    return heads.fit(
        refining_model(), *data(kind, 0, 40), val=data(kind, 1, 12), **options(kind, with_decoder)
    )


def options(kind: heads.Kind, with_decoder: bool) -> dict[str, Any]:
    rest = {"kind": kind, "with_decoder": with_decoder}
    return rest | {"classes": CLASSES, "epochs": 1, "batch": 8, "lr": 1e-3}


@pytest.mark.parametrize(("kind", "with_decoder"), VARIANTS)
def test_it_is_the_head_of_refined_embeddings(kind: heads.Kind, with_decoder: bool) -> None:
    params = refining_model()
    (y, t), (y_val, t_val), y_new = data(kind, 0, 40), data(kind, 1, 12), data(kind, 2, 20)[0]
    plain = heads.fit(
        params, by_hand(params, y), t, val=(by_hand(params, y_val), t_val), refine=False,
        **options(kind, with_decoder),
    )  # fmt: skip
    assert not plain.config.refine
    head = fitted(kind, with_decoder)
    assert head.config.refine
    expected = heads.predict_proba(plain, by_hand(params, y_new))
    np.testing.assert_allclose(heads.predict_proba(head, y_new), expected, **CLOSE)
    assert np.mean(heads.predict(head, y_new) == expected.argmax(-1)) > 0.99
    assert not np.allclose(heads.predict_proba(plain, y_new), expected, **CLOSE)


@pytest.mark.parametrize(("kind", "with_decoder"), [("linear", False), ("attention", True)])
def test_the_refiner_does_not_train_and_names_itself(kind: heads.Kind, with_decoder: bool) -> None:
    codec = refining_model().codec
    assert codec is not None
    assert codec.refiner is not None
    head = fitted(kind, with_decoder)
    held = arrays_of(codec.at(QUALITY))
    jax.tree.map(np.testing.assert_array_equal, head.weights["refiner"], held)
    assert head.config.refiner == codec.refiner.fingerprint.hex()
    # The model's own arrays are left alone: training donates its state.
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(head.weights))
    heads.fit(refining_model(), *data(kind, 0, 40), **options(kind, with_decoder))


def test_it_refines_if_the_model_has_a_refiner_unless_told_otherwise() -> None:
    y, t = data("linear", 0, 40)
    given: dict[str, Any] = {"kind": "linear", "classes": CLASSES}
    usual = heads.fit(refining_model(), y, t, **given)
    told = heads.fit(refining_model(), y, t, refine=True, **given)
    other = heads.fit(refining_model(), y, t, refine=False, **given)
    without = heads.fit(ladder_model(), y, t, **given)
    found = [heads.predict_proba(head, y) for head in (usual, told, other, without)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    assert [head.config.refine for head in (usual, told, other, without)] == [
        True,
        True,
        *2 * [False],
    ]
    assert not np.array_equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("quality", [0, 2, 4, 7])
def test_the_quality_is_found_from_the_embeddings(quality: int, dtype: type) -> None:
    params = refining_model()
    assert params.codec is not None
    y, t = data("linear", 0, 40, quality)
    head = heads.fit(params, y.astype(dtype), t, kind="linear", classes=CLASSES, refine=True)
    held = arrays_of(params.codec.at(quality))
    jax.tree.map(np.testing.assert_array_equal, head.weights["refiner"], held)


def test_what_the_codec_did_not_decode_is_not_refined() -> None:
    """Uncompressed, refined and mixed embeddings."""
    params = refining_model()
    y, t = labelled(0, 40)
    plain = data("linear", 0, 40)[0]
    mixed = plain.copy()
    mixed[7] = data("linear", 0, 40, 2)[0][7]  # one of them at another quality
    fit = functools.partial(heads.fit, params, kind="linear", classes=CLASSES)
    for others in (y, by_hand(params, plain), mixed, 1e9 * plain):
        assert not fit(others, t).config.refine
        with pytest.raises(InputError, match="the model's codec did not decode these"):
            fit(others, t, refine=True)
    for val in (y, data("linear", 0, 40, 2)[0]):
        assert not fit(plain, t, val=(val, t)).config.refine
    assert fit(plain, t, val=(plain, t)).config.refine


def test_it_takes_what_decode_returns() -> None:
    """Plain embeddings of images; refined ones would be refined twice."""
    params = refining_model()
    images = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3)).astype(np.uint8)
    blobs = nec_jax.encode(params, images, quality=QUALITY)
    y, refined = (nec_jax.decode(params, blobs, refine=refine) for refine in (False, True))
    t = np.arange(24) % 3
    given = options("class-linear", False)
    head = heads.fit(params, y, t, **given)
    by_user = heads.fit(params, refined, t, refine=False, **given)
    np.testing.assert_allclose(
        heads.predict_proba(head, y), heads.predict_proba(by_user, refined), **CLOSE
    )


def test_a_prediction_depends_on_nothing_but_the_embedding() -> None:
    y = data("linear", 3, 20)[0]
    for kind in ("class-linear", "attention"):
        whole = heads.predict_proba(fitted(kind), y)
        np.testing.assert_array_equal(heads.predict_proba(fitted(kind), y[17:19]), whole[17:19])
        np.testing.assert_array_equal(heads.predict_proba(fitted(kind), y[::-1]), whole[::-1])


def test_more_embeddings_than_a_batch_are_refined_alike() -> None:
    params = refining_model()
    y, t = data("linear", 0, 300)
    given: dict[str, Any] = options("attention", False) | {"lr": 1e-12}  # fits the standardisation
    head = heads.fit(params, y, t, **given)
    expected = by_hand(params, y)[:, 1:].reshape(-1, 48)
    scaling = head.weights["scaling"]
    np.testing.assert_allclose(scaling["mean"], expected.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scaling["std"], expected.std(0), rtol=1e-3)


def test_a_head_that_cannot_refine_is_refused(model: NecParams, bare_model: NecParams) -> None:
    y, t = labelled(0, 8)
    given: dict[str, Any] = {"kind": "linear", "classes": CLASSES}
    for params in (model, bare_model, ladder_model()):
        with pytest.raises(
            InputError, match="this model has no refiner: train one with `nec refine`"
        ):
            heads.fit(params, y, t, refine=True, **given)
        assert not heads.fit(params, y, t, **given).config.refine
    wrong: Any
    for wrong in (1, "yes", refining_model().codec):
        with pytest.raises(InputError, match="give True, False or None"):
            heads.fit(refining_model(), y, t, refine=wrong, **given)


@pytest.mark.parametrize(("kind", "with_decoder"), VARIANTS)
def test_load_inverts_save(kind: heads.Kind, with_decoder: bool, tmp_path: Path) -> None:
    head = fitted(kind, with_decoder)
    heads.save(head, tmp_path / "head")
    loaded = heads.load(tmp_path / "head")
    assert loaded.config == head.config
    jax.tree.map(np.testing.assert_array_equal, loaded.weights, head.weights)
    y = data(kind, 3, 3)[0]
    np.testing.assert_array_equal(heads.predict_proba(loaded, y), heads.predict_proba(head, y))
    heads.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "head").read_bytes()
    tensors, content = container.read(tmp_path / "head", "head")
    halves = {name for name, values in tensors.items() if values.dtype == np.float16}
    assert {f"refiner/{name}" for name in ("seen", "into", "out", "predicted")} <= halves
    assert all(name.startswith("refiner/") for name in halves)
    assert content["config"]["refiner"] == head.config.refiner


def test_heads_that_do_not_refine_keep_their_bytes(tmp_path: Path) -> None:
    kept = sorted((TESTS / "kept").glob("*/head.safetensors"))
    assert kept
    for path in kept:
        heads.save(heads.load(path), tmp_path / "head")
        assert (tmp_path / "head").read_bytes() == path.read_bytes()
    y, t = data("linear", 0, 40)
    for name, params in (("one", ladder_model()), ("other", refining_model())):
        head = heads.fit(params, y, t, kind="linear", classes=CLASSES, refine=False)
        heads.save(head, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    _, content = container.read(tmp_path / "one", "head")
    assert "refiner" not in content["config"]


def test_heads_that_differ_in_their_refiner_are_compiled_apart() -> None:
    y, t = data("linear", 0, 40)
    traced = []

    @jax.jit
    def same(head: heads.HeadParams) -> heads.HeadParams:
        traced.append(head.config)
        return head

    for seed in (0, 1, 0, 1):
        same(heads.fit(refining_model(seed=seed), y, t, kind="linear", classes=CLASSES))
    assert len(traced) == 2


def test_a_file_that_does_not_fit_its_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head"
    heads.save(fitted("linear"), path)
    tensors, content = container.read(path, "head")
    config = content["config"]
    for name in ("abc", 3, "A" * 64, True):
        container.write(path, "head", tensors, {"config": config | {"refiner": name}})
        with pytest.raises(FileError, match="unusable head configuration"):
            heads.load(path)
    plain = {name: value for name, value in config.items() if name != "refiner"}
    container.write(path, "head", tensors, {"config": plain})
    with pytest.raises(FileError, match=r"head: .*unexpected refiner/bias"):
        heads.load(path)
    for name in ("bias", "into", "out"):
        rest = {k: v for k, v in tensors.items() if k != f"refiner/{name}"}
        container.write(path, "head", rest, content)
        with pytest.raises(FileError, match=f"head: .*missing refiner/{name}"):
            heads.load(path)
    rows = tensors["refiner/into"]
    for wrong in (rows[:0], rows[:-1]):
        container.write(path, "head", tensors | {"refiner/into": wrong}, content)
        with pytest.raises(FileError, match=r"head: .*refiner/into is float16"):
            heads.load(path)
    container.write(path, "head", tensors | {"refiner/out": np.zeros((9, 47), "f4")}, content)
    with pytest.raises(FileError, match="refiner/offset is float32"):
        heads.load(path)
    with pytest.raises(InputError, match="give a fingerprint, 64 hex digits"):
        dataclasses.replace(fitted("linear").config, refiner="ab")
