"""Laws of refiners: what they compute, which codecs they belong to, and their files."""

import dataclasses
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refiner_cases import random_refiner

import coder
from coder import FileError, InputError, QualityLadder
from coder.codecs import MODEL
from coder.fitting import fit_for_model
from coder.format import container
from coder.refiner import surroundings, surroundings_gradient
from coder.transform import product

GRID = (4, 6)
RNG = np.random.default_rng(0)
QUALITIES = 13


def embeddings(count: int, channels: int = 12) -> np.ndarray:
    """Grids [count, 4, 6, channels] of tokens near three clusters, alike in a row."""
    rng = np.random.default_rng(count)
    centres = 3 * np.random.default_rng(1).standard_normal((3, channels))
    kinds = np.repeat(rng.integers(0, 3, (count, 4, 1)), 6, axis=2)
    return (centres[kinds] + rng.standard_normal((count, 4, 6, channels))).astype(np.float32)


@pytest.fixture(scope="module")
def codec() -> QualityLadder:
    y = embeddings(200)
    return fit_for_model(y, y.mean((1, 2)))


def blob_of(codec: QualityLadder, quality: int | None = None) -> bytes:
    y = embeddings(7)[0].reshape(-1, codec.channels)
    return codec.encode(np.vstack([y.mean(0), y]), GRID, quality=quality)


@pytest.mark.parametrize("grid", [(1, 1), (1, 20), (20, 1), (2, 2), (3, 17), (150, 3)])
def test_surroundings_are_means_over_the_tokens_around_that_are_there(
    grid: tuple[int, int],
) -> None:
    u = RNG.standard_normal((grid[0] * grid[1], 3)).astype(np.float32)
    rows = u.reshape(*grid, 3)
    found = surroundings(u, grid).reshape(*grid, 6)
    for i, j in itertools.product(range(grid[0]), range(grid[1])):
        near = [rows[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1] for r in (1, 7)]
        expected = np.concatenate([part.mean((0, 1)) for part in near])
        np.testing.assert_allclose(found[i, j], expected, atol=1e-6)


