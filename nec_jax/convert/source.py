"""Open the source of `nec convert`: a file or folder -> tensors and the facts stored with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from numpy.typing import NDArray

from coder import FileError, files
from nec_jax.convert.torch_file import read_torch_file

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip
# Activations as the config.json of transformers and of timm call them.
_ACTIVATIONS = {
    "gelu": "gelu", "quick_gelu": "quick-gelu",
    "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_tanh": "gelu-tanh",
}  # fmt: skip
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors under the names of their project, and the facts that came with them.

    Attributes:
      name: its name in errors and reports.
      tensors: {name: array}.
      config: `config.json` of a folder; empty without one.
      preprocessor: `preprocessor_config.json` of a folder, or the part of `processor_config.json`
        for images; empty without one.
      arguments: the training run's arguments in a `.pth`; empty without any.
      image_size: the side that its project itself resizes positions to, if it does.
    """

    name: str
    tensors: Mapping[str, NDArray]
    config: Mapping[str, Any] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    image_size: int | None = None


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a `.safetensors`, `.pth`, `.pt`, `.bin` file, or a folder as transformers writes it.

    Raises:
      FileError: none of these, or damaged, or a file that asks for code.
    """
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise FileError("no such file or folder: give the path of a checkpoint or a wheel", path)
    files.check_input(path, "checkpoint")
    if path.suffix == ".safetensors":
        return Checkpoint(path.name, _plain(_read_safetensors(path)))
    tensors, arguments = read_torch_file(path)
    return Checkpoint(path.name, _plain(tensors), arguments=arguments)


def _open_folder(path: Path) -> Checkpoint:
    found = [path / name for name in _WEIGHTS if (path / name).is_file()]
    if not found:
        if (path / "model.safetensors.index.json").exists():
            raise FileError("sharded weights: save them as one model.safetensors", path)
        raise FileError(
            f"neither of {', '.join(_WEIGHTS)} is in this folder: give the folder that "
            "transformers' save_pretrained wrote, or the checkpoint file itself",
            path,
        )
    whole = open_checkpoint(found[0])
    # Processors of images and texts (CLIP's) are one file since the fifth transformers.
    both = _read_json(path / "processor_config.json").get("image_processor")
    preprocessor = _read_json(path / "preprocessor_config.json") or both or {}
    config = _read_json(path / "config.json")
    return Checkpoint(path.name, whole.tensors, config, preprocessor, whole.arguments)


def _read_json(path: Path) -> dict[str, Any]:
    return files.read_json(path, "configuration") if path.exists() else {}


def _read_safetensors(path: Path) -> dict[str, NDArray]:
    # Not safetensors.numpy.load_file, which has no bfloat16.
    try:
        return {name: _array(item) for name, item in safetensors.deserialize(path.read_bytes())}
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise FileError(f"damaged, or not a safetensors file ({error})", path) from error


def _array(item: Mapping[str, Any]) -> NDArray:
    values = np.frombuffer(item["data"], _DTYPES[item["dtype"]]).reshape(item["shape"])
    return values.astype(np.float32) if values.dtype == jnp.bfloat16 else values


def _plain(tensors: dict[str, NDArray]) -> dict[str, NDArray]:
    """Without the prefix that DistributedDataParallel puts before every name."""
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def activation(facts: Mapping[str, Any], key: str) -> str | None:
    """The activation that a config.json names under `key`; None if it names none."""
    name = facts.get(key)
    if name is not None and name not in _ACTIVATIONS:
        raise FileError(f"{key} is {name!r}: known are {', '.join(_ACTIVATIONS)}")
    return None if name is None else _ACTIVATIONS[name]
