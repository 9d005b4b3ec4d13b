"""Checkpoints of the paper's authors: a masked autoencoder with CompressAI's EntropyBottleneck.

Parameters of the density are `bottleneck._matrix0`, `_bias0`, `_factor0` (CompressAI 1.2.4) or
`bottleneck.matrices.0`, `biases.0`, `factors.0` (later). `_quantized_cdf` are the tables that
their bitstreams use, in 16-bit integers, if the model was saved after `update()`.
"""

import numpy as np
from numpy.typing import NDArray

from coder import FileError
from nec_jax.convert import mae
from nec_jax.convert.options import Imported, Options
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import Tensors
from nec_jax.models.density import WIDTHS

_NAMES = (("_matrix{}", "_bias{}", "_factor{}"), ("matrices.{}", "biases.{}", "factors.{}"))


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there is a bottleneck between encoder and decoder."""
    return mae.recognises(checkpoint) and any(
        name.startswith("bottleneck.") for name in checkpoint.tensors
    )


def convert(checkpoint: Checkpoint, options: Options) -> Imported:
    """Model, density and tables."""
    tensors = Tensors(checkpoint.tensors)
    imported = mae.autoencoder(tensors, checkpoint, options)
    imported.kind = "NEC (the paper's authors')"
    imported.normalisation = "imagenet"
    channels = imported.config["width"]
    imported.bottleneck = {
        "log_gain": np.zeros(channels, np.float32),
        "density": _density(tensors, channels),
    }
    quantiles = tensors.take("bottleneck.quantiles", channels, 1, 3)
    imported.tables = _tables(tensors, channels, quantiles[:, 0, 1])
    # Constants of CompressAI: tail mass, likelihood floor.
    tensors.leave_out(r"bottleneck\.(target|likelihood_lower_bound\.bound)")
    tensors.finish()
    imported.left_out = tensors.left_out
    return imported


def _density(tensors: Tensors, channels: int) -> dict[str, NDArray[np.float32]]:
    matrix, bias, factor = next(
        (n for n in _NAMES if f"bottleneck.{n[0].format(0)}" in tensors), _NAMES[0]
    )
    sizes = (1, *WIDTHS, 1)
    layers = len(sizes) - 1
    density = {}
    for k in range(layers):
        rows, columns = sizes[k + 1], sizes[k]
        density[f"matrix_{k}"] = tensors.take(
            f"bottleneck.{matrix.format(k)}", channels, rows, columns
        )
        density[f"bias_{k}"] = tensors.take(f"bottleneck.{bias.format(k)}", channels, rows, 1)[
            ..., 0
        ]
        if k < layers - 1:
            name = f"bottleneck.{factor.format(k)}"
            density[f"gate_{k}"] = tensors.take(name, channels, rows, 1)[..., 0]
    return density


def _tables(
    tensors: Tensors, channels: int, medians: NDArray[np.float32]
) -> tuple[NDArray[np.float32], list[tuple[int, NDArray[np.float64], float]]] | None:
    """Their integer tables as probabilities; None if they were never made."""
    names = [f"bottleneck.{name}" for name in ("_quantized_cdf", "_cdf_length", "_offset")]
    if not all(name in tensors for name in names):
        tensors.leave_out(r"bottleneck\.(_quantized_cdf|_cdf_length|_offset)")
        return None
    cdf_name, length_name, offset_name = names
    if 0 in (tensors.raw(cdf_name).size, tensors.raw(length_name).size):
        tensors.leave_out(r"bottleneck\.(_quantized_cdf|_cdf_length|_offset)")
        return None
    longest = tensors.shape(cdf_name, 2)[1]
    cdf = tensors.take(cdf_name, channels, longest, kind="i").astype(np.int64)
    lengths = tensors.take(length_name, channels, kind="i").astype(int)
    offsets = tensors.take(offset_name, channels, kind="i").astype(int)
    rows = []
    for channel, (row, length, first) in enumerate(zip(cdf, lengths, offsets, strict=True)):
        whole = 3 <= length <= longest and row[0] == 0 and row[length - 1] == 1 << 16
        counts = np.diff(row[:length])
        if not whole or (counts <= 0).any():
            raise FileError(f"{cdf_name}: the table of channel {channel} is damaged")
        probabilities = counts / float(1 << 16)
        # The last is their escape.
        rows.append((int(first), probabilities[:-1], float(probabilities[-1])))
    return medians, rows