@pytest.mark.parametrize("quality", [0, 3])
def test_refined_embeddings_are_those_of_the_formula(codec: QualityLadder, quality: int) -> None:
    refiner = random_refiner(codec)
    blob = blob_of(codec, quality)
    plain = codec.decode(blob)
    refined = codec.with_refiner(refiner).decode(blob, refine=True)
    np.testing.assert_array_equal(refined[0], plain[0])  # the class token
    w = {f.name: getattr(refiner, f.name) for f in dataclasses.fields(refiner)}
    k, m = w["inputs"][quality], w["outputs"][quality]
    basis, token, context, out = (
        w[name].astype(float) for name in ("basis", "token", "context", "out")
    )
    c = (plain[1:].astype(float) - w["mean"]) / w["scale"] @ basis[:, :k]
    a = surroundings(c[:, :5].astype(np.float32), GRID).astype(float).reshape(24, 2, -1)
    h = c @ token[:k] + np.einsum("tac,ach->th", a, context[:, :k]) + w["bias"][quality]
    p = np.maximum(h, 0) @ out[:, :m] + w["offset"][:m]
    expected = plain[1:] + w["gains"][quality] * w["scale"] * (p @ basis[:, :m].T)
    np.testing.assert_allclose(refined[1:], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_plain_decoding_fingerprints_and_files_do_not_know_the_refiner(
    codec: QualityLadder,
) -> None:
    refined = codec.with_refiner(random_refiner(codec))
    blob = blob_of(codec)
    np.testing.assert_array_equal(refined.decode(blob), codec.decode(blob))
    assert refined.to_bytes() == codec.to_bytes()
    assert refined.fingerprint == codec.fingerprint
    assert refined.at(2).to_bytes() == codec.at(2).to_bytes()
    assert refined.with_refiner(None).refiner is None


def test_codecs_are_equal_if_their_refiners_are_too(codec: QualityLadder) -> None:
    """They decode differently, and what caches by equality must not take one for the other."""
    refined, other = (codec.with_refiner(random_refiner(codec, seed)) for seed in (2, 3))
    for one, two, none in ((refined, other, codec), (refined.at(4), other.at(4), codec.at(4))):
        assert len({one, two, none}) == 3
        assert one == none.with_refiner(random_refiner(codec))
        assert hash(one) == hash(none.with_refiner(random_refiner(codec)))
        assert one.with_refiner(None) == none
        assert hash(one.with_refiner(None)) == hash(none)
        assert one.fingerprint == two.fingerprint == none.fingerprint
    assert pickle.loads(pickle.dumps(refined)) == refined


def model_file(path: Path, codec: QualityLadder, refiner: Any, **changes: Any) -> Path:
    """A model's file of a codec, and of a refiner: its tensors and content."""
    tensors, content = codec.to_parts()
    tensors = {f"codec/{name}": values for name, values in tensors.items()}
    own, entry = refiner
    tensors |= {f"refiner/{name}": values for name, values in own.items()}
    whole = {"config": {}, "provenance": "{}", "codec": content, "refiner": entry} | changes
    whole = {key: value for key, value in whole.items() if value is not None}
    container.write(path, MODEL, tensors, whole)
    return path


def test_the_codec_of_a_model_file_has_the_refiner_of_the_file(
    tmp_path: Path, codec: QualityLadder
) -> None:
    refiner = random_refiner(codec)
    with_one = coder.load(model_file(tmp_path / "one", codec, refiner.to_parts()))
    assert with_one == codec.with_refiner(refiner)
    blob = blob_of(codec)
    np.testing.assert_array_equal(
        with_one.decode(blob, refine=True), codec.with_refiner(refiner).decode(blob, refine=True)
    )
    without = coder.load(model_file(tmp_path / "none", codec, ({}, None)))
    assert without == codec
    assert without.refiner is None


def test_a_wrong_refiner_of_a_model_file_is_named(tmp_path: Path, codec: QualityLadder) -> None:
    own, entry = random_refiner(codec).to_parts()
    other = random_refiner(coder.fit(embeddings(60)))
    cases: list[tuple[Any, str]] = [
        (other.to_parts(), "not the refiner of the model's codec"),
        ((own, None), "not an object"),
        ((own, [1]), "not an object"),
        (({}, entry), "a refiner has tensors"),
        ((own, {}), "the content of a refiner is"),
        ((own, {"codecs": [3]}), "not an object"),
    ]
    for parts, message in cases:
        path = model_file(tmp_path / "model", codec, parts)
        with pytest.raises(FileError, match=message) as caught:
            coder.load(path)
        assert str(path) in str(caught.value)


def test_the_codecs_of_one_quality_have_the_refiner_too(codec: QualityLadder) -> None:
    refined = codec.with_refiner(random_refiner(codec))
    blob = blob_of(codec, 4)
    expected = refined.decode(blob, refine=True)
    assert not np.array_equal(expected, codec.decode(blob))
    one = refined.at(4)
    np.testing.assert_array_equal(one.decode(blob, refine=True), expected)
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(one)).decode(blob, refine=True), expected
    )
    copied = pickle.loads(pickle.dumps(refined))
    np.testing.assert_array_equal(copied.decode(blob, refine=True), expected)
    grids, classes = one.split()
    assert classes is not None
    assert classes.refiner is None
    y = embeddings(7)[0].reshape(-1, codec.channels)
    np.testing.assert_array_equal(
        grids.decode(grids.encode(y, GRID), refine=True), refined.decode(blob, refine=True)[1:]
    )


def test_without_gain_nothing_changes(codec: QualityLadder) -> None:
    refiner = random_refiner(codec, gains=np.zeros(codec.num_qualities, np.float32))
    blob = blob_of(codec)
    refined = codec.with_refiner(refiner).decode(blob, refine=True)
    np.testing.assert_array_equal(refined, codec.decode(blob))


def test_refined_embeddings_follow_small_changes_without_jumps(codec: QualityLadder) -> None:
    """Also where the input of a hidden unit is near zero, in which case floats decide its sign."""
    refiner = random_refiner(codec, bias=np.zeros((codec.num_qualities, 9), np.float32))
    one = codec.at(3).split()[0]
    y = np.tile(refiner.mean, (24, 1))  # all hidden units are at zero
    step = np.float32(1e-5) * refiner.scale * RNG.standard_normal((24, 12), np.float32)
    most = lipschitz(refiner, 1)
    moved = refiner.refine((y + step).astype(np.float32), GRID, one.fingerprint)
    change = (moved - refiner.refine(y, GRID, one.fingerprint)) / refiner.scale
    assert np.linalg.norm(change) <= 1.01 * most * np.linalg.norm(step / refiner.scale)


