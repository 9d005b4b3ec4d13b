"""A model's decoder embedding, positions and first decoder block, for consumers without JAX.

At the lowest qualities a head needs them: the decoder turns coarse embeddings into features that a
head can use (arXiv 2403.17886, section IV: 94 % against 64 %).
"""

import json
import os

import numpy as np
import safetensors.numpy

from coder import InputError, files
from coder.arrays import as_grid
from coder.task_heads.head_layers import sincos_positions
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams


@jax_defaults()
def export_decoder_block(
    params: NecParams, path: str | os.PathLike[str], grid: tuple[int, int] | None = None
) -> None:
    """Write the weights that heads use `with_decoder` to a plain safetensors file.

    float32 tensors, named and shaped as PyTorch has them (weights are [out, in]; D is the width of
    embeddings, W the decoder's, n the tokens of an embedding):

    | tensor | shape |
    | --- | --- |
    | `embed.weight`, `embed.bias` | [W, D], [W] |
    | `positions` | [n, W]; zeros for the class token, if there is one, unless they were learned |
    | `block.norm1`, `block.norm2` `.weight`, `.bias` | [W] |
    | `block.attn.qkv.weight`, `.bias` | [3 W, W]: queries, keys, values, each head by head |
    | `block.attn.proj`, `block.mlp.fc1`, `block.mlp.fc2` | as `torch.nn.Linear` |
    | `norm.weight`, `norm.bias` | [W], the decoder's last norm, applied to the block's output |

    features = norm(block(embed(y_hat) + positions)), block pre-norm with an exact GELU. The file's
    metadata holds `heads`, `epsilon`, `grid` ("14x14"), `class_token` ("0" or "1") and `codec`, the
    fingerprint of the codec whose embeddings it takes.

    Args:
      params: a model, with or without a codec.
      path: the file to write.
      grid: token grid (height, width) of the positions; that of the model's image size if None.

    Raises:
      InputError: a model without decoder, or a grid that the model cannot have.
    """
    config = params.config
    grid = config.grid(config.image_size, config.image_size) if grid is None else as_grid(grid)
    if config.decoder_target == "none":
        raise InputError("this model has no decoder to export")
    decoder = params.weights["decoder"]
    block, class_tokens = decoder["block_0"], int(config.code_class_token)
    if config.decoder_positions == "learned":
        config.grid(grid[0] * config.patch, grid[1] * config.patch)  # refuses all others
        positions = np.asarray(decoder["stem"]["positions"], np.float32)
    else:
        positions = sincos_positions(grid, config.decoder_width)
        positions = np.pad(positions, [(class_tokens, 0), (0, 0)])
    layers = {
        "embed": decoder["stem"]["embed"],
        "block.norm1": block["norm1"],
        "block.attn.qkv": block["attn"]["qkv"],
        "block.attn.proj": block["attn"]["proj"],
        "block.norm2": block["norm2"],
        "block.mlp.fc1": block["mlp"]["fc1"],
        "block.mlp.fc2": block["mlp"]["fc2"],
        "norm": decoder["norm"],
    }
    tensors = {"positions": positions}
    for name, layer in layers.items():
        weight = layer["kernel"].T if "kernel" in layer else layer["scale"]
        tensors[f"{name}.weight"] = np.ascontiguousarray(weight, np.float32)
        tensors[f"{name}.bias"] = np.asarray(layer["bias"], np.float32)
    metadata = {
        "heads": str(config.decoder_heads),
        "epsilon": str(config.epsilon),
        "grid": f"{grid[0]}x{grid[1]}",
        "class_token": str(class_tokens),
        "codec": params.codec.fingerprint.hex() if params.codec is not None else "",
    }
    files.write_bytes(path, _in_order(safetensors.numpy.save(tensors, metadata)), overwrite=True)


def _in_order(data: bytes) -> bytes:
    """A safetensors file whose metadata, which safetensors writes in random order, is sorted."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    return data[:8] + text.ljust(end - 8) + data[end:]
