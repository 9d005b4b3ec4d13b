"""Reads PyTorch files (zip archives of torch.save and TorchScript) without PyTorch.

A file's pickle gets a short list of names, each of which builds a tensor, a container or an inert
record; whatever else it asks for is refused, so that no code of the file runs.
"""

import functools
import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from coder import FileError
from coder.errors import about
from nec_jax.convert.unpickle import INTEGER_LIMIT, DataUnpickler, Record

_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("<i1"),
    "ByteStorage": np.dtype("<u1"),
    "BoolStorage": np.dtype("?"),
}
_MAX_AXES = 8
_MAX_ATTRIBUTES = 1_000_000
_MAX_NAME = 1000
_STATE_KEYS = ("model", "state_dict", "model_state_dict")


@dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str  # of its entry in the archive


@dataclass(frozen=True)
class TensorRef:
    """A tensor that is still on disk."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def load(self, content: bytes) -> NDArray:
        """The values in the content of their storage. Raises FileError if they reach beyond it."""
        data = np.frombuffer(content, self.storage.dtype)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        inside = self.offset >= 0 and min(self.strides, default=0) >= 0 and self.count <= len(data)
        if not inside or (self.count and self.offset + last >= len(data)):
            raise FileError("a tensor that reaches beyond its storage: the file is damaged")
        steps = [stride * data.itemsize for stride in self.strides]
        values = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, steps, writeable=False
        )
        return values.astype(np.float32) if data.dtype == jnp.bfloat16 else np.array(values)


def read_torch_file(path: Path) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The tensors of a model's state, by name, and the run's arguments if the file holds them.

    Raises:
      FileError: not such a file, damaged, or one that asks for code.
    """
    with about(path):
        if not zipfile.is_zipfile(path):
            raise FileError(
                "no checkpoint, or one of PyTorch before 1.6 (no zip archive of torch.save): if it "
                "is one, load it with torch.load(..., weights_only=True) and save it again"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                return _read(archive, path.stat().st_size)
        except FileError:
            raise
        except Exception as error:  # damaged pickles raise nearly anything
            reason = f"{type(error).__name__}: {error}"
            raise FileError(f"damaged, or not a PyTorch file ({reason})") from error


def _read(archive: zipfile.ZipFile, size: int) -> tuple[dict[str, NDArray], dict[str, Any]]:
    pickles = [n for n in archive.namelist() if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
        raise FileError("a zip archive, but not one that torch.save wrote")
    root = pickles[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    # TorchScript's code lies beside these, which nothing here reads.
    read = [
        i
        for i in archive.infolist()
        if i.filename in (pickles[0], order) or i.filename.startswith(f"{root}data/")
    ]
    if any(info.compress_type != zipfile.ZIP_STORED for info in read):
        raise FileError("compressed entries, which torch.save never writes: refused")
    if sum(info.file_size for info in read) > size:
        raise FileError("its entries are larger than the file: refused")
    if any(i.filename == order for i in read) and archive.read(order) != b"little":
        raise FileError("written on a big-endian machine: save it on another")
    content = _TorchUnpickler(archive.read(pickles[0])).load()
    state = _state(content)
    wanted = sum(ref.count * ref.storage.dtype.itemsize for ref in state.values())
    if wanted > 2 * size:  # a storage may be shared, as tied weights are
        raise FileError("its tensors are larger than the file: it is damaged")
    read_storage = functools.cache(lambda key: archive.read(f"{root}data/{key}"))
    tensors = {name: ref.load(read_storage(ref.storage.key)) for name, ref in state.items()}
    arguments = content.get("args") if isinstance(content, dict) else None
    return tensors, arguments.attributes if isinstance(arguments, Record) else {}


class _TorchUnpickler(DataUnpickler):
    """Knows what the names and storages of a checkpoint stand for."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.startswith("__torch__"):  # a class that TorchScript compiled
            return Record
        if (module, name) in _BUILDERS:
            return _BUILDERS[module, name]
        raise FileError(
            f"asks for {module}.{name}, which is no part of a tensor: refused. If you trust the "
            "file, load it with PyTorch and save the state_dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key = pid[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype) or not isinstance(key, str):
            raise FileError("a storage of an unknown type: damaged, or of a newer PyTorch")
        return _Storage(dtype, key)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    sound = len(shape) == len(strides) <= _MAX_AXES and isinstance(storage, _Storage)
    whole = (isinstance(n, int) and abs(n) < INTEGER_LIMIT for n in (offset, *shape, *strides))
    if not sound or not all(whole) or min(shape, default=0) < 0:
        raise FileError("a tensor that is not described by whole numbers: the file is damaged")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


def _empty_dict(*arguments: Any) -> dict:
    if arguments:
        raise FileError("an ordered dictionary of an unknown form: damaged")
    return {}


_BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("collections", "OrderedDict"): _empty_dict,
    ("torch", "Size"): lambda *shape: shape,
    # TorchScript's typed lists and dictionaries.
    **{
        ("torch.jit._pickle", f"build_{kind}list"): lambda items: items
        for kind in ("int", "double", "bool", "tensor")
    },
    ("torch.jit._pickle", "restore_type_tag"): lambda value, _: value,
    ("argparse", "Namespace"): Record,
    # Numbers and paths of training scripts, which nothing here needs: they become inert.
    ("pathlib", "PosixPath"): Record,
    ("pathlib._local", "PosixPath"): Record,
    ("torch", "device"): Record,
    ("numpy.core.multiarray", "scalar"): Record,
    ("numpy._core.multiarray", "scalar"): Record,
    ("numpy", "dtype"): Record,
    ("_codecs", "encode"): Record,
}


def _state(content: Any) -> dict[str, TensorRef]:
    if not isinstance(content, Record | dict):
        raise FileError(f"holds a {type(content).__name__}, not a model's state")
    if isinstance(content, Record):
        tensors = _flatten(content)
    else:
        states = [key for key, value in content.items() if _is_state(key, value)]
        if len(states) > 1:
            raise FileError(
                f"holds {' and '.join(states)}: save the one that is meant, as {{'model': ...}}"
            )
        state = content[states[0]] if states else content
        tensors = {
            k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, TensorRef)
        }
    if not tensors:
        raise FileError(f"no tensors under any of {', '.join(_STATE_KEYS)} or on top")
    return tensors


def _is_state(key: Any, value: Any) -> bool:
    # Averages over training are states as well: model_ema, state_dict_ema, ema.
    known = isinstance(key, str) and (key in _STATE_KEYS or re.search(r"(^|_)ema(_|$)", key))
    return bool(known) and isinstance(value, dict) and bool(value)


def _flatten(record: Record) -> dict[str, TensorRef]:
    """The tensors of a TorchScript module and of those in it, by their dotted names."""
    tensors: dict[str, TensorRef] = {}
    modules, seen = [("", record)], 0
    for prefix, module in modules:  # which grows
        seen += 1 + len(module.attributes)
        if seen > _MAX_ATTRIBUTES or len(prefix) > _MAX_NAME:
            raise FileError("modules within modules without end: refused")
        for name, value in module.attributes.items():
            if isinstance(value, TensorRef):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Record):
                modules.append((f"{prefix}{name}.", value))
    return tensors
