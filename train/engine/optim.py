"""The optimiser: AdamW or Muon with a cosine schedule; parameter groups are chosen by path."""

import jax
import optax
import optax.contrib

from nec_jax.models.weight_tree import Weights, path_name
from train.configs.options import Distil, Training


def cosine(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then a cosine to zero at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        0.0 if warmup else peak, peak, warmup_steps=warmup, decay_steps=max(steps, warmup + 1)
    )


def optimiser(options: Training, density_lr: float = 0.0) -> optax.GradientTransformation:
    """AdamW (betas 0.9, 0.95), or Muon for the model's matrices.

    The density and the gains have Adam with their own learning rate. Only matrices decay. The
    optimiser gets only the trainable part of the weights (`weight_tree.split`), so that frozen
    weights have neither gradients nor optimiser state.
    """

    def labels(weights: Weights) -> Weights:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "density" if path_name(path).startswith("bottleneck/") else "model",
            weights,
        )

    def decays(weights: Weights) -> Weights:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path_name(path).endswith("/kernel"), weights
        )

    lr = cosine(options.lr, options.steps, options.warmup)
    if isinstance(options, Distil) and options.optimiser == "muon":
        # Jordan 2024; scaled so that AdamW's learning rates suit it (Liu 2025, arXiv 2502.16982).
        model = optax.contrib.muon(
            lr, weight_decay=options.weight_decay, consistent_rms=0.2, adam_b2=0.95
        )
    else:
        model = optax.adamw(lr, b1=0.9, b2=0.95, weight_decay=options.weight_decay, mask=decays)
    density = optax.adam(cosine(density_lr, options.steps, options.warmup))
    return optax.partition({"model": model, "density": density}, labels)
