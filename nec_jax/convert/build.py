"""The last step of every import: apply the user's options, and make the `NecParams`."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from coder import EmbeddingCodec, FileError, InputError, ScalarCodec, Tables
from coder.format.container import canonical_json
from nec_jax.convert.positions import are_sincos, frames, resize
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import Imported, Scale
from nec_jax.model_file import NecParams
from nec_jax.models import density
from nec_jax.models.architecture import VARIANTS, ModelConfig
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import Weights, flatten_weights, unflatten_weights

# Mean and deviation of the bands, for pixels from 0 to 1.
NORMALISATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "fmow": (
        (0.4182007312774658, 0.4214799106121063, 0.3991275727748871),
        (0.28774282336235046, 0.27541765570640564, 0.2764017581939697),
    ),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
# Heads of the published ViTs by (width, depth). Smaller ones differ: a ViT-S has 6 (timm, DINO) or
# 12 (MoCo v3).
HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_DECODER_HEADS = {512: 16}
_RGB = ("red", "green", "blue")
_FLOAT = float(np.finfo(np.float32).max)
_RANGES = {
    "uint8": (0.0, 255.0),
    "uint16": (0.0, 65535.0),
    "int16": (-32768.0, 32767.0),
    "float32": (-_FLOAT, _FLOAT),
}
# Settings that a checkpoint may leave unsaid: their names, and how to know them.
_SETTINGS = {
    "activation": (
        "activation",
        "quick-gelu for OpenAI's CLIP; SigLIP was trained with gelu-tanh, but timm runs its base "
        "and large models with gelu; else gelu",
    ),
    "heads": ("number of heads", "see its model card"),
    "decoder_heads": ("number of decoder heads", "MAE's: 16"),
    "pixels": (
        "kind of pixels (norm_pix_loss)",
        "plain, or normalised if it was trained with norm_pix_loss: the decoder is wrong otherwise",
    ),
}
# Sizes of a decoder that does not exist yet, by the width of the encoder.
_DECODERS = {v.width: v[-3:] for v in VARIANTS.values()}


@dataclass(frozen=True)
class Options:
    """The arguments of `nec_jax.convert_checkpoint`."""

    image_size: int | None = None
    resize_positions: bool = False
    patch: int | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    activation: str | None = None
    normalisation: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bands: tuple[str, ...] = ()
    dtype: str = "uint8"
    pixels: str | None = None
    blocks: tuple[int, ...] = ()
    class_token: bool = True


def build(checkpoint: Checkpoint, imported: Imported, options: Options) -> NecParams:
    """Weights, configuration and, for NEC's own checkpoints, codec."""
    fields = dict(imported.config)
    channels = fields.pop("channels")
    if options.patch not in (None, fields["patch"]):
        raise InputError(
            f"--patch {options.patch}: the checkpoint's patches are {fields['patch']} pixels wide "
            "and cannot be another size: leave --patch out"
        )
    fields |= _complete(imported, options)
    fields |= _contract(imported, options, channels)
    _choose_blocks(imported, fields, options)
    resized = _place_positions(checkpoint, imported, fields, options)
    fields["code_class_token"] = options.class_token and fields.get("class_token", True)
    if imported.decoder is None:
        width, heads = fields["width"], fields["width"] // 2 // 64 or 1
        sizes = _DECODERS.get(width, (64 * heads, 8, heads))
        names = ("decoder_width", "decoder_depth", "decoder_heads")
        fields |= dict(zip(names, sizes, strict=True)) | {"decoder_target": "none"}
    size = fields["width"], fields["depth"], fields["heads"]
    arch = next((name for name, v in VARIANTS.items() if v[1:4] == size), None)
    config = ModelConfig(arch=arch or f"vit-{size[0]}x{size[1]}", **fields)
    bottleneck = imported.bottleneck or {
        "log_gain": np.zeros(config.embedding_width, np.float32),
        "density": density.init_density(jax.random.key(0), config.embedding_width),
    }
    weights: Weights = {"encoder": imported.encoder, "bottleneck": bottleneck}
    if imported.decoder is not None:
        weights["decoder"] = imported.decoder
    like = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    facts = {
        "source": checkpoint.name,
        "kind": imported.kind,
        "left_out": imported.left_out,
        "positions_resized": resized,
    }
    return NecParams(
        unflatten_weights(flatten_weights(weights), like),
        config,
        _codec(config, imported),
        canonical_json({"convert": facts}),
    )


