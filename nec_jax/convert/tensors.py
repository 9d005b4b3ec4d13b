"""A checkpoint's tensors, taken one by one, and the ViT that is made of them.

Every importer says by which names its project calls the layers; what they hold is the same. No
tensor is forgotten or invented.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder import FileError
from nec_jax.convert.positions import Resizing, grid_side
from nec_jax.models.weight_tree import Weights

# Variants that are not the ViT of `nec_jax.models.vit`, by a tensor that shows it.
_VARIANTS = (
    (r"(^|\.)patch_embed\.\d+\.", "grouped channels (SatMAE), a patch embedding a group of bands"),
    (r"channel_embed|channel_cls_embed", "grouped channels (SatMAE)"),
    (r"temporal_embed|temporal_encoding|temp_embed", "an embedding of time"),
    (r"location_embed|loc_embed", "an embedding of place"),
    (r"\.mlp\.(w12|w3|weights_in)\.", "a SwiGLU in its MLPs (DINOv2 giant)"),
    (r"rel_pos|relative_position", "relative positions"),
    (r"sampling_offsets|sampling_angles", "rotated varied-size windows (RVSA)"),
    (r"rope|periods", "rotary positions"),
    (r"(^|\.)fc_norm\.", "a norm of the pooled token instead of one of all tokens (fine-tuned)"),
    (r"\.[qk]_norm\.", "norms of queries and keys"),
    (r"(^|\.)(h_a|h_s|gaussian_conditional|hyper\w*)\.", "a hyperprior"),
)


class Tensors(dict[str, NDArray]):
    """Hands out tensors as float32 and records what does not fit.

    A tensor that is missing or mis-shaped is replaced by zeros for now: `finish` raises an error
    that names all of them.
    """

    def __init__(self, tensors: Mapping[str, NDArray]):
        super().__init__(tensors)
        self._taken: set[str] = set()
        self._problems: list[str] = []
        self.left_out: list[str] = []
        for pattern, what in _VARIANTS:
            found = next((n for n in sorted(self) if re.search(pattern, n)), None)
            if found is not None:
                raise FileError(f"{found}: this model has {what}, which is not a plain ViT's")

    def shape(self, name: str, *axes: int) -> tuple[int, ...]:
        """The shape of a tensor that the architecture is read from.

        Raises:
          FileError: it is missing, empty, or has another number of axes than any of `axes`.
        """
        if name not in self:
            raise FileError(f"missing {name}: is the checkpoint whole?")
        shape = self[name].shape
        if len(shape) not in axes or 0 in shape:
            wanted = " or ".join(map(str, axes))
            raise FileError(f"{name} has shape {list(shape)}, not {wanted} axes, none empty")
        return shape

    def take(self, name: str, *shape: int, kind: str = "f") -> NDArray[np.float32]:
        """A tensor of exactly this shape, as float32; `kind` is the kind of its NumPy dtype.

        Leading axes of length one are dropped: projects differ in them.
        """
        self._taken.add(name)
        found = self.get(name)
        if found is None:
            self._problems.append(f"missing {name}")
        elif found.shape[-len(shape) :] != shape or set(found.shape[: -len(shape)]) - {1}:
            self._problems.append(f"{name} has shape {list(found.shape)}, not {list(shape)}")
        elif found.dtype.kind != kind:
            # Quantised weights mean nothing without their scales.
            self._problems.append(f"{name} holds {found.dtype} numbers")
        elif not np.isfinite(found).all():
            self._problems.append(f"{name} holds NaN or infinity")
        else:
            return found.astype(np.float32).reshape(shape)
        return np.zeros(shape, np.float32)

    def leave_out(self, pattern: str) -> None:
        """Leave out tensors that are known and not needed; the report names them."""
        # Sorted: safetensors gives tensors in another order each time, and the result has a digest.
        left = sorted(self.keys() - self._taken)
        found = [n for n in left if re.fullmatch(pattern, n)]
        self._taken |= set(found)
        self.left_out += found

    def finish(self) -> None:
        """Raise FileError that names every missing, mis-shaped or unexpected tensor."""
        unexpected = sorted(self.keys() - self._taken)
        problems = self._problems + [f"unexpected {name}" for name in unexpected]
        if problems:
            raise FileError(
                f"{len(problems)} tensors do not fit the architecture, so the model would be "
                f"another one: {'; '.join(problems)}"
            )


class BlockNames(NamedTuple):
    """Names of one block's layers; `qkv` is one name, or those of queries, keys and values."""

    norm1: str
    qkv: tuple[str, ...]
    proj: str
    norm2: str
    fc1: str
    fc2: str
    scales: tuple[str, ...] = ()  # layer scale after attention and MLP


