"""The exported decoder block is all that is needed to compute what a head with decoder sees."""

import os
import subprocess
from math import erf

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from folders import EXAMPLES

import nec_jax
from coder import InputError
from nec_jax.heads.head import HeadConfig
from nec_jax.heads.network import decoder_features

TORCH = os.environ.get("NEC_TORCH_PYTHON")


def expected(params, y_hat, grid):
    config = HeadConfig("attention", ("a", "b"), grid, True, None, params.config)
    decoder = params.weights["decoder"]
    weights = {"stem": decoder["stem"], "block_0": decoder["block_0"], "norm": decoder["norm"]}
    return np.asarray(decoder_features(config, weights, jnp.asarray(y_hat)))


def from_the_file(path, y_hat):
    """The docstring's formula, in float64."""
    t = {k: v.astype(np.float64) for k, v in safetensors.numpy.load_file(path).items()}
    with safetensors.safe_open(path, "np") as file:
        facts = file.metadata()

    def dense(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + float(facts["epsilon"]))
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = dense(y_hat, "embed") + t["positions"]
    b, n, w = x.shape
    heads = int(facts["heads"])
    qkv = dense(norm(x, "block.norm1"), "block.attn.qkv").reshape(b, n, 3, heads, w // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    logits = q @ k.swapaxes(2, 3) / np.sqrt(w // heads)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention /= attention.sum(-1, keepdims=True)
    x = x + dense((attention @ v).swapaxes(1, 2).reshape(b, n, w), "block.attn.proj")
    hidden = dense(norm(x, "block.norm2"), "block.mlp.fc1")
    gelu = hidden * (1 + np.vectorize(erf)(hidden / np.sqrt(2))) / 2
    return norm(x + dense(gelu, "block.mlp.fc2"), "norm")[:, int(facts["class_token"]) :]


def test_the_same_model_gives_the_same_bytes(model, tmp_path):
    for name in "abcdef":
        nec_jax.export_decoder_block(model, tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdef"}) == 1


@pytest.mark.parametrize("grid", [(0, 0), (-1, 4), (4,), (4.0, 4.0), (True, 4), (), 4])
def test_a_grid_that_is_none_is_refused(model, tmp_path, grid):
    with pytest.raises(InputError, match=r"grid is .*height and width in tokens"):
        nec_jax.export_decoder_block(model, tmp_path / "block", grid)
    assert not list(tmp_path.iterdir())


def test_a_grid_may_be_numpys(model, tmp_path):
    nec_jax.export_decoder_block(model, tmp_path / "one", (4, 4))
    nec_jax.export_decoder_block(model, tmp_path / "other", np.array([4, 4]))  # type: ignore
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def inputs(params, grid, seed=0):
    n = grid[0] * grid[1] + params.config.code_class_token
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, n, params.config.width)).astype(np.float32)


@pytest.mark.parametrize("grid", [None, (3, 5)])
@pytest.mark.parametrize("which", ["model", "grid_only_model"])
def test_the_file_is_enough(which, grid, request, tmp_path):
    params = request.getfixturevalue(which)
    nec_jax.export_decoder_block(params, tmp_path / "block.safetensors", grid)
    grid = grid or params.config.grid(params.config.image_size, params.config.image_size)
    y_hat = inputs(params, grid)
    found = from_the_file(tmp_path / "block.safetensors", y_hat)
    np.testing.assert_allclose(found, expected(params, y_hat, grid), atol=1e-5)
    with safetensors.safe_open(tmp_path / "block.safetensors", "np") as file:
        facts = file.metadata()
    assert facts["grid"] == f"{grid[0]}x{grid[1]}"
    assert facts["class_token"] == str(int(params.config.code_class_token))
    assert facts["codec"] == params.codec.fingerprint.hex()


@pytest.mark.skipif(TORCH is None, reason="`make test-torch` sets NEC_TORCH_PYTHON")
@pytest.mark.parametrize("which", ["model", "grid_only_model"])
def test_pytorch_computes_the_same(which, request, tmp_path):
    assert TORCH is not None
    params = request.getfixturevalue(which)
    grid = params.config.grid(params.config.image_size, params.config.image_size)
    y_hat = inputs(params, grid)
    np.save(tmp_path / "y_hat.npy", y_hat)
    nec_jax.export_decoder_block(params, tmp_path / "block.safetensors")
    program = (
        "import sys, numpy, torch; sys.path.insert(0, sys.argv[1]); import torch_head\n"
        "y_hat = torch.from_numpy(numpy.load(sys.argv[2] + '/y_hat.npy'))\n"
        "features = torch_head.decoder_block(sys.argv[2] + '/block.safetensors')(y_hat)\n"
        "numpy.save(sys.argv[2] + '/features.npy', features.numpy())\n"
        "assert not {'jax', 'flax', 'nec_jax'} & set(sys.modules)"
    )
    subprocess.run([TORCH, "-c", program, EXAMPLES, tmp_path], check=True)
    found = np.load(tmp_path / "features.npy")
    np.testing.assert_allclose(found, expected(params, y_hat, grid), atol=1e-5)
