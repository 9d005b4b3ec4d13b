"""Reads PyTorch files (zip archives of torch.save and TorchScript) without PyTorch.

Pickle is a language that can call anything. This reader hands it a short list of names, each of
which builds a tensor, a container or an inert record; whatever else a file asks for is refused, so
that no code of the file runs.
"""

import collections
import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder import FileError

_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
    "BoolStorage": "?",
}
_STATE_KEYS = ("model", "state_dict", "model_state_dict")


class Record:
    """What an object of a class that is not ours becomes: its attributes, and nothing else."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        # TorchScript writes (attributes, ...) now and then, ours are always dictionaries.
        if isinstance(state, dict):
            self.attributes = {k: v for k, v in state.items() if isinstance(k, str)}


@dataclass(frozen=True)
class _Storage:
    dtype: str
    read: Callable[[], bytes]

    @property
    def itemsize(self) -> int:
        return 2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize


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

    def load(self) -> NDArray:
        """The values; FileError where they would lie outside of the file's."""
        wide = self.storage.dtype == "bfloat16"
        data = np.frombuffer(self.storage.read(), "<u2" if wide else self.storage.dtype)
        last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        inside = self.offset >= 0 and min(self.strides, default=0) >= 0 and self.count <= len(data)
        if not inside or (self.count and self.offset + last >= len(data)):
            raise FileError("a tensor that reaches beyond its storage: the file is damaged")
        step = data.itemsize
        values = np.lib.stride_tricks.as_strided(
            data[self.offset :], self.shape, [s * step for s in self.strides], writeable=False
        )
        if wide:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.array(values)


def read_torch_file(path: Path) -> tuple[dict[str, NDArray], dict[str, Any]]:
    """The tensors of a model's state, by name, and the run's arguments if the file holds them.

    Raises:
      FileError: not such a file, damaged, or one that asks for code.
    """
    if not zipfile.is_zipfile(path):
        raise FileError(
            f"{path}: not a zip archive of torch.save (PyTorch 1.6 or later): load it with "
            "torch.load(..., weights_only=True) and save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            content = _unpickle(archive, path)
            arguments = content.get("args") if isinstance(content, dict) else None
            state = _state(content, path)
            wanted = sum(ref.count * ref.storage.itemsize for ref in state.values())
            if wanted > 2 * path.stat().st_size:  # a storage may be shared, as tied weights are
                raise FileError(f"{path}: its tensors are larger than the file: it is damaged")
            tensors = {name: ref.load() for name, ref in state.items()}
    except FileError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise FileError(f"{path}: damaged, or not a PyTorch file ({reason})") from error
    return tensors, arguments.attributes if isinstance(arguments, Record) else {}


def _unpickle(archive: zipfile.ZipFile, path: Path) -> Any:
    names = archive.namelist()
    pickles = [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(pickles) != 1:
        raise FileError(f"{path}: a zip archive, but not one that torch.save wrote")
    root = pickles[0].removesuffix("data.pkl")
    ours = [i for i in archive.infolist() if i.filename.startswith((pickles[0], f"{root}data/"))]
    if any(info.compress_type != zipfile.ZIP_STORED for info in ours):
        raise FileError(f"{path}: compressed entries, which torch.save never writes: refused")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise FileError(f"{path}: written on a big-endian machine: save it on another")
    content = archive.read(pickles[0])
    _check_memo(content, path)
    return _Unpickler(io.BytesIO(content), archive, root, path).load()


def _check_memo(content: bytes, path: Path) -> None:
    # The unpickler allocates its memo up to the largest index that it is told: gigabytes, if asked.
    for opcode, argument, _ in pickletools.genops(content):
        index = argument if isinstance(argument, int) else 0
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and index > len(content):
            raise FileError(f"{path}: a pickle that asks for more memory than it can need: refused")


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str, path: Path):
        super().__init__(file)
        self._archive, self._root, self._path = archive, root, path
        self._storages: dict[str, bytes] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.startswith("__torch__"):  # a class that TorchScript compiled
            return Record
        if (module, name) in _BUILDERS:
            return _BUILDERS[module, name]
        raise FileError(
            f"{self._path}: asks for {module}.{name}, which is no part of a tensor: refused. If "
            "you trust the file, load it with PyTorch and save the state_dict alone"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key = pid[:3]
        if kind != "storage" or dtype not in _STORAGES.values():
            raise FileError(f"{self._path}: storage of an unknown type")
        return _Storage(dtype, lambda: self._storage(str(key)))

    def _storage(self, key: str) -> bytes:
        if key not in self._storages:
            self._storages[key] = self._archive.read(f"{self._root}data/{key}")
        return self._storages[key]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRef:
    whole = [offset, *shape, *strides]
    sound = all(isinstance(n, int) for n in whole) and min(shape, default=0) >= 0
    if not isinstance(storage, _Storage) or not sound or len(shape) != len(strides):
        raise FileError("a tensor that is not described by whole numbers: the file is damaged")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))


_BUILDERS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): lambda *shape: shape,
    ("argparse", "Namespace"): Record,
    # Numbers and paths of training scripts, which nothing here needs: they become inert.
    ("pathlib", "PosixPath"): Record,
    ("pathlib._local", "PosixPath"): Record,
    ("torch", "device"): Record,
    ("numpy.core.multiarray", "scalar"): Record,
    ("numpy._core.multiarray", "scalar"): Record,
    ("numpy", "dtype"): Record,
    ("_codecs", "encode"): lambda text, *_: str(text).encode("latin1"),
}


def _state(content: Any, path: Path) -> dict[str, TensorRef]:
    if isinstance(content, Record):
        return _flatten(content)
    if not isinstance(content, dict):
        raise FileError(f"{path}: holds a {type(content).__name__}, not a model's state")
    nested = [key for key in _STATE_KEYS if isinstance(content.get(key), dict)]
    if len(nested) > 1:
        raise FileError(f"{path}: holds {' and '.join(nested)}: save the one that is meant")
    state = content[nested[0]] if nested else content
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, TensorRef)}
    if not tensors:
        raise FileError(f"{path}: no tensors under any of {', '.join(_STATE_KEYS)} or on top")
    return tensors


def _flatten(record: Record, prefix: str = "") -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    for name, value in record.attributes.items():
        if isinstance(value, TensorRef):
            tensors[prefix + name] = value
        elif isinstance(value, Record):
            tensors |= _flatten(value, f"{prefix}{name}.")
    return tensors
