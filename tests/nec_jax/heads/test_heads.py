"""Heads: what they compute, what they learn, and what they refuse."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_cases import CLASSES, MASK_SIDE, labelled, masked, quick
from model_cases import FLOAT32, filled

from coder import InputError
from nec_jax import NecParams, heads
from nec_jax.heads import layers, network, ridge, training

VARIANTS = [
    ("linear", False),
    ("linear", True),
    ("class-linear", False),
    ("attention", False),
    ("attention", True),
    ("token-linear", False),
    ("token-linear", True),
    ("conv", False),
    ("conv", True),
]


def test_attention_pooling_is_the_plain_layer_with_one_latent_query():
    layer, y = layers.AttentionPool(heads=3), np.random.default_rng(0).normal(size=(4, 10, 48))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(y.shape))["params"]
    weights = jax.tree.map(np.float64, filled(shapes))
    assert all(weights[name]["kernel"].shape == (48, 48) for name in "qkv")

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[name]["kernel"] + weights[name]["bias"]

    q = dense("q", weights["latent"]).reshape(3, 16)
    k, v = (dense(name, y).reshape(4, 10, 3, 16) for name in "kv")
    logits = np.einsum("hd,bthd->bth", q, k) / 4
    attention = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    x = dense("proj", np.einsum("bth,bthd->bhd", attention, v).reshape(4, 48))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    normed = normed * weights["norm"]["scale"] + weights["norm"]["bias"]
    fc1, fc2 = weights["mlp"]["fc1"], weights["mlp"]["fc2"]
    hidden = normed @ fc1["kernel"] + fc1["bias"]
    hidden *= 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
    expected = x + hidden @ fc2["kernel"] + fc2["bias"]
    found = layer.apply({"params": filled(shapes)}, jnp.asarray(y, jnp.float32))
    np.testing.assert_allclose(np.asarray(found), expected, **FLOAT32)


def test_pixel_shuffle_places_channels_side_by_side():
    x = jnp.arange(16.0).reshape(1, 1, 2, 8)
    out = layers.pixel_shuffle(x)
    assert out.shape == (1, 2, 4, 2)
    np.testing.assert_array_equal(out[0, 0, :, 0], [0, 2, 8, 10])
    np.testing.assert_array_equal(out[0, 1, :, 1], [5, 7, 13, 15])


@pytest.mark.parametrize(("kind", "with_decoder"), VARIANTS[:4])
def test_labels_are_learned_and_shuffled_labels_are_not(bare_model: NecParams, kind, with_decoder):
    (y, t), val, (y_test, t_test) = labelled(0, 240), labelled(1, 60), labelled(2, 150)
    options = {"kind": kind, "classes": CLASSES, "with_decoder": with_decoder, "epochs": 8}
    options |= {"batch": 32, "lr": 4e-3}
    head = heads.fit(bare_model, y, t, val=val, **options)
    assert np.mean(heads.predict(head, y_test) == t_test) > 0.9
    # Each label as often in each true class: a plain shuffle leaves a majority to be learned.
    wrong = np.empty_like(t)
    wrong[np.argsort(t, kind="stable")] = np.arange(len(t)) % 3
    head = heads.fit(bare_model, y, wrong, **options)
    assert abs(np.mean(heads.predict(head, y_test) == t_test) - 1 / 3) < 0.15


@pytest.mark.parametrize(
    ("kind", "with_decoder"),
    [
        ("token-linear", False),
        ("token-linear", True),
        pytest.param("conv", False, marks=pytest.mark.slow),
    ],
)
def test_masks_are_learned_from_the_pixels_that_count(bare_model: NecParams, kind, with_decoder):
    (y, m), (y_test, m_test) = masked(0, 96), masked(1, 20)
    m[::2, :16] = 255
    options = {"classes": CLASSES, "epochs": 10, "batch": 8, "lr": 3e-3, "val": masked(2, 12)}
    head = heads.fit(bare_model, y, m, kind=kind, with_decoder=with_decoder, **options)
    predicted = heads.predict(head, y_test)
    assert predicted.shape == m_test.shape
    assert np.mean(predicted == m_test) > 0.8
    probabilities = heads.predict_proba(head, y_test[:2])
    assert probabilities.shape == (2, MASK_SIDE, MASK_SIDE, 3)
    np.testing.assert_array_equal(probabilities.argmax(-1), predicted[:2])


def test_a_token_has_the_commonest_class_of_its_pixels():
    mask = np.array([[0, 0, 1, 1], [0, 2, -1, 2], [-1, -1, 2, 1], [-1, -1, 1, 1]], np.int32)
    np.testing.assert_array_equal(ridge.token_labels(mask[None], (2, 2), 3), [[[0, 1], [-1, 1]]])
    # Sides that the grid does not divide: whole pixels still, each in one token.
    uneven = np.repeat(np.arange(3, dtype=np.int32), [3, 2, 3])[None, None].repeat(5, 1)
    np.testing.assert_array_equal(ridge.token_labels(uneven, (2, 3), 3), [[[0, 1, 2]] * 2])


def test_cross_entropy_is_over_the_targets_that_count():
    outputs = jnp.asarray([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(1.0))
    found = training.cross_entropy(outputs, jnp.asarray([0, 0, -1]))
    np.testing.assert_allclose(found, expected, **FLOAT32)
    gradient = jax.grad(lambda x: training.cross_entropy(x, jnp.asarray([0, 0, -1])))(outputs)
    np.testing.assert_array_equal(gradient[2], [0, 0])


@pytest.mark.parametrize(
    ("kind", "with_decoder"),
    [pytest.param(*v, marks=pytest.mark.slow if v[0] == "conv" else ()) for v in VARIANTS],
)
def test_a_prediction_depends_on_nothing_but_the_embedding(
    bare_model: NecParams, kind, with_decoder
):
    head = quick(bare_model, kind, with_decoder=with_decoder)
    y = labelled(3, 20)[0]
    whole = heads.predict_proba(head, y)
    np.testing.assert_allclose(whole.sum(-1), 1, **FLOAT32)
    np.testing.assert_array_equal(heads.predict_proba(head, y[17:19]), whole[17:19])
    np.testing.assert_array_equal(heads.predict_proba(head, y[::-1]), whole[::-1])
    assert heads.predict(head, y).dtype == np.int32
    if with_decoder or kind == "class-linear":
        return
    other = y.copy()
    other[:, 0] = 100  # the class token is dropped
    np.testing.assert_array_equal(heads.predict_proba(head, other), whole)


@pytest.mark.parametrize("kind", ["attention", "conv"])
def test_a_head_follows_from_its_seed(bare_model: NecParams, kind):
    one, same, other = (quick(bare_model, kind, seed) for seed in (0, 0, 1))
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)
    y = labelled(3, 4)[0]
    assert not np.array_equal(heads.predict_proba(one, y), heads.predict_proba(other, y))


def test_a_head_with_decoder_starts_from_the_model_and_trains_it(bare_model: NecParams):
    decoder = bare_model.weights["decoder"]
    before = jax.tree.map(np.array, decoder)
    for kind in ("attention", "conv"):
        still = quick(bare_model, kind, with_decoder=True, lr=1e-12)
        for name in ("stem", "block_0"):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9),
                still.weights[name],
                decoder[name],
            )
        moved = quick(bare_model, kind, with_decoder=True)
        kernels = [h.weights["block_0"]["attn"]["qkv"]["kernel"] for h in (still, moved)]
        assert not np.array_equal(*kernels)
    # And the model is as it was: training consumed copies.
    jax.tree.map(np.testing.assert_array_equal, before, decoder)


def test_a_linear_head_with_decoder_is_a_regression_on_what_leaves_it(bare_model: NecParams):
    (y, t), (y_new, _) = labelled(0, 60), labelled(1, 20)
    head = heads.fit(bare_model, y, t, kind="linear", classes=CLASSES, with_decoder=True)
    for name in ("stem", "block_0"):
        jax.tree.map(
            np.testing.assert_array_equal, head.weights[name], bare_model.weights["decoder"][name]
        )
    plain = {"scale": jnp.ones(32), "bias": jnp.zeros(32)}
    features, new = (
        np.asarray(network.decoder_features(head.config, head.weights | {"norm": plain}, some))
        for some in (jnp.asarray(y), jnp.asarray(y_new))
    )
    pooled = features.mean(1, dtype=np.float64)
    mean, std = pooled.mean(0), pooled.std(0)
    kernel, bias, _ = ridge.fit_ridge(
        ((pooled - mean) / std, t.astype(np.int32)), None, len(CLASSES)
    )
    expected = (new.mean(1) - mean) / std @ kernel + bias
    found = np.asarray(network.logits(head.config, head.weights, jnp.asarray(y_new)))
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_what_leaves_the_decoder_block_is_standardised_at_first(bare_model: NecParams):
    y = labelled(0, 100)[0]
    config = quick(bare_model, "attention", with_decoder=True).config
    start = network.starting_weights(config, bare_model, y, seed=0)
    features = np.asarray(network.decoder_features(config, start, jnp.asarray(y)))
    assert features.shape == (100, 16, 32)
    np.testing.assert_allclose(features.mean((0, 1)), 0, atol=1e-4)
    assert features.std((0, 1)).max() < 1 + 1e-4


def test_standardisation_survives_dead_channels():
    x = np.random.default_rng(0).normal(size=(50, 4, 8)) * [1, 1, 1, 1, 1e-3, 0, 0, 0] + 3
    scaling = network.standardisation(x.astype(np.float32))
    np.testing.assert_allclose(scaling["std"][:4], x.std((0, 1))[:4], rtol=1e-4)
    np.testing.assert_allclose(scaling["std"][4:], 0.1 * np.median(x.std((0, 1))[:5]), rtol=1e-2)
    np.testing.assert_array_equal(network.standardisation(np.ones((4, 2)))["std"], [1, 1])


def test_without_class_token(grid_only_model: NecParams):
    y, t = labelled(0, 32, tokens=16)
    for with_decoder in (False, True):
        options = {"classes": CLASSES, "with_decoder": with_decoder, "epochs": 1}
        head = heads.fit(grid_only_model, y, t, kind="attention", **options)
        assert heads.predict_proba(head, y).shape == (32, 3)


def test_grids_need_not_be_square(bare_model: NecParams):
    y, t = labelled(0, 16, tokens=13)
    with pytest.raises(InputError, match=r"12 grid tokens are not a square: pass grid="):
        heads.fit(bare_model, y, t, kind="linear", classes=CLASSES)
    masks = np.zeros((16, 24, 32), np.uint8)
    head = heads.fit(bare_model, y, masks, kind="conv", classes=CLASSES, grid=(3, 4), epochs=1)
    assert heads.predict(head, y).shape == masks.shape


def test_the_best_epoch_on_val_is_kept(bare_model: NecParams):
    data, val = labelled(0, 64), labelled(5, 40)
    options = {"kind": "attention", "classes": CLASSES, "lr": 3e-2, "batch": 8, "epochs": 4}
    last = heads.fit(bare_model, *data, **options)
    best = heads.fit(bare_model, *data, val=val, **options)
    right = [np.sum(heads.predict(head, val[0]) == val[1]) for head in (last, best)]
    assert right[1] >= right[0]


def test_ridge_regression_solves_its_normal_equations_and_leaves_one_out():
    (y, t), (y_val, t_val) = labelled(0, 40), labelled(1, 40)
    x, x_val = y[:, 1:].mean(1), y_val[:, 1:].mean(1)
    t, t_val = t.astype(np.int32), t_val.astype(np.int32)
    kernel, bias, strength = ridge.fit_ridge((x, t), (x_val, t_val), 3)
    targets = ridge.signs(t, 3)
    residual = x.astype(np.float64) @ kernel + bias - targets
    np.testing.assert_allclose(residual.mean(0), 0, atol=1e-9)
    slope = (x - x.mean(0)).T.astype(np.float64) @ residual / len(x) + strength * kernel
    np.testing.assert_allclose(slope, 0, atol=1e-6)

    # Leave-one-out scores choose as refitting without each sample does.
    refitted, found = [], ridge.fit_ridge((x, t), None, 3)[2]
    for candidate in ridge.STRENGTHS:
        scores = []
        for i in range(len(x)):
            rest = np.delete(x, i, 0).astype(np.float64)
            centre, level = rest.mean(0), np.delete(targets, i, 0).mean(0)
            # The strength is per sample of all 40: the weight of the penalty stays.
            gram = (rest - centre).T @ (rest - centre) / len(x) + candidate * np.eye(48)
            moments = (rest - centre).T @ (np.delete(targets, i, 0) - level) / len(x)
            scores.append((x[i] - centre) @ np.linalg.solve(gram, moments) + level)
        error = np.mean((np.array(scores) - targets) ** 2)
        refitted.append((np.mean(np.argmax(scores, 1) == t), -error, candidate))
    assert found == max(refitted)[2]


@pytest.mark.parametrize(("kind", "with_decoder"), VARIANTS)
def test_load_inverts_save(bare_model: NecParams, tmp_path: Path, kind, with_decoder):
    head = quick(bare_model, kind, with_decoder=with_decoder)
    heads.save(head, tmp_path / "head")
    loaded = heads.load(tmp_path / "head")
    assert loaded.config == head.config
    y = labelled(3, 3)[0]
    np.testing.assert_array_equal(heads.predict_proba(loaded, y), heads.predict_proba(head, y))
    heads.save(loaded, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "head").read_bytes()


def test_a_head_is_a_pytree_whose_config_compares_by_value(bare_model: NecParams, tmp_path: Path):
    head = quick(bare_model, "attention")
    heads.save(head, tmp_path / "head")
    traced = []

    @jax.jit
    def same(head: heads.HeadParams) -> heads.HeadParams:
        traced.append(head.config)
        return head

    same(head)
    same(heads.load(tmp_path / "head"))
    assert len(traced) == 1
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(head))


def test_class_linear_reads_the_class_token_and_the_mean_of_the_others(bare_model: NecParams):
    """Labels that either of the two alone does not tell."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(400, 17, 48)).astype(np.float32)
    first, rest = rng.integers(0, 2, (2, 400))
    y[:, 0, 5] += 6 * first
    y[:, 1:, 9] += 3 * rest[:, None]
    labels = 2 * first + rest
    names = ("a", "b", "c", "d")
    fits = {
        kind: heads.fit(bare_model, y[:300], labels[:300], kind=kind, classes=names)
        for kind in ("linear", "class-linear")
    }
    right = {k: np.mean(heads.predict(h, y[300:]) == labels[300:]) for k, h in fits.items()}
    assert right["class-linear"] > right["linear"] + 0.25


def test_class_linear_is_for_models_that_code_a_class_token(grid_only_model: NecParams):
    y, t = np.zeros((4, 16, 48), np.float32), np.array([0, 1, 0, 1])
    with pytest.raises(InputError, match="class-linear reads the class token: this model codes"):
        heads.fit(grid_only_model, y, t, kind="class-linear", classes=("a", "b"))
