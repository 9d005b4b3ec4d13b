"""Heads in NumPy: what files of `nec_jax.heads` predict, and the mathematics of the layers."""

import math
import pickle

import numpy as np
import pytest
from folders import GOLDEN, KEPT

import coder
from coder import InputError, archive
from coder.task_heads import head_layers as layers

CLOSE = 1e-5  # of probabilities, as the docs say


@pytest.mark.parametrize("path", sorted(KEPT.glob("20*")), ids=lambda path: path.name)
def test_heads_of_earlier_versions_predict_the_same(path):
    expected = np.load(path / "expected.npz")
    head = coder.load_head(path / "head.safetensors")
    np.testing.assert_array_equal(head.predict(expected["y_hat"]), expected["classes"])
    assert head.classes == ("dark", "bright")


@pytest.mark.parametrize("name", ["attention", "conv"])
def test_probabilities_are_those_that_jax_computed(name):
    expected = np.load(GOLDEN / "heads" / f"{name}.probabilities.npz")
    head = coder.load_head(GOLDEN / "heads" / f"{name}.head.safetensors")
    for one in (head, pickle.loads(pickle.dumps(head))):
        found = one.predict_proba(expected["y_hat"])
        np.testing.assert_allclose(found, expected["probabilities"], rtol=0, atol=CLOSE)
    np.testing.assert_array_equal(head.predict(expected["y_hat"]), found.argmax(-1))


def test_batches_change_nothing():
    """More embeddings than are computed at once."""
    for name in ("attention", "conv"):
        y_hat = np.load(GOLDEN / "heads" / f"{name}.probabilities.npz")["y_hat"]
        head = coder.load_head(GOLDEN / "heads" / f"{name}.head.safetensors")
        many = head.predict_proba(np.tile(y_hat, (30, 1, 1)))
        one = head.predict_proba(y_hat)
        np.testing.assert_allclose(many, np.tile(one, (30, *[1] * (one.ndim - 1))), atol=1e-6)


def test_what_cannot_be_used_is_refused():
    head = coder.load_head(GOLDEN / "heads" / "attention.head.safetensors")
    y_hat = np.zeros((2, 7, 8), np.float32)
    cases = [
        (y_hat[:, :6], r"has 6 tokens, the head takes 7 \(a grid of 2 x 3 and a class token\): "),
        (y_hat[..., :7], r"pass \[N, tokens, 8\] of this model"),
        (y_hat.reshape(2, 7, 1, 8), r"pass \[N, tokens, 8\]"),
        (y_hat * np.nan, "NaN or infinite"),
        (np.ma.masked_equal(y_hat, 0), "are masked"),
        (y_hat[:0], "holds no embedding"),
    ]
    for wrong, message in cases:
        with pytest.raises(InputError, match=message):
            head.predict(wrong)


def test_a_head_is_applied_to_an_archive_in_parts():
    """docs/consumer.md: with class tokens, and images that have no embedding."""
    path = KEPT / "2026-11-valid" / "archive.zarr"
    head = coder.load_head(KEPT / "2026-11-valid" / "head.safetensors")
    embeddings = coder.open(path)
    assert not embeddings.valid.all()
    predicted = np.full(len(embeddings), -1)
    for numbers in np.array_split(embeddings.valid.nonzero()[0], 3):
        tokens = embeddings[numbers].reshape(len(numbers), -1, embeddings.shape[-1])
        class_token = archive.read_array(embeddings.group, "class_token", numbers)
        y_hat = np.concatenate([class_token[:, None], tokens], axis=1)
        predicted[numbers] = head.predict(y_hat)
    assert predicted[embeddings.valid].min() >= 0
    assert (predicted[~embeddings.valid] == -1).all()


def test_the_error_function_is_that_of_the_standard_library():
    x = np.linspace(-6, 6, 4001, dtype=np.float32)
    expected = [math.erf(one) for one in x.tolist()]
    np.testing.assert_allclose(layers.erf(x), expected, rtol=0, atol=5e-7)
    largest = np.finfo(np.float32).max
    assert (layers.erf(np.array([-largest, largest], np.float32)) == [-1, 1]).all()


@pytest.mark.parametrize(("side", "new"), [(3, 17), (4, 4), (12, 7), (1, 5), (9, 2)])
def test_resizing_keeps_constants_and_the_centre_of_a_ramp(side, new):
    ones = np.ones((1, side, side, 2), np.float32)
    np.testing.assert_allclose(layers.resized(ones, (new, new)), 1, rtol=1e-6)
    ramp = np.arange(side, dtype=np.float32)[None, :, None, None]
    found = layers.resized(ramp, (new, 1))[0, :, 0, 0]
    np.testing.assert_allclose(found, side - 1 - found[::-1], atol=1e-5)
    assert (np.diff(found) > -1e-6).all()


def test_a_convolution_is_a_sum_over_neighbours():
    rng = np.random.default_rng(0)
    x, kernel, bias = (
        rng.normal(size=shape).astype(np.float32) for shape in [(1, 4, 5, 2), (3, 3, 2, 3), (3,)]
    )
    found = layers.convolution({"a/kernel": kernel, "a/bias": bias}, "a", x)
    expected = bias
    for row, column in np.ndindex(3, 3):  # around the place (1, 0): the left is outside
        if column > 0:
            expected = expected + x[0, row, column - 1] @ kernel[row, column]
    np.testing.assert_allclose(found[0, 1, 0], expected, rtol=1e-5)