def _complete(imported: Imported, options: Options) -> dict[str, Any]:
    """Settings that the checkpoint says or, where it says nothing, the user."""
    fields: dict[str, Any] = {
        "epsilon": imported.epsilon,
        "activation": _choose(options, "activation", imported.activation),
        "heads": _choose(options, "heads", imported.heads),
    }
    if imported.decoder is None:
        if options.pixels or options.decoder_heads:
            raise InputError("--pixels, --decoder-heads: it has no decoder: leave them out")
        return fields
    if fields["activation"] != "gelu":
        raise FileError(f"a decoder with {fields['activation']}: only exact GELU is supported")
    heads, normalised = imported.decoder_heads, imported.normalised_pixels
    if heads is None and options.decoder_heads is None:
        heads = _DECODER_HEADS.get(imported.config["decoder_width"])
    if normalised is not None and not isinstance(normalised, bool):
        raise FileError(f"norm_pix_loss is {normalised!r}, neither true nor false")
    found = None if normalised is None else "normalised" if normalised else "plain"
    pixels = _choose(options, "pixels", found)
    if pixels not in ("plain", "normalised"):
        raise InputError(f"--pixels {pixels}: choose plain or normalised")
    return fields | {
        "decoder_heads": _choose(options, "decoder_heads", heads),
        "decoder_target": "pixels" if pixels == "plain" else "normalised-pixels",
    }


def _choose(options: Options, option: str, found: Any) -> Any:
    """A setting from the checkpoint or from the user, who may not contradict it."""
    given, (name, remedy) = getattr(options, option), _SETTINGS[option]
    flag = f"--{option.replace('_', '-')}"
    if given is not None and found is not None and given != found:
        raise InputError(f"{flag} says {given}, the checkpoint's {name} is {found}: leave it out")
    value = found if given is None else given
    if value is None:
        raise FileError(f"the checkpoint does not say its {name}: pass {flag} ({remedy})")
    return value


def _contract(imported: Imported, options: Options, channels: int) -> dict[str, Any]:
    """Bands, dtype, range and normalisation."""
    bands = options.bands or imported.bands or (_RGB if channels == 3 else ())
    if len(bands) != channels:
        raise InputError(
            f"it takes {channels} bands, not {len(bands)}: name them all in its order with --bands"
        )
    if twice := [band for i, band in enumerate(bands) if band in bands[:i]]:
        raise InputError(f"--bands {' '.join(bands)}: {twice[0]} is there twice: name each band")
    if options.dtype not in _RANGES:
        raise InputError(f"--dtype {options.dtype}: choose from {', '.join(_RANGES)}")
    low, high = _RANGES[options.dtype]
    mean, std = _normalisation(imported, options, tuple(bands))
    if not all(low <= value <= high for value in mean):
        raise InputError(f"means {mean} lie outside of the range of {options.dtype}: pass --dtype")
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
            f"--normalisation {options.normalisation} is not the checkpoint's own, whose means are "
            f"{', '.join(f'{v:.4g}' for v in known.mean)}: leave it out, or pass --mean and --std"
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
            f"its normalisation is for {found.dtype}: pass --mean and --std for {options.dtype}"
        )
    return found.mean, found.std


def _scale(found: str | Scale | None, bands: tuple[str, ...]) -> Scale | None:
    """A normalisation by its values; named ones are for red, green and blue, in any order."""
    if found is None or isinstance(found, Scale):
        return found
    if sorted(bands) != sorted(_RGB):
        raise InputError(
            f"{found} is for red, green and blue, not {', '.join(bands)}: pass --mean and --std"
        )
    if found not in NORMALISATIONS:
        raise InputError(f"--normalisation {found}: choose from {', '.join(NORMALISATIONS)}")
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
        del fields["decoder_target"]


def _place_positions(
    checkpoint: Checkpoint, imported: Imported, fields: dict[str, Any], options: Options
) -> str | None:
    """Recognise fixed positions, or bring learned ones to the grid; return how, if resized."""
    patch = fields["patch"]
    if (count := frames(imported.positions)) > 1:
        side = math.isqrt(len(imported.positions) // count)
        raise FileError(
            f"positions of {count} frames of {side} x {side} patches: only one frame is supported"
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


def _codec(config: ModelConfig, imported: Imported) -> EmbeddingCodec | None:
    """The codec of the authors' tables, one per channel for all tokens; None without them."""
    if imported.tables is None:
        return None
    medians, rows = imported.tables
    channels = np.arange(config.width, dtype=np.int32)
    return ScalarCodec(
        offsets=medians,
        steps=np.ones(config.width, np.float32),
        tables=Tables.from_pmfs(rows),
        grid_layout=channels,
        class_layout=channels if config.code_class_token else None,
    )
