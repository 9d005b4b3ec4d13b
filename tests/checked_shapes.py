"""In tests, each call between layers checks the shapes and types that the signatures give.

Imported before nec_jax is. What users call is left out: it has errors of its own.
"""

from jaxtyping import install_import_hook

MODELS = ("bottleneck", "dense", "density", "mae", "nec", "refiner_network", "rounding")
MODELS += ("transform_bottleneck", "vit")
HEADS = ("layers", "network")
CHECKED = [
    *(f"nec_jax.models.{name}" for name in MODELS),
    *(f"nec_jax.heads.{name}" for name in HEADS),
    "train.engine.losses",
]
install_import_hook(CHECKED, "beartype.beartype")