@pytest.mark.parametrize("grid", [(1, 1), (4, 6)])
def test_on_its_kinks_a_refiner_moves_no_more_than_its_bound(
    codec: QualityLadder, grid: tuple[int, int]
) -> None:
    """The inputs of hidden units are zero in float32, so that noise decides their signs.

    `lipschitz` has this bound.
    """
    quality, tokens = 2, grid[0] * grid[1]
    one = codec.at(quality).split()[0]
    y = np.tile(RNG.standard_normal(12).astype(np.float32), (tokens, 1))
    bias = np.zeros((codec.num_qualities, 9), np.float32)
    bias[quality] = -before_the_kink(random_refiner(codec, bias=bias), y, grid)[0]
    refiner = random_refiner(codec, bias=bias)
    inputs = before_the_kink(refiner, y, grid)
    assert (inputs[0] == 0).all()
    assert np.abs(inputs).max() < 1e-5  # means of equal numbers are rounded
    most = lipschitz(refiner, float(refiner.gains[quality]))
    base = refiner.refine(y, grid, one.fingerprint)
    for seed in range(20):
        sign = np.random.default_rng(seed).choice([-1, 1], y.shape)
        noise = (1e-6 * np.abs(y).max() * sign).astype(np.float32)
        moved = refiner.refine(y + noise, grid, one.fingerprint)
        change = np.linalg.norm((moved - base) / refiner.scale)
        given = np.linalg.norm(noise / refiner.scale)
        assert change <= 2 * most * given  # rounding to float32 is as large as the noise


def lipschitz(refiner: Any, gain: float) -> float:
    """The constant of Lipschitz continuity of a refiner, in units of `scale`.

    It is 1 + gain |basis|^2 (|token| + 2 |context|) |out|, in spectral norms; `context` is one
    matrix [2 C, H]. The means over tokens around have at most the norm sqrt(largest sum of a row x
    that of a column): rows sum to 1, and columns to less than 1.4 along each axis. 1.4 sqrt(2) is
    less than 2.
    """
    parts = [refiner.basis, refiner.token, refiner.context.reshape(-1, 9), refiner.out]
    basis, token, context, out = (np.linalg.norm(part.astype(float), 2) for part in parts)
    return float(1 + gain * basis**2 * (token + 2 * context) * out)


