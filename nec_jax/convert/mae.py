"""Masked autoencoders with the names of Facebook's: its own, RVSA's, SatMAE's, Prithvi's, NEC's.

The architecture is the plain ViT of MAE with any number of bands. Prithvi's second version puts
`encoder.` and `decoder.` before the names, and convolves over (one) frame of time.

Checkpoints of the paper's authors (NEC) have CompressAI's EntropyBottleneck as well. Parameters of
its density are `bottleneck._matrix0`, `_bias0`, `_factor0` (CompressAI 1.2.4) or
`bottleneck.matrices.0`, `biases.0`, `factors.0` (later). `_quantized_cdf` are the tables that
their bitstreams use, in 16-bit integers, if the model was saved after `update()`.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

from coder import FileError
from nec_jax.convert import timm
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import Imported, Tensors, add_decoder
from nec_jax.models.density import WIDTHS

_NAMES = (("_matrix{}", "_bias{}", "_factor{}"), ("matrices.{}", "biases.{}", "factors.{}"))
_TABLES = tuple(f"bottleneck.{name}" for name in ("_quantized_cdf", "_cdf_length", "_offset"))
# Constants of CompressAI (tail mass, likelihood floor), and tables that were never made.
_NOT_NEEDED = (
    r"bottleneck\.(target|likelihood_lower_bound\.bound|_quantized_cdf|_cdf_length|_offset)"
)


def convert(checkpoint: Checkpoint) -> Imported | None:
    """Import encoder and decoder, and the density and tables of NEC; None without a decoder."""
    found = checkpoint.tensors
    if "encoder.patch_embed.proj.weight" in found:
        names = [name.removeprefix("encoder.").removeprefix("decoder.") for name in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise FileError(f"two tensors are named {twice} after encoder. or decoder.: keep one")
        found = dict(zip(names, found.values(), strict=True))
    if "decoder_embed.weight" not in found or "patch_embed.proj.weight" not in found:
        return None
    tensors, told = Tensors(found), timm.read_config(checkpoint.config)
    imported = timm.encoder(tensors, told, is_mae=True)
    imported.kind = "masked autoencoder (Facebook MAE's names)"
    imported.resizing = "bicubic"
    depth = told.get("decoder_depth")
    add_decoder(imported, tensors, "", "decoder_blocks.", timm.BLOCK, depth)
    imported.decoder_heads = told.get("decoder_num_heads")
    arguments = checkpoint.arguments
    imported.normalised_pixels = arguments.get("norm_pix_loss", told.get("norm_pix_loss"))
    if imported.normalisation is None and imported.config["channels"] == 3 and arguments:
        # SatMAE's have a dataset_type; Facebook's and RVSA's scripts have ImageNet's values in
        # them. Without arguments, nothing says it.
        known = {None: "imagenet", "rgb": "fmow"}
        imported.normalisation = known.get(arguments.get("dataset_type"))
    if any(name.startswith("bottleneck.") for name in tensors):
        _add_bottleneck(imported, tensors)
    tensors.finish()
    return imported


def _add_bottleneck(imported: Imported, tensors: Tensors) -> None:
    imported.kind = "NEC (the paper's authors')"
    imported.normalisation = "imagenet"
    channels = imported.config["width"]
    imported.bottleneck = {
        "log_gain": np.zeros(channels, np.float32),
        "density": _density(tensors, channels),
    }
    quantiles = tensors.take("bottleneck.quantiles", channels, 1, 3)
    # Tables that were never made are empty.
    if all(name in tensors and tensors[name].size for name in _TABLES):
        imported.tables = quantiles[:, 0, 1], _tables(tensors, channels)
    tensors.leave_out(_NOT_NEEDED)


def _density(tensors: Tensors, channels: int) -> dict[str, NDArray[np.float32]]:
    names = next((n for n in _NAMES if f"bottleneck.{n[0].format(0)}" in tensors), _NAMES[0])
    sizes = (1, *WIDTHS, 1)
    density = {}
    for k, (columns, rows) in enumerate(itertools.pairwise(sizes)):
        matrix, bias, factor = (f"bottleneck.{name.format(k)}" for name in names)
        density[f"matrix_{k}"] = tensors.take(matrix, channels, rows, columns)
        density[f"bias_{k}"] = tensors.take(bias, channels, rows, 1)[..., 0]
        if k < len(WIDTHS):  # the last layer has none
            density[f"gate_{k}"] = tensors.take(factor, channels, rows, 1)[..., 0]
    return density


def _tables(tensors: Tensors, channels: int) -> list[tuple[int, NDArray[np.float64], float]]:
    """Their integer tables as probabilities, the last of which is their escape's."""
    cdf_name, length_name, offset_name = _TABLES
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
        rows.append((int(first), probabilities[:-1], float(probabilities[-1])))
    return rows
