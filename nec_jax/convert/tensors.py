"""A checkpoint's tensors, taken one by one, so that none is forgotten or invented."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder import FileError
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


class Tensors:
    """Hands out tensors as float32 and records what does not fit.

    A tensor that is missing or mis-shaped is replaced by zeros for now: `finish` raises an error
    that names all of them.
    """

    def __init__(self, tensors: Mapping[str, NDArray]):
        self._tensors = dict(tensors)
        self._taken: set[str] = set()
        self._problems: list[str] = []
        self.left_out: list[str] = []
        for pattern, what in _VARIANTS:
            found = next((n for n in sorted(self._tensors) if re.search(pattern, n)), None)
            if found is not None:
                raise FileError(f"{found}: this model has {what}, which is not a plain ViT's")

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def any_ends_with(self, endings: tuple[str, ...]) -> bool:
        """Whether any tensor's name ends in one of `endings`."""
        return any(name.endswith(endings) for name in self._tensors)

    def raw(self, name: str) -> NDArray:
        """A tensor as it is."""
        return self._tensors[name]

    def shape(self, name: str, *axes: int) -> tuple[int, ...]:
        """The shape of a tensor that the architecture is read from.

        Raises:
          FileError: it is missing, or has another number of axes than any of `axes`.
        """
        if name not in self._tensors:
            raise FileError(f"missing {name}: is the checkpoint whole?")
        shape = self._tensors[name].shape
        if len(shape) not in axes:
            raise FileError(f"{name} has shape {list(shape)}: {axes[0]} axes were expected")
        return shape

    def take(self, name: str, *shape: int, kind: str = "f") -> NDArray[np.float32]:
        """A tensor of exactly this shape, as float32; `kind` is the kind of its NumPy dtype."""
        self._taken.add(name)
        found = self._tensors.get(name)
        if found is None:
            self._problems.append(f"missing {name}")
        elif found.shape != shape:
            self._problems.append(f"{name} has shape {list(found.shape)}, not {list(shape)}")
        elif found.dtype.kind != kind:
            # Quantised weights mean nothing without their scales.
            self._problems.append(f"{name} holds {found.dtype} numbers")
        elif not np.isfinite(found).all():
            self._problems.append(f"{name} holds NaN or infinity")
        else:
            return found.astype(np.float32)
        return np.zeros(shape, np.float32)

    def leave_out(self, pattern: str) -> None:
        """Leave out tensors that are known and not needed; the report names them."""
        # Sorted: safetensors gives tensors in another order each time, and the result has a digest.
        left = sorted(self._tensors.keys() - self._taken)
        found = [n for n in left if re.fullmatch(pattern, n)]
        self._taken |= set(found)
        self.left_out += found

    def finish(self) -> None:
        """Raise FileError that names every missing, mis-shaped or unexpected tensor."""
        unexpected = sorted(self._tensors.keys() - self._taken)
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
    scales: tuple[str, str] | None = None  # layer scale after attention and MLP


def under(prefix: str, names: BlockNames) -> BlockNames:
    """The same names after a prefix."""
    return BlockNames(
        prefix + names.norm1,
        tuple(prefix + n for n in names.qkv),
        prefix + names.proj,
        prefix + names.norm2,
        prefix + names.fc1,
        prefix + names.fc2,
        names.scales and (prefix + names.scales[0], prefix + names.scales[1]),
    )


def linear(tensors: Tensors, name: str, inputs: int, outputs: int) -> Weights:
    """A `torch.nn.Linear`: `name.weight` [outputs, inputs] and `name.bias`."""
    kernel = tensors.take(_part(name, "weight"), outputs, inputs).T
    return {"kernel": np.ascontiguousarray(kernel), "bias": tensors.take(f"{name}.bias", outputs)}


def norm(tensors: Tensors, name: str, width: int) -> Weights:
    """A `torch.nn.LayerNorm`."""
    return {
        "scale": tensors.take(f"{name}.weight", width),
        "bias": tensors.take(f"{name}.bias", width),
    }


def block(
    tensors: Tensors, names: BlockNames, width: int, hidden: int, biased: bool = True
) -> Weights:
    """One transformer block as `nec_jax.models.vit.Block` has it.

    If its queries, keys and values are not `biased` (qkv_bias=False), their bias is set to zero,
    which is the same function.
    """
    rows = 3 * width // len(names.qkv)
    parts = [tensors.take(_part(name, "weight"), rows, width) for name in names.qkv]
    zero = np.zeros(rows, np.float32)
    biases = [tensors.take(_part(n, "bias"), rows) if biased else zero for n in names.qkv]
    weights = {
        "norm1": norm(tensors, names.norm1, width),
        "attn": {
            "qkv": {
                "kernel": np.ascontiguousarray(np.concatenate(parts).T),
                "bias": np.concatenate(biases),
            },
            "proj": linear(tensors, names.proj, width, width),
        },
        "norm2": norm(tensors, names.norm2, width),
        "mlp": {
            "fc1": linear(tensors, names.fc1, width, hidden),
            "fc2": linear(tensors, names.fc2, hidden, width),
        },
    }
    if names.scales is not None:
        weights |= {
            f"scale{i + 1}": tensors.take(name, width) for i, name in enumerate(names.scales)
        }
    return weights


def _part(name: str, part: str) -> str:
    # OpenAI's CLIP has in_proj_weight, not in_proj.weight.
    return f"{name}{part}" if name.endswith("_") else f"{name}.{part}"


def count_blocks(tensors: Mapping[str, NDArray], prefix: str, told: int | None = None) -> int:
    """The number of blocks `prefix0.`, `prefix1.` ... without a gap; 0 for none.

    Raises:
      FileError: not as many as `told` by the checkpoint's configuration.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(m[1]) for name in tensors if (m := pattern.match(name))}
    count = next(i for i in range(len(found) + 1) if i not in found)
    if told is not None and told != count:
        raise FileError(
            f"{count} blocks {prefix}0. and so on, but config.json says {told}: missing "
            f"{prefix}{count}."
            if told > count
            else f"unexpected {prefix}{told}.: config.json says that there are {told} blocks"
        )
    return count


def patch_kernel(tensors: Tensors, name: str) -> tuple[NDArray[np.float32], int, int]:
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
