"""What a process makes of models and heads, whatever JAX's default dtypes are in it.

python tests/dtype_case.py FOLDER
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from head_cases import quick
from model_cases import random_images, tiny_config

import nec_jax
from nec_jax import NecParams, calibrate, heads
from nec_jax.nec import init_weights
from nec_jax.params import flatten_weights
from nec_jax.trainable import split
from train import objective
from train.step import data_mesh, init_state, make_step

HEADS = {"linear": {}, "attention": {"with_decoder": True}}


def facts(folder: Path) -> dict[str, Any]:
    """Digests and numbers; model and head files in `folder`."""
    shipped = nec_jax.load("nec-vit-ti")
    blobs = nec_jax.encode(shipped, random_images(0, 2, 224))
    found: dict[str, Any] = {"blobs": [blob.hex() for blob in blobs]}
    found["embeddings"] = digest({"y": nec_jax.decode(shipped, blobs)})
    config = tiny_config()
    weights = init_weights(config, jax.random.key(1))
    found["weights"] = digest(flatten_weights(weights))
    model = calibrate(NecParams(weights, config), random_images(1, 16))
    nec_jax.save(model, folder / "model")
    found["step"] = trained(objective.rate_distortion(config, 2.0, "soft", 0.5), weights)
    for name, options in HEADS.items():
        head = quick(model, name, **options)  # type: ignore
        heads.save(head, folder / name)
    return found


def digest(arrays: dict[str, Any]) -> dict[str, Any]:
    """The dtypes of arrays and a digest of their values."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(np.asarray(arrays[name]).tobytes())
    return {"dtypes": sorted({str(a.dtype) for a in arrays.values()}), "sha": sha.hexdigest()}


def trained(of: objective.Objective, weights: Any) -> dict[str, Any]:
    """A step of training: its loss, and the dtypes that come out."""
    mesh, tx = data_mesh(1), optax.adam(1e-3)
    step, (kept, frozen) = make_step(of, tx, 10, mesh), split(weights, lambda _: True)
    batch = {"image": random_images(2, 4)}
    state, metrics = step(init_state(kept, tx, mesh), frozen, batch, jax.random.key(3))
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves((state.trainable, metrics))})
    return {"dtypes": dtypes, "loss": float(metrics["loss"])}


if __name__ == "__main__":
    assert jnp.ones(1).dtype == jnp.float64, "JAX_ENABLE_X64 is not set"
    print(json.dumps(facts(Path(sys.argv[1]))))
