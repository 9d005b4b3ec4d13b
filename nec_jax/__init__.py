"""Neural embedding compression in JAX: models, and images <-> bytes.

`api` encodes and decodes images. `models` has the encoder, the density, the bottleneck and the
freezing rule; `heads` task heads; `convert` imports other projects' checkpoints; `images` reads
image files. `model_file` loads and saves, `calibration` gives a trained model its codec.

```python
params = nec_jax.load("model.safetensors")
blobs = nec_jax.encode(params, images)  # [B, H, W, C] -> list[bytes]
y_hat = nec_jax.decode(params, blobs)  # -> float32 [B, T, D]
```
"""

from importlib.metadata import version

try:
    import jax as _jax  # noqa: F401
except ImportError:
    raise ImportError(
        "nec_jax needs JAX: install nec-jax[train] (or [cuda], [tpu]). "
        "To decode only, `import coder` needs none of it."
    ) from None

from nec_jax import heads
from nec_jax.api import decode, embed, embed_traced, encode, latents, with_coding
from nec_jax.calibration import calibrate
from nec_jax.convert import convert_checkpoint
from nec_jax.export import export_decoder_block
from nec_jax.model_file import NecParams, load, save
from nec_jax.models.architecture import VARIANTS, ModelConfig, model_config

__version__ = version("nec-jax")

__all__ = [
    "VARIANTS",
    "ModelConfig",
    "NecParams",
    "__version__",
    "calibrate",
    "convert_checkpoint",
    "decode",
    "embed",
    "embed_traced",
    "encode",
    "export_decoder_block",
    "heads",
    "latents",
    "load",
    "model_config",
    "save",
    "with_coding",
]
