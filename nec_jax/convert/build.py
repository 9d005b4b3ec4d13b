"""The last step of every import: sizes, positions, normalisation, and the `NecParams`."""

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from coder import EmbeddingCodec, FileError, InputError, ScalarCodec, Tables
from nec_jax.convert.options import NORMALISATIONS, Imported, Options, Scale
from nec_jax.convert.positions import are_sincos, frames, resize
from nec_jax.convert.source import Checkpoint
from nec_jax.model_file import NecParams
from nec_jax.models import density
from nec_jax.models.architecture import VARIANTS, ModelConfig
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import Weights, unflatten_weights
from nec_jax.models.weight_tree import flatten_weights as flatten

_RGB = ("red", "green", "blue")
_RANGES = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "int16": (-32768.0, 32767.0)}
# For a decoder that does not exist yet.
_DECODERS = {v.width: v[-3:] for v in VARIANTS.values()}


def build(checkpoint: Checkpoint, imported: Imported, options: Options) -> NecParams:
    """Weights, configuration and, for NEC's own checkpoints, codec."""
    fields = dict(imported.config)
    channels = fields.pop("channels")
    if options.patch not in (None, fields["patch"]):
        raise InputError(
            f"--patch {options.patch}: the checkpoint's patches are {fields['patch']} pixels wide "
            "and cannot be another size: leave --patch out"
        )
    if imported.decoder is None and (options.pixels or options.decoder_heads):
        raise InputError("--pixels, --decoder-heads: the checkpoint has no decoder: leave them out")
    fields |= _contract(imported, options, channels)
    _choose_blocks(imported, fields, options)
    resized = _place_positions(checkpoint, imported, fields, options)
    fields["code_class_token"] = options.class_token and fields.get("class_token", True)
    if imported.decoder is None:
        default = (fields["width"] // 2 // 64 * 64 or 64, 8, fields["width"] // 2 // 64 or 1)
        sizes = _DECODERS.get(fields["width"], default)
        names = ("decoder_width", "decoder_depth", "decoder_heads")
        fields |= dict(zip(names, sizes, strict=True)) | {"decoder_target": "none"}
    config = ModelConfig(arch=_arch(fields), **fields)
    weights: Weights = {"encoder": imported.encoder, "bottleneck": _bottleneck(config, imported)}
    if imported.decoder is not None:
        weights["decoder"] = imported.decoder
    like = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    params = NecParams(unflatten_weights(flatten(weights), like), config)
    if imported.tables is not None:
        params = dataclasses.replace(params, codec=_codec(config, imported))
    facts = {
        "source": checkpoint.name,
        "kind": imported.kind,
        "left_out": imported.left_out,
        "positions_resized": resized,
    }
    return dataclasses.replace(
        params, provenance=json.dumps({"convert": facts}, sort_keys=True, separators=(",", ":"))
    )


def _contract(imported: Imported, options: Options, channels: int) -> dict[str, Any]:
    """Bands, dtype, range and normalisation."""
    bands = options.bands or imported.bands or (_RGB if channels == 3 else ())
    if len(bands) != channels:
        raise InputError(
            f"the checkpoint takes {channels} bands, {len(bands)} are named: pass "
            f"--bands with {channels} names, in the checkpoint's order"
        )
    if twice := [band for i, band in enumerate(bands) if band in bands[:i]]:
        raise InputError(f"--bands {' '.join(bands)}: {twice[0]} is there twice: name each band")
    if options.dtype not in _RANGES and options.dtype != "float32":
        raise InputError(f"--dtype {options.dtype}: choose {', '.join(_RANGES)} or float32")
    limit = float(np.finfo(np.float32).max)
    low, high = _RANGES.get(options.dtype, (-limit, limit))
    mean, std = _normalisation(imported, options, tuple(bands))
    if not all(low <= value <= high for value in mean):
        raise InputError(
            f"means {mean} lie outside of {options.dtype}, the images' dtype: pass --dtype"
        )
    return {
        "bands": tuple(bands),
        "dtype": options.dtype,
        "value_range": (low, high),
        "mean": mean,
        "std": std,
    }


def _normalisation(
    imported: Imported, options: Options, bands: tuple[str, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each band, in input units."""
    if bool(options.mean) != bool(options.std) or (options.mean and options.normalisation):
        raise InputError("pass --mean and --std together, or --normalisation alone")
    if options.mean:
        return tuple(options.mean), tuple(options.std)
    told, known = (
        _scale(found, bands) for found in (options.normalisation, imported.normalisation)
    )
    if told and known and not np.allclose(told[:2], known[:2], rtol=1e-3):
        raise InputError(
            f"--normalisation {options.normalisation} is not the checkpoint's own, which has means "
            f"of {', '.join(f'{v:.4g}' for v in known.mean)}: leave it out, or pass --mean and "
            "--std if you mean it"
        )
    found = known or told
    if found is None:
        raise FileError(
            "the checkpoint does not say how its images were normalised: pass --normalisation "
            "imagenet (MAE, DINO, DeiT), inception (timm's augreg), fmow (SatMAE of RGB) or clip, "
            "or --mean and --std"
        )
    if found.dtype not in (None, options.dtype):
        raise InputError(
            f"the normalisation is for images of {found.dtype}, not {options.dtype}: pass --mean "
            f"and --std in units of {options.dtype}"
        )
    return found.mean, found.std


def _scale(found: str | Scale | None, bands: tuple[str, ...]) -> Scale | None:
    """A normalisation by its values; named ones are for red, green and blue, in any order."""
    if found is None or isinstance(found, Scale):
        return found
    if sorted(bands) != sorted(_RGB):
        raise InputError(
            f"normalisation {found} is for red, green and blue, not {', '.join(bands)}: pass "
            "--mean and --std"
        )
    places = [_RGB.index(band) for band in bands]
    mean, std = (tuple(255.0 * values[i] for i in places) for values in NORMALISATIONS[found])
    return Scale(mean, std, "uint8")


def _choose_blocks(imported: Imported, fields: dict[str, Any], options: Options) -> None:
    """Take the embedding after the chosen blocks; drop what comes after them."""
    depth, blocks = fields["depth"], tuple(options.blocks)
    if not blocks or blocks == (depth,):
        return
    rising = list(blocks) == sorted(set(blocks))
    if not rising or blocks[0] < 1 or blocks[-1] > depth:
        given = " ".join(map(str, blocks))
        raise InputError(f"--blocks {given}: give rising numbers from 1 to {depth}")
    if imported.tables is not None:
        raise InputError("--blocks: the bottleneck of a NEC model belongs to its last block")
    for i in range(blocks[-1], depth):
        del imported.encoder[f"block_{i}"]
    imported.left_out += [f"encoder block {i + 1}" for i in range(blocks[-1], depth)]
    fields["depth"] = blocks[-1]
    fields["embedding_blocks"] = blocks if len(blocks) > 1 else ()
    if imported.decoder is not None:
        imported.decoder = imported.decoder_positions = None
        imported.left_out.append("the decoder, which takes the last block's output")
        fields.pop("decoder_target")


def _place_positions(
    checkpoint: Checkpoint, imported: Imported, fields: dict[str, Any], options: Options
) -> str | None:
    """Recognise fixed positions, or bring learned ones to the grid; return how, if resized."""
    patch = fields["patch"]
    if imported.decoder_positions is not None:
        counts = len(imported.positions), len(imported.decoder_positions) - 1
        if counts[0] != counts[1]:
            raise FileError(
                f"the encoder has {counts[0]} positions and the decoder {counts[1]}: the tensors "
                "are of different models"
            )
    if (count := frames(imported.positions)) > 1:
        side = math.isqrt(len(imported.positions) // count)
        raise FileError(
            f"positions of {count} frames of {side} x {side} patches: only single images are "
            "supported"
        )
    own = math.isqrt(len(imported.positions)) * patch
    if options.resize_positions and options.image_size is None:
        raise InputError("--resize-positions: pass --image-size, the side to resize them to")
    size = next(s for s in (options.image_size, checkpoint.image_size, own) if s is not None)
    if size < patch or size % patch:
        raise InputError(f"--image-size {size} is not a positive multiple of the patch {patch}")
    if size not in (own, checkpoint.image_size) and not options.resize_positions:
        raise InputError(
            f"the checkpoint has positions for images of {own} x {own}, not {size} x {size}: pass "
            "--resize-positions to resize them as its project does, or leave --image-size out"
        )
    fields["image_size"], side = size, size // patch
    how, how_decoder = imported.resizing, imported.decoder_resizing
    if size != own or not are_sincos(imported.positions):
        fields["positions"] = "learned"
        grid = imported.positions
        imported.encoder["positions"] = grid if size == own else resize(grid, side, how)
    if imported.decoder is not None and imported.decoder_positions is not None:
        first, grid = imported.decoder_positions[:1], imported.decoder_positions[1:]
        if size != own or first.any() or not are_sincos(grid):
            fields["decoder_positions"] = "learned"
            grid = grid if size == own else resize(grid, side, how_decoder)
            both = [first, grid] if options.class_token else [grid]
            imported.decoder["stem"]["positions"] = np.concatenate(both)
    return None if size == own else f"{own // patch} to {side}, {how}"


def _bottleneck(config: ModelConfig, imported: Imported) -> Weights:
    if imported.bottleneck is not None:
        return imported.bottleneck
    channels = config.embedding_width
    return {
        "log_gain": np.zeros(channels, np.float32),
        "density": density.init_density(jax.random.key(0), channels),
    }


def _codec(config: ModelConfig, imported: Imported) -> EmbeddingCodec:
    """The codec of the authors' tables, one per channel for all tokens."""
    assert imported.tables is not None
    medians, rows = imported.tables
    channels = np.arange(config.width, dtype=np.int32)
    return ScalarCodec(
        offsets=medians,
        steps=np.ones(config.width, np.float32),
        tables=Tables.from_pmfs(rows),
        grid_layout=channels,
        class_layout=channels if config.code_class_token else None,
    )


def _arch(fields: dict[str, Any]) -> str:
    """The name of the architecture, if it has one: `vit-b` for any ViT of its sizes."""
    for name, v in VARIANTS.items():
        if (v.width, v.depth, v.heads) == (fields["width"], fields["depth"], fields["heads"]):
            return name
    return f"vit-{fields['width']}x{fields['depth']}"