def before_the_kink(refiner: Any, y: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The inputs [n, H] of the hidden units at quality 2, in the order of coder.refiner."""
    network = refiner.at(2)
    c = product((y - refiner.mean) / refiner.scale, network.seen)
    inputs = np.concatenate([c, surroundings(c[:, :5], grid)], 1)
    return product(inputs, network.into) + network.bias


@pytest.mark.parametrize("grid", [(1, 1), (1, 20), (20, 1), (2, 2), (3, 17), (150, 3)])
def test_the_gradient_of_surroundings_is_their_transpose(grid: tuple[int, int]) -> None:
    u, g = (RNG.standard_normal((grid[0] * grid[1], width)).astype(np.float32) for width in (3, 6))
    there, back = surroundings(u, grid).astype(float), surroundings_gradient(g, grid).astype(float)
    np.testing.assert_allclose(np.vdot(there, g), np.vdot(u, back), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quality", [0, 3])
def test_aiming_steps_against_the_gradient_of_the_refined_error(
    codec: QualityLadder, quality: int
) -> None:
    """By central differences, in float32 where no hidden unit is near its kink."""
    refiner, one = random_refiner(codec), codec.at(quality).split()[0]
    y, y_hat, direction = (RNG.standard_normal((24, 12)).astype(np.float32) for _ in range(3))

    def error(y_hat: np.ndarray) -> float:
        refined = refiner.refine(y_hat.astype(np.float32), GRID, one.fingerprint)
        return float(np.square((refined - y) / refiner.scale, dtype=float).sum() / 2)

    step = 1e-3
    slope = (error(y_hat + step * direction) - error(y_hat - step * direction)) / (2 * step)
    moved, squared = refiner.aim(y, y_hat, GRID, one.fingerprint)
    np.testing.assert_allclose(squared / 2, error(y_hat), rtol=1e-5)
    gradient = (y_hat - moved).astype(float) / np.square(refiner.scale, dtype=float)
    np.testing.assert_allclose(np.vdot(gradient, direction), slope, rtol=1e-2)


def test_aimed_embeddings_keep_their_class_tokens_and_what_has_no_gain(
    codec: QualityLadder,
) -> None:
    y = embeddings(7).reshape(7, -1, 12)
    y = np.concatenate([y.mean(1, keepdims=True), y], 1)
    without = random_refiner(codec, gains=np.zeros(codec.num_qualities, np.float32))
    np.testing.assert_array_equal(codec.with_refiner(without).at(3).aim(y, GRID), y)
    one = codec.with_refiner(random_refiner(codec)).at(3)
    aimed = one.aim(y, GRID)
    np.testing.assert_array_equal(aimed[:, 0], y[:, 0])
    assert not np.array_equal(aimed, y)
    np.testing.assert_array_equal(aimed[2], one.aim(y[2], GRID))
    assert one.aim(y[:0], GRID).shape == (0, 25, 12)


def test_encoding_for_a_refiner_is_encoding_what_is_aimed(codec: QualityLadder) -> None:
    refined = codec.with_refiner(random_refiner(codec))
    y = embeddings(7)[0].reshape(-1, 12)
    y = np.vstack([y.mean(0), y])
    for quality in (0, 5, 12):
        one = refined.at(quality)
        expected = one.encode(one.aim(y, GRID), GRID)
        assert refined.encode(y, GRID, quality=quality, for_refiner=True) == expected
        assert one.encode(y, GRID, for_refiner=True) == expected
        np.testing.assert_array_equal(codec.decode(expected), refined.decode(expected))
    assert refined.encode(y, GRID, quality=5) == codec.encode(y, GRID, quality=5)
    with pytest.raises(InputError, match="has no refiner"):
        codec.encode(y, GRID, for_refiner=True)
    with pytest.raises(InputError, match="has no refiner"):
        codec.at(3).aim(y, GRID)
    with pytest.raises(InputError, match="needs"):
        refined.encode(y[:5], GRID, for_refiner=True)


@pytest.mark.filterwarnings("ignore::coder.UnusualEmbedding")
def test_what_is_aimed_is_never_further_away_after_refining(codec: QualityLadder) -> None:
    """Also where a refiner has weights that no training made, and for embeddings of no model."""
    refined = codec.with_refiner(random_refiner(codec))
    for grid in ((4, 6), (1, 1), (1, 200)):
        y = np.random.default_rng(0).normal(0, 3, (1 + grid[0] * grid[1], 12)).astype(np.float32)
        for quality in range(0, codec.num_qualities, 3):
            errors = []
            for for_refiner in (False, True):
                blob = refined.encode(y, grid, quality=quality, for_refiner=for_refiner)
                differ = refined.decode(blob, refine=True)[1:] - y[1:]
                errors.append(np.square(differ / codec.transform.scale, dtype=float).sum())
            assert errors[1] <= errors[0] * (1 + 1e-6)


@pytest.mark.parametrize("grid", [[4, 6], np.array([4, 6]), (np.uint8(4), np.uint8(6))])
def test_any_grid_that_encode_takes(codec: QualityLadder, grid: Any) -> None:
    one = codec.with_refiner(random_refiner(codec)).at(3).split()[0]
    y = embeddings(7)[0].reshape(-1, 12)
    np.testing.assert_array_equal(one.aim(y, grid), one.aim(y, GRID))
    assert one.encode(y, grid, for_refiner=True) == one.encode(y, GRID, for_refiner=True)


@pytest.mark.parametrize("name", ["gains", "bias"])
def test_a_refiner_of_infinite_numbers_is_to_blame(codec: QualityLadder, name: str) -> None:
    values = np.full_like(getattr(random_refiner(codec), name), 3e38)
    refined = codec.with_refiner(random_refiner(codec, **{name: values})).at(3)
    y = embeddings(7)[0].reshape(-1, 12)
    y = np.vstack([y.mean(0), y])
    blob = refined.encode(y, GRID)
    for call in (
        lambda: refined.decode(blob, refine=True),
        lambda: refined.encode(y, GRID, for_refiner=True),
    ):
        with pytest.raises(FileError, match="the refiner gives infinite numbers"):
            call()


def test_a_largest_error_is_that_of_the_refined_embedding(codec: QualityLadder) -> None:
    gains = np.full(codec.num_qualities, 0.05, np.float32)
    own = {"mean": codec.transform.mean, "scale": codec.transform.scale, "gains": gains}
    refined = codec.with_refiner(random_refiner(codec, **own))
    y = embeddings(7)[0].reshape(-1, 12)
    y = np.vstack([y.mean(0), y])
    for max_mse in (0.5, 0.1):
        blob = refined.encode(y, GRID, max_mse=max_mse, for_refiner=True)
        assert np.mean(np.square(refined.decode(blob, refine=True) - y)) <= max_mse
    blob = refined.encode(y, GRID, max_bytes=60, for_refiner=True)
    assert len(blob) <= 60


def test_a_ladder_with_another_default_quality_keeps_its_refiner(codec: QualityLadder) -> None:
    refiner = random_refiner(codec)
    other = dataclasses.replace(codec, quality=(codec.quality + 1) % codec.num_qualities)
    assert other.fingerprint.hex() not in refiner.codecs
    blob = blob_of(codec, 2)
    np.testing.assert_array_equal(
        other.with_refiner(refiner).decode(blob, refine=True),
        codec.with_refiner(refiner).decode(blob, refine=True),
    )


def test_a_refiner_of_another_codec_and_none_are_refused(codec: QualityLadder) -> None:
    with pytest.raises(InputError, match="has no refiner"):
        codec.decode(blob_of(codec), refine=True)
    other, wide = coder.fit(embeddings(60)), coder.fit(embeddings(60, channels=16))
    with pytest.raises(InputError, match="belongs to another codec"):
        other.with_refiner(random_refiner(codec))
    with pytest.raises(InputError, match="belongs to another codec"):
        random_refiner(codec).refine(np.zeros((24, 12), np.float32), GRID, other.at().fingerprint)
    channels = coder.ScalarCodec(
        np.zeros(2, "f4"), np.ones(2, "f4"), other.tables, np.zeros(2, np.int32)
    )
    with pytest.raises(InputError, match="only codecs with a transform"):
        channels.with_refiner(random_refiner(codec))
    served = {
        **random_refiner(codec).codecs,
        wide.fingerprint.hex(): -1,
        wide.at().fingerprint.hex(): 0,
    }
    with pytest.raises(InputError, match="for 12 channels, and the embeddings have 16"):
        wide.with_refiner(random_refiner(codec, codecs=served))
    with pytest.raises(InputError, match="for 12 channels, and the embeddings have 16"):
        random_refiner(codec, codecs=served).refine(
            np.zeros((24, 16), np.float32), GRID, wide.at().fingerprint
        )


def test_a_file_holds_the_refiner_and_damage_is_found(tmp_path: Path, codec: QualityLadder) -> None:
    refiner = random_refiner(codec)
    path = tmp_path / "refiner.safetensors"
    refiner.save(path)
    again = coder.load_refiner(path)
    assert again == refiner
    assert again.to_bytes() == refiner.to_bytes() == path.read_bytes()
    assert refiner.refiner_bytes == path.stat().st_size
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match="SHA-256"):
        coder.load_refiner(path)
    codec.save(path)
    with pytest.raises(FileError, match="a codec file where a refiner file is needed"):
        coder.load_refiner(path)
    refiner.save(path)
    with pytest.raises(FileError, match="a refiner file where a codec file is needed"):
        coder.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": -np.ones(12, np.float32)}, "must be positive"),
        ({"mean": np.full(12, np.nan, np.float32)}, "not finite"),
        ({"out": np.zeros((9, 12), np.float16)}, r"out of a refiner is float16 \[9, 10\]"),
        ({"token": np.zeros((10, 9), np.float32)}, "token of a refiner is float16"),
        ({"bias": np.float32(1)}, "token of a refiner is float16"),
        ({"basis": np.float16(1)}, "basis of a refiner is float16"),
        ({"basis": np.zeros((12, 0), np.float16)}, "basis of a refiner is float16"),
        ({"mean": np.zeros(0, np.float32)}, "mean of a refiner is float32"),
        ({"context": np.zeros((2, 11, 9), np.float16)}, r"10 components \(11 of them around"),
        (
            {
                "basis": np.zeros((12, 13), np.float16),
                "token": np.zeros((13, 9), np.float16),
                "out": np.zeros((9, 13), np.float16),
                "offset": np.zeros(13, np.float32),
            },
            "give at most 12",
        ),
        ({"context": np.zeros((10, 9), np.float16)}, "context of a refiner is float16"),
        ({"inputs": np.full(QUALITIES, 11, np.int32)}, "inputs of the refiner are not all from 0"),
        ({"outputs": np.full(QUALITIES, -1, np.int32)}, "outputs of the refiner are not all"),
        ({"inputs": np.zeros(QUALITIES, np.int64)}, "inputs of a refiner is int32"),
        ({"codecs": {}}, "belongs to no codec"),
        ({"codecs": {"00": True}}, "belongs to no codec"),
        ({"codecs": {"00": 1.0}}, "belongs to no codec"),
        ({"codecs": {"00": 99}}, "belongs to no codec"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    codec: QualityLadder, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(coder.CodecError, match=message):
        random_refiner(codec, **changes)
