"""The last step of every import: sizes, positions, normalisation, and a `NecParams` of it all."""

import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from coder import EmbeddingCodec, FileError, InputError, Tables
from nec_jax import density
from nec_jax.config import VARIANTS, ModelConfig
from nec_jax.convert.options import NORMALISATIONS, Imported, Options
from nec_jax.convert.positions import are_sincos, resize
from nec_jax.convert.source import Checkpoint
from nec_jax.nec import Weights, init_weights
from nec_jax.params import NecParams, unflatten_weights
from nec_jax.params import flatten_weights as flatten

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
    bands = options.bands or (("red", "green", "blue") if channels == 3 else ())
    if len(bands) != channels:
        raise InputError(
            f"the checkpoint takes {channels} bands, {len(bands)} are named: pass --bands with "
            f"{channels} names, in the checkpoint's order"
        )
    if options.dtype not in _RANGES and options.dtype != "float32":
        raise InputError(f"--dtype {options.dtype}: choose {', '.join(_RANGES)} or float32")
    limit = float(np.finfo(np.float32).max)
    contract = {
        "bands": tuple(bands),
        "dtype": options.dtype,
        "value_range": _RANGES.get(options.dtype, (-limit, limit)),
    }
    if bool(options.mean) != bool(options.std) or (options.mean and options.normalisation):
        raise InputError("pass --mean and --std together, or --normalisation alone")
    if options.mean:
        return contract | {"mean": tuple(options.mean), "std": tuple(options.std)}
    found = options.normalisation or imported.normalisation
    if found is None:
        raise FileError(
            "the checkpoint does not say how its images were normalised: pass --normalisation "
            "imagenet (MAE, DINO, DeiT), inception (timm's augreg), fmow (SatMAE of RGB) or clip, "
            "or --mean and --std"
        )
    if isinstance(found, tuple):
        return contract | {"mean": found[0], "std": found[1]}
    if channels != 3 or options.dtype != "uint8":
        raise InputError(
            f"normalisation {found} is for uint8 red, green and blue: pass --mean and --std for "
            f"{channels} bands of {options.dtype}, in their units"
        )
    mean, std = (tuple(255.0 * v for v in values) for values in NORMALISATIONS[found])
    return contract | {"mean": mean, "std": std}


def _choose_blocks(imported: Imported, fields: dict[str, Any], options: Options) -> None:
    """Take the embedding at the chosen blocks: what comes after them goes."""
    depth, blocks = fields["depth"], tuple(options.blocks)
    if not blocks or blocks == (depth,):
        return
    rising = list(blocks) == sorted(set(blocks))
    if not rising or blocks[0] < 1 or blocks[-1] > depth:
        raise InputError(f"--blocks {blocks}: give rising numbers from 1 to {depth}")
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
    """Fixed positions are recognised, learned ones brought to the grid; says how, if resized."""
    patch = fields["patch"]
    if imported.decoder_positions is not None:
        counts = len(imported.positions), len(imported.decoder_positions) - 1
        if counts[0] != counts[1]:
            raise FileError(
                f"the encoder has {counts[0]} positions and the decoder {counts[1]}: the tensors "
                "are of different models"
            )
    own = math.isqrt(len(imported.positions)) * patch
    size = options.image_size or checkpoint.image_size or own
    if size < patch or size % patch:
        raise InputError(f"--image-size {size} is not a multiple of the patch {patch}")
    fields["image_size"], side = size, size // patch
    resized = None

    def placed(positions: np.ndarray) -> np.ndarray:
        nonlocal resized
        if size == own:
            return positions
        if not options.resize_positions and checkpoint.image_size != size:
            raise InputError(
                f"the checkpoint has learned positions for images of {own} x {own}, not {size} x "
                f"{size}: pass --resize-positions to resize them as its project does, or leave "
                "--image-size out"
            )
        resized = f"{own // patch} to {side}, {imported.resizing}"
        return resize(positions, side, imported.resizing)

    if not are_sincos(imported.positions):
        fields["positions"] = "learned"
        imported.encoder["positions"] = placed(imported.positions)
    if imported.decoder is not None and imported.decoder_positions is not None:
        first, grid = imported.decoder_positions[:1], imported.decoder_positions[1:]
        if first.any() or not are_sincos(grid):
            fields["decoder_positions"] = "learned"
            both = [first, placed(grid)] if options.class_token else [placed(grid)]
            imported.decoder["stem"]["positions"] = np.concatenate(both)
    return resized


def _bottleneck(config: ModelConfig, imported: Imported) -> Weights:
    if imported.bottleneck is not None:
        return imported.bottleneck
    channels = config.embedding_width
    return {
        "log_gain": np.zeros(channels, np.float32),
        "density": density.init_density(jax.random.key(0), channels),
    }


def _codec(config: ModelConfig, imported: Imported) -> EmbeddingCodec:
    """The authors' tables, one a channel for all tokens."""
    assert imported.tables is not None
    medians, rows = imported.tables
    channels = np.arange(config.width, dtype=np.int32)
    return EmbeddingCodec(
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
