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
from head_cases import quick
from model_cases import random_images, tiny_config

import nec_jax
from nec_jax import NecParams, heads
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import flatten_weights

HEADS = {"linear": {}, "attention": {"with_decoder": True}}


def facts(folder: Path) -> dict[str, Any]:
    """Digests and numbers; model and head files in `folder`."""
    shipped = nec_jax.load("nec-vit-ti")
    blobs = nec_jax.encode(shipped, random_images(0, 2, 224))
    found: dict[str, Any] = {"blobs": [blob.hex() for blob in blobs]}
    found["embeddings"] = digest({"y": nec_jax.decode(shipped, blobs)})
    config = tiny_config(depth=1, decoder_depth=1)
    weights = init_weights(config, jax.random.key(1))
    found["weights"] = digest(flatten_weights(weights))
    model = NecParams(weights, config)
    nec_jax.save(model, folder / "model")
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


if __name__ == "__main__":
    assert jnp.ones(1).dtype == jnp.float64, "JAX_ENABLE_X64 is not set"
    print(json.dumps(facts(Path(sys.argv[1]))))