class Names(NamedTuple):
    """Names of an encoder's layers; those of `block` stand after `blocks` and a number."""

    patches: str
    class_token: str
    positions: str
    norm: str
    blocks: str
    block: BlockNames
    pre_norm: str = ""
    registers: str = ""


class Scale(NamedTuple):
    """Normalisation of the bands: mean and deviation, in units of images of `dtype`.

    A dtype of None means that they are in the units of the data, whatever its dtype.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: str | None


@dataclass
class Imported:
    """A checkpoint in this project's names and shapes, and what it says of itself.

    Attributes:
      config: the fields of `ModelConfig` that the tensors decide.
      encoder, decoder: weights without positions; there may be no decoder.
      positions: float32 [T, D] of the encoder's grid.
      left_out: tensors of the checkpoint that the model does not need.
      kind: the kind of checkpoint, for people.
      resizing, decoder_resizing: how its project resizes positions.
      epsilon: of every LayerNorm.
      heads, decoder_heads, activation: None if unknown.
      normalised_pixels: whether its decoder predicts normalised pixels; None if unknown.
      normalisation: name in `NORMALISATIONS`, or the values; None if unknown.
      bands: names of the input bands; () if unknown.
      decoder_positions: float32 [1 + T, D], with the class token's.
      bottleneck: the density of a NEC model.
      tables: a NEC model's own tables: (offsets, [(smallest symbol, probabilities, escape's)]).
    """

    config: dict[str, Any]
    encoder: Weights
    positions: NDArray[np.float32]
    left_out: list[str]
    kind: str = ""
    resizing: Resizing = "bicubic"
    epsilon: float = 1e-6
    heads: int | None = None
    activation: str | None = None
    normalisation: str | Scale | None = None
    bands: tuple[str, ...] = ()
    decoder: Weights | None = None
    decoder_positions: NDArray[np.float32] | None = None
    decoder_resizing: Resizing = "bicubic"
    decoder_heads: int | None = None
    normalised_pixels: bool | None = None
    bottleneck: Weights | None = None
    tables: tuple[NDArray[np.float32], list[tuple[int, NDArray[np.float64], float]]] | None = None


def take_encoder(
    tensors: Tensors,
    prefix: str,
    names: Names,
    *,
    depth: int | None = None,
    biased: bool = True,
    class_token: bool = True,
    registers: int = 0,
    placed: int = 1,
) -> Imported:
    """Take an encoder whose `names` stand after a prefix.

    Args:
      tensors: those of the checkpoint; the caller finishes them.
      prefix: what stands before the names.
      names: those of the project; with a `pre_norm` or `registers` if the model has these.
      depth: number of blocks by the checkpoint's configuration.
      biased: whether queries, keys and values have a bias.
      class_token: whether there is a class token.
      registers: number of register tokens.
      placed: how many tokens before the grid have a position: none, the class token, or the
        registers as well.
    """
    kernel, patch, channels = _patch_kernel(tensors, f"{prefix}{names.patches}.weight")
    width, blocks = kernel.shape[1], prefix + names.blocks
    depth = count_blocks(tensors, blocks, depth)
    fc1 = f"{blocks}0.{names.block.fc1}"
    hidden = tensors.shape(f"{fc1}.weight", 2)[0]
    count = tensors.shape(prefix + names.positions, 2, 3)[-2]
    positions = tensors.take(prefix + names.positions, count, width)
    before, grid = positions[:placed], positions[placed:]
    grid_side(len(grid), prefix + names.positions)
    weights = {
        "patch_embed": {"kernel": kernel},
        "norm": _norm(tensors, prefix + names.norm, width),
    }
    if names.pre_norm:  # CLIP, whose patch embedding has no bias
        weights["pre_norm"] = _norm(tensors, prefix + names.pre_norm, width)
    else:
        weights["patch_embed"]["bias"] = tensors.take(f"{prefix}{names.patches}.bias", width)
    # The positions of these tokens are the same for any grid: they are added here.
    if class_token:
        weights["class_token"] = tensors.take(prefix + names.class_token, width)
        if placed:
            weights["class_token"] += before[0]
    if registers:
        weights["registers"] = tensors.take(prefix + names.registers, registers, width)
        if placed > 1:
            weights["registers"] += before[1:]
    for i in range(depth):
        where = f"{blocks}{i}."
        weights[f"block_{i}"] = _block(tensors, where, names.block, width, hidden, biased)
    config = {
        "patch": patch,
        "width": width,
        "depth": depth,
        "mlp_ratio": _mlp_ratio(hidden, width, fc1),
        "channels": channels,
        "patch_bias": not names.pre_norm,
        "pre_norm": bool(names.pre_norm),
        "layer_scale": bool(names.block.scales),
        "class_token": class_token,
        "registers": registers,
    }
    return Imported(config, weights, grid, tensors.left_out)


def add_decoder(
    imported: Imported,
    tensors: Tensors,
    prefix: str,
    blocks: str,
    names: BlockNames,
    depth: int | None,
) -> None:
    """Take MAE's decoder of pixels, which has the same names everywhere but for its `blocks`."""
    c = imported.config
    width = tensors.shape(f"{prefix}decoder_embed.weight", 2)[0]
    fc1 = f"{blocks}0.{names.fc1}"
    hidden = tensors.shape(f"{fc1}.weight", 2)[0]
    if _mlp_ratio(hidden, width, fc1) != c["mlp_ratio"]:
        raise FileError("encoder and decoder have MLPs of different ratios: not supported")
    depth = count_blocks(tensors, blocks, depth)
    count = tensors.shape(f"{prefix}decoder_pos_embed", 3)[1]
    if count - 1 != len(imported.positions):
        raise FileError(
            f"the encoder has {len(imported.positions)} positions and the decoder {count - 1}: the "
            "tensors are of different models"
        )
    pixels = c["patch"] ** 2 * c["channels"]
    imported.decoder_positions = tensors.take(f"{prefix}decoder_pos_embed", count, width)
    imported.decoder = {
        "stem": {
            "embed": _linear(tensors, f"{prefix}decoder_embed", c["width"], width),
            "mask_token": tensors.take(f"{prefix}mask_token", width),
        },
        "norm": _norm(tensors, f"{prefix}decoder_norm", width),
        "pred": _linear(tensors, f"{prefix}decoder_pred", width, pixels),
    }
    for i in range(depth):
        where = f"{blocks}{i}."
        imported.decoder[f"block_{i}"] = _block(tensors, where, names, width, hidden)
    c |= {"decoder_width": width, "decoder_depth": depth}


