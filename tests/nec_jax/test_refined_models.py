"""Models with a refiner: what they decode, and their files."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from model_cases import CALIBRATION_IMAGES, TIES, random_images
from refined_cases import ladder_model, random_refiner, refining_model, with_refiner

import coder
import nec_jax
from coder import FileError, InputError, QualityLadder
from coder.format import container
from nec_jax import NecParams
from nec_jax.calibration import fit_latents
from nec_jax.input_bands import with_bands

IMAGES = random_images(3, 5)


def ladder_of(params: NecParams) -> QualityLadder:
    assert isinstance(params.codec, QualityLadder)
    return params.codec


@pytest.mark.parametrize("class_token", [True, False])
def test_decode_of_encode_is_embed_at_every_quality_and_either_setting(class_token: bool) -> None:
    params = refining_model(class_token)
    for quality in range(ladder_of(params).num_qualities):
        blobs = nec_jax.encode(params, IMAGES, quality=quality)
        both = {}
        for refine in (False, True):
            both[refine] = nec_jax.decode(params, blobs, refine=refine)
            embedded = nec_jax.embed(params, IMAGES, quality=quality, refine=refine)
            assert both[refine].dtype == embedded.dtype == np.float32
            assert both[refine].shape == embedded.shape == (5, 16 + class_token, 48)
            assert both[refine].tobytes() == embedded.tobytes()
        assert np.array_equal(both[True], both[False]) == (quality == 1)  # whose gain is 0
        np.testing.assert_array_equal(both[True][:, :class_token], both[False][:, :class_token])


@pytest.mark.parametrize("class_token", [True, False])
def test_decode_of_encode_is_embed_for_symbols_that_are_chosen_for_the_refiner(
    class_token: bool,
) -> None:
    params = refining_model(class_token)
    for quality in (0, 1, 9):
        blobs = nec_jax.encode(params, IMAGES, quality=quality, for_refiner=True)
        for refine in (False, True):
            embedded = nec_jax.embed(
                params, IMAGES, quality=quality, refine=refine, for_refiner=True
            )
            decoded = nec_jax.decode(params, blobs, refine=refine)
            assert decoded.tobytes() == embedded.tobytes()
        plain = nec_jax.encode(params, IMAGES, quality=quality)
        assert (blobs == plain) == (quality == 1)  # whose gain is 0
        one = ladder_of(params).at(quality)
        y = nec_jax.latents(params, IMAGES)
        assert blobs == [one.encode(each, (4, 4), for_refiner=True) for each in y]


def test_refining_is_the_codecs_and_plain_values_do_not_know_of_it() -> None:
    plain, params = ladder_model(), refining_model()
    blobs = nec_jax.encode(params, IMAGES)
    assert blobs == nec_jax.encode(plain, IMAGES)
    np.testing.assert_array_equal(nec_jax.decode(params, blobs), nec_jax.decode(plain, blobs))
    for blob, y in zip(blobs, nec_jax.decode(params, blobs, refine=True), strict=True):
        np.testing.assert_array_equal(ladder_of(params).decode(blob, refine=True), y)


def test_a_refined_image_does_not_depend_on_its_neighbours() -> None:
    params, many = refining_model(), random_images(4, 11)  # more than a coding batch
    whole = nec_jax.embed(params, many, refine=True)
    np.testing.assert_array_equal(nec_jax.embed(params, many[::-1], refine=True), whole[::-1])
    np.testing.assert_array_equal(nec_jax.embed(params, many[3:4], refine=True), whole[3:4])


def test_without_a_refiner_there_is_nothing_to_refine_with(model: NecParams) -> None:
    for params in (model, ladder_model()):
        blobs = nec_jax.encode(params, IMAGES)
        message = r"^this model has no refiner: train one with `nec refine`, or leave refine=True"
        with pytest.raises(InputError, match=message):
            nec_jax.decode(params, blobs, refine=True)
        with pytest.raises(InputError, match=message):
            nec_jax.embed(params, IMAGES, refine=True)
        with pytest.raises(InputError, match=message):
            nec_jax.encode(params, IMAGES, for_refiner=True)
        with pytest.raises(InputError, match=message):
            jax.jit(lambda p, x: nec_jax.embed_traced(p, x, refine=True))(params, IMAGES)


@pytest.mark.parametrize("for_refiner", [True, False])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("quality", [0, 1, 9])
def test_inside_of_a_jit_refined_embeddings_are_equal_up_to_counted_ties(
    class_token: bool, quality: int, for_refiner: bool
) -> None:
    params = refining_model(class_token)
    how: dict[str, Any] = {"quality": quality, "refine": True, "for_refiner": for_refiner}
    traced = jax.jit(lambda p, x: nec_jax.embed_traced(p, x, **how))
    expected = nec_jax.embed(params, IMAGES, **how)
    found = np.asarray(traced(params, IMAGES))
    assert found.dtype == np.float32
    # A symbol that differs changes its whole neighbourhood.
    apart = np.abs(found - expected) > 1e-5 * np.abs(expected).max()
    assert np.mean(apart.any((1, 2))) <= TIES * 48 * 16


def test_models_that_differ_in_their_refiner_are_compiled_apart() -> None:
    models = [ladder_model(), refining_model(), refining_model(seed=1)]
    traced = []

    @jax.jit
    def embedded(params: NecParams, images: jax.Array) -> jax.Array:
        traced.append(params.codec)
        refine = params.codec is not None and params.codec.refiner is not None
        return nec_jax.embed_traced(params, images, quality=9, refine=refine)

    for _ in range(2):
        for params, refine in zip(models, (False, True, True), strict=True):
            expected = nec_jax.embed(params, IMAGES, quality=9, refine=refine)
            found = np.asarray(embedded(params, IMAGES))
            close = np.isclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
            assert close.mean() > 1 - 48 * TIES
    assert len(traced) == 3
    # Nor again for one that was copied.
    embedded(pickle.loads(pickle.dumps(models[1])), IMAGES)
    embedded(dataclasses.replace(models[2], provenance='{"note":1}'), IMAGES)
    assert len(traced) == 3
    assert len({jax.tree.structure(params) for params in models}) == 3


def test_a_model_goes_through_its_file_with_its_refiner(tmp_path: Path) -> None:
    params = refining_model()
    nec_jax.save(params, tmp_path / "m")
    loaded = nec_jax.load(tmp_path / "m")
    assert loaded.codec is not None
    assert ladder_of(loaded).refiner == ladder_of(params).refiner
    assert loaded.codec == params.codec
    assert hash(loaded.codec) == hash(params.codec)
    assert (loaded.config, loaded.provenance) == (params.config, params.provenance)
    blobs = nec_jax.encode(loaded, IMAGES)
    np.testing.assert_array_equal(
        nec_jax.decode(loaded, blobs, refine=True), nec_jax.decode(params, blobs, refine=True)
    )
    nec_jax.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()
    # Beside the codec, as a refiner's own file has it.
    tensors, content = container.read(tmp_path / "m", "model")
    refiner = ladder_of(params).refiner
    assert refiner is not None
    own, described = refiner.to_parts()
    found = container.under("refiner/", tensors)
    assert content["refiner"] == described
    assert found.keys() == own.keys()
    for name, values in own.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_a_model_without_a_refiner_has_the_file_that_it_always_had(tmp_path: Path) -> None:
    nec_jax.save(ladder_model(), tmp_path / "plain")
    nec_jax.save(with_refiner(refining_model(), None), tmp_path / "dropped")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "dropped").read_bytes()
    tensors, content = container.read(tmp_path / "plain", "model")
    assert set(content) == {"config", "codec", "provenance"}
    assert not container.under("refiner/", tensors)
    assert ladder_of(nec_jax.load(tmp_path / "plain")).refiner is None


def test_a_consumer_reads_the_codec_of_the_file(tmp_path: Path) -> None:
    params = refining_model()
    nec_jax.save(params, tmp_path / "m")
    codec = coder.load(tmp_path / "m")
    assert codec.fingerprint == ladder_of(params).fingerprint
    blob = nec_jax.encode(params, IMAGES[:1])[0]
    np.testing.assert_array_equal(codec.decode(blob), nec_jax.decode(params, [blob])[0])


def test_the_refiner_of_another_codec_is_neither_written_nor_read(tmp_path: Path) -> None:
    params = refining_model()
    refiner = ladder_of(params).refiner
    assert refiner is not None
    others = dataclasses.replace(refiner, codecs={"ab" * 32: 0})
    foreign = dataclasses.replace(ladder_of(params), refiner=others)
    with pytest.raises(InputError, match="the refiner belongs to another codec"):
        nec_jax.save(dataclasses.replace(params, codec=foreign), tmp_path / "m")
    assert not (tmp_path / "m").exists()
    nec_jax.save(params, tmp_path / "m")
    tensors, content = container.read(tmp_path / "m", "model")
    codecs = {"ab" * 32: 0}
    container.write(tmp_path / "m", "model", tensors, content | {"refiner": {"codecs": codecs}})
    with pytest.raises(FileError, match="m: not the refiner of the model's codec: "):
        nec_jax.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refiner": None}, "not the content of a model file"),
        ({"refiner": {}}, "the content of a refiner is"),
        ({"refiner": {"codecs": 3}}, "the codecs of a refiner are not an object"),
        ({"refiner": {"codecs": {}}}, "not a usable refiner"),
        ({"codec": None}, "a refiner, and no codec that it belongs to"),
    ],
)
def test_other_content_of_a_refiner_is_a_file_error(
    tmp_path: Path, changes: dict, message: str
) -> None:
    nec_jax.save(refining_model(), tmp_path / "m")
    tensors, content = container.read(tmp_path / "m", "model")
    container.write(tmp_path / "m", "model", tensors, content | changes)
    with pytest.raises(FileError, match=rf"m: {message}"):
        nec_jax.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["out", "gains"])
def test_missing_tensors_of_a_refiner_are_a_file_error(tmp_path: Path, name: str) -> None:
    nec_jax.save(refining_model(), tmp_path / "m")
    tensors, content = container.read(tmp_path / "m", "model")
    rest = {k: v for k, v in content.items() if k != "refiner"}  # tensors that nothing describes
    less = {k: v for k, v in tensors.items() if k != f"refiner/{name}"}
    for held, described in ((less, content), (tensors, rest)):
        container.write(tmp_path / "m", "model", held, described)
        with pytest.raises(FileError, match=r"m: (a refiner has tensors|the refiner of)"):
            nec_jax.load(tmp_path / "m")


def test_a_pool_of_the_plain_codec_serves_a_model_that_refines() -> None:
    """Blobs fit; only decoding differs."""
    plain, params = ladder_model(), refining_model()
    with coder.Pool(ladder_of(plain).at(3), workers=1) as pool:
        blobs = nec_jax.encode(params, IMAGES, quality=3, pool=pool)
        with pytest.raises(InputError, match="another refiner than the model's, or none"):
            nec_jax.encode(params, IMAGES, quality=3, pool=pool, for_refiner=True)
    assert blobs == nec_jax.encode(params, IMAGES, quality=3)


def test_a_model_whose_codec_changes_drops_the_refiner() -> None:
    params = refining_model()
    kept = nec_jax.with_coding(params, coding_batch=3)
    assert ladder_of(kept).refiner == ladder_of(params).refiner
    calibrated = nec_jax.calibrate(params, CALIBRATION_IMAGES[:16])
    assert calibrated.codec is not None
    assert calibrated.codec.refiner is None
    y = nec_jax.latents(params, CALIBRATION_IMAGES)
    assert ladder_of(fit_latents(params, y, 0.3)).refiner is None
    transform = ladder_of(params).transform
    assert ladder_of(fit_latents(params, y, 0.3, transform)).refiner is None
    bands = with_bands(
        params, ("red", "B08"), mean=(0, 0), std=(1, 1), dtype="uint8", value_range=(0, 255)
    )
    assert bands.codec is None


def test_models_that_differ_in_their_refiner_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="QualityLadder"):
        jax.tree.map(lambda a, b: a + b, refining_model(), refining_model(seed=1))
    same = jax.tree.map(lambda a, b: (a + b) / 2, refining_model(), refining_model())
    assert same.codec == refining_model().codec


def test_a_random_refiner_is_another_for_another_seed() -> None:
    codec = ladder_of(ladder_model())
    assert random_refiner(codec) == random_refiner(codec) != random_refiner(codec, 1)
