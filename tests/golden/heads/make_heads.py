"""Wrote the golden heads, with JAX, once:

    PYTHONPATH=.:tests python tests/golden/heads/make_heads.py


A case is `NAME.head.safetensors` and `NAME.probabilities.npz`: embeddings `y_hat` [N, n, D] and
what `nec_jax.heads.predict_proba` gives for them. Files that are there are never written again.
"""

import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
from model_cases import filled

from nec_jax import heads, model_config
from nec_jax.heads.network import init_weights

HERE = Path(__file__).parent
SIZES = {"width": 8, "heads": 2, "decoder_width": 8, "decoder_heads": 2, "mlp_ratio": 1}
CASES = {"attention": ("attention", True, None), "conv": ("conv", False, (11, 9))}


def main() -> None:
    """Write what is missing."""
    model = model_config("vit-ti", depth=1, decoder_depth=1, **SIZES)
    for name, (kind, with_decoder, size) in CASES.items():
        path = HERE / f"{name}.head.safetensors"
        if path.exists():
            sys.stdout.write(f"{name}: there already, left alone\n")
            continue
        config = heads.HeadConfig(kind, ("a", "b", "c"), (2, 3), with_decoder, size, model)
        weights = filled(jax.eval_shape(partial(init_weights, config), jax.random.key(0)))
        if not with_decoder:
            weights["scaling"]["std"] = np.abs(weights["scaling"]["std"]) + 0.5
        head = heads.HeadParams(weights, config)
        y_hat = np.random.default_rng(0).normal(size=(5, 7, 8)).astype(np.float16)
        heads.save(head, path)
        found = heads.predict_proba(head, y_hat)
        np.savez_compressed(HERE / f"{name}.probabilities.npz", y_hat=y_hat, probabilities=found)


if __name__ == "__main__":
    main()