def prefix_of(names: Iterable[str], ending: str) -> str | None:
    """What stands before `ending` in the one name that ends so; None if there is none or more."""
    found = [name.removesuffix(ending) for name in names if name.endswith(ending)]
    return found[0] if len(found) == 1 else None


def _linear(tensors: Tensors, name: str, inputs: int, outputs: int) -> Weights:
    """A `torch.nn.Linear`: `name.weight` [outputs, inputs] and `name.bias`."""
    kernel = tensors.take(f"{name}.weight", outputs, inputs).T
    return {"kernel": np.ascontiguousarray(kernel), "bias": tensors.take(f"{name}.bias", outputs)}


def _norm(tensors: Tensors, name: str, width: int) -> Weights:
    """A `torch.nn.LayerNorm`."""
    return {
        "scale": tensors.take(f"{name}.weight", width),
        "bias": tensors.take(f"{name}.bias", width),
    }


def _block(
    tensors: Tensors, prefix: str, names: BlockNames, width: int, hidden: int, biased: bool = True
) -> Weights:
    """One transformer block as `nec_jax.models.vit.Block` has it.

    If its queries, keys and values are not `biased` (qkv_bias=False), their bias is set to zero,
    which is the same function.
    """
    qkv = [prefix + name for name in names.qkv]
    rows = 3 * width // len(qkv)
    parts = [tensors.take(_part(name, "weight"), rows, width) for name in qkv]
    zero = np.zeros(rows, np.float32)
    biases = [tensors.take(_part(name, "bias"), rows) if biased else zero for name in qkv]
    weights = {
        "norm1": _norm(tensors, prefix + names.norm1, width),
        "attn": {
            "qkv": {
                "kernel": np.ascontiguousarray(np.concatenate(parts).T),
                "bias": np.concatenate(biases),
            },
            "proj": _linear(tensors, prefix + names.proj, width, width),
        },
        "norm2": _norm(tensors, prefix + names.norm2, width),
        "mlp": {
            "fc1": _linear(tensors, prefix + names.fc1, width, hidden),
            "fc2": _linear(tensors, prefix + names.fc2, hidden, width),
        },
    }
    for i, name in enumerate(names.scales):
        weights[f"scale{i + 1}"] = tensors.take(prefix + name, width)
    return weights


