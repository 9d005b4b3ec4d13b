"""The container of codec, model, head and refiner files: safetensors and a canonical-JSON record.

The safetensors metadata has one key, `nec` (several would be written in random order), whose text
is JSON with sorted keys, no spaces, ASCII, no NaN:

    {"content": {...}, "format": 1, "kind": "codec" | "model" | "head" | "refiner", "sha256": ".."}

`sha256` covers the tensors (safetensors alone loads a flipped bit silently) and the rest of the
record. Equal tensors and content give equal bytes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from coder import files
from coder.errors import FileError

FORMAT = 1
_KEY = "nec"

SHIPPED = Path(__file__).parents[2] / "nec_jax" / "weights"
"""The folder of the shipped models: all packages are in one wheel."""
Tensors = Mapping[str, NDArray]


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, ASCII; ValueError on NaN, infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(tensors: Tensors, text: str) -> bytes:
    """SHA-256 over a text and named tensors: names, types, shapes and values, in name order."""
    sha = hashlib.sha256()
    shapes = {name: [tensors[name].dtype.name, tensors[name].shape] for name in tensors}
    # JSON of both comes first: nothing that follows can be taken for a part of it.
    sha.update(canonical_json([text, shapes]).encode())
    for name in sorted(tensors):
        values = np.asarray(tensors[name], order="C")
        sha.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.digest()


def to_bytes(kind: str, tensors: Tensors, content: Mapping[str, Any]) -> bytes:
    """A whole file in memory; `content` is anything JSON can hold."""
    record: dict[str, Any] = {"content": content, "format": FORMAT, "kind": kind}
    record["sha256"] = digest(tensors, canonical_json(record)).hex()
    arrays = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    return safetensors.numpy.save(arrays, {_KEY: canonical_json(record)})


def from_bytes(
    data: bytes, *kinds: str, path: str | os.PathLike[str] | None = None
) -> tuple[dict[str, NDArray], Any]:
    """The tensors and the content of a file of one of these kinds.

    Args:
      data: the whole file.
      kinds: what it may be.
      path: where it was read, for errors.

    Raises:
      FileError: damaged, not such a file, another kind, or a newer format.
    """
    tensors, text = _open(data, path)
    try:
        record = json.loads(text)
        if not isinstance(record, dict) or canonical_json(record) != text:
            raise ValueError("its record is not canonical")
        found, version, sha = record["kind"], record["format"], record.pop("sha256")
        content = record["content"]
        if not isinstance(content, dict):
            raise ValueError("its content is not an object")
    except (ValueError, KeyError, RecursionError) as error:
        raise FileError(f"damaged ({error}): fetch it again", path) from error
    if version != FORMAT:
        raise FileError(f"file format {version}, this reads {FORMAT}: update nec-jax", path)
    if sha != digest(tensors, canonical_json(record)).hex():
        raise FileError("damaged (its SHA-256 does not match): fetch it again", path)
    if found not in kinds:
        raise FileError(f"a {found} file where a {kinds[0]} file is needed", path)
    return tensors, content


def write(
    path: str | os.PathLike[str], kind: str, tensors: Tensors, content: Mapping[str, Any]
) -> None:
    """Write a file whole or not at all. An existing file is replaced.

    Raises OutputError if the path is a folder, pipe or device, or cannot be written.
    """
    files.write_bytes(path, to_bytes(kind, tensors, content), overwrite=True)


def read(path: str | os.PathLike[str], *kinds: str) -> tuple[dict[str, NDArray], Any]:
    """Read a file that `write` wrote: its tensors and content. Raises as `from_bytes`."""
    return from_bytes(files.read_bytes(path, f"{kinds[0]} file"), *kinds, path=path)


def under(prefix: str, tensors: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def check_weights(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that tensors are the float32 weights of these names and shapes; float16 is stored too.

    Raises FileError: a missing or unexpected tensor, or one of another shape or dtype, by name.
    """
    problems = [f"missing {n}" for n in sorted(shapes.keys() - tensors.keys())]
    problems += [f"unexpected {n}" for n in sorted(tensors.keys() - shapes.keys())]
    problems += [
        f"{n} is {tensors[n].dtype} {tensors[n].shape}, not float32 {shape}"
        for n, shape in sorted(shapes.items())
        if n in tensors
        and (tensors[n].shape != shape or tensors[n].dtype not in (np.float32, np.float16))
    ]
    if problems:
        raise FileError("the weights do not fit the configuration: " + "; ".join(problems))


def found(name: str | os.PathLike[str], what: str) -> Path:
    """The path of a file or, if there is no such file, of the shipped model of this name.

    Raises FileError, which calls the file `what`, if there is neither.
    """
    path = Path(name)
    shipped = SHIPPED / f"{path.name}.safetensors"
    if path.name == os.fspath(name) and not path.is_file() and shipped.is_file():
        path = shipped
    if not path.exists():
        shipped = sorted(p.stem for p in SHIPPED.glob("*.safetensors"))
        raise FileError(
            f"no such {what}: give the path of a file"
            + (f", or the name of a model that ships ({', '.join(shipped)})" if shipped else ""),
            name,
        )
    return files.check_input(path, what)


def _open(data: bytes, path: str | os.PathLike[str] | None) -> tuple[dict[str, NDArray], str]:
    try:
        tensors = safetensors.numpy.load(data)
        # safetensors reads metadata from files only, not from bytes.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise FileError(f"damaged, or not a safetensors file ({error})", path) from error
    metadata = header.get("__metadata__") or {}
    if set(metadata) != {_KEY}:
        raise FileError("a safetensors file, but not one that nec-jax wrote", path)
    return tensors, metadata[_KEY]