def _part(name: str, part: str) -> str:
    # OpenAI's CLIP has in_proj_weight, not in_proj.weight.
    return f"{name}{part}" if name.endswith("_") else f"{name}.{part}"


def count_blocks(names: Iterable[str], prefix: str, told: int | None = None) -> int:
    """The number of blocks `prefix0.`, `prefix1.` ... without a gap; 0 for none.

    Raises:
      FileError: not as many as `told` by the checkpoint's configuration.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(m[1]) for name in names if (m := pattern.match(name))}
    count = next(i for i in range(len(found) + 1) if i not in found)
    if told is not None and told != count:
        raise FileError(
            f"{count} blocks {prefix}0. and so on, but config.json says {told}: missing "
            f"{prefix}{count}."
            if told > count
            else f"unexpected {prefix}{told}.: config.json says that there are {told} blocks"
        )
    return count


def _patch_kernel(tensors: Tensors, name: str) -> tuple[NDArray[np.float32], int, int]:
    """A patch embedding's convolution as a matrix: kernel [p * p * C, D], the patch p and C.

    A convolution over one frame of time (Prithvi) is one over its image.

    Raises:
      FileError: patches that are not square, or several frames.
    """
    shape = tensors.shape(name, 4, 5)
    if len(shape) == 5 and shape[2] != 1:
        raise FileError(f"{name} spans {shape[2]} frames: only single images are supported")
    width, channels, height, side = shape[0], shape[1], shape[-2], shape[-1]
    if height != side:
        raise FileError(f"{name} has patches of {height} x {side}: only square ones are supported")
    kernel = tensors.take(name, *shape).reshape(width, channels, side, side)
    matrix = kernel.transpose(2, 3, 1, 0).reshape(side * side * channels, width)
    return np.ascontiguousarray(matrix), side, channels


def _mlp_ratio(hidden: int, width: int, name: str) -> int:
    """Hidden width over width, which must be a whole number."""
    if hidden % width:
        raise FileError(f"{name} is {hidden} wide, no multiple of {width}: not supported")
    return hidden // width
