"""Checkpoints of the parity fixtures, changed at will, that tests of refusals share."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from nec_jax import NecParams, convert_checkpoint
from nec_jax.convert.source import open_checkpoint

GOLDEN = Path(__file__).parent / "parity/golden"
MAE = "facebook-mae-normalised"  # learned positions, norm_pix_loss
Tensors = dict[str, NDArray]


def tensors_of(case: str) -> Tensors:
    """A case's tensors, under its project's names."""
    told = json.loads((GOLDEN / case / "options.json").read_text())
    return dict(open_checkpoint(GOLDEN / case / told["source"]).tensors)


def options_of(case: str) -> Any:
    """A case's options."""
    told = json.loads((GOLDEN / case / "options.json").read_text())["options"]
    return {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}


def rewritten(case: str, folder: Path, change: Callable[[Tensors], Any]) -> Path:
    """A case as one safetensors file, its tensors changed."""
    tensors = tensors_of(case)
    change(tensors)
    path = folder / "changed.safetensors"
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path


def convert(case: str, folder: Path, change: Callable[[Tensors], Any], **more: Any) -> NecParams:
    """Convert a changed case, which has lost its arguments."""
    has_decoder = any("decoder" in name for name in tensors_of(case))
    said = {"pixels": "plain"} if has_decoder else {}
    said |= {"normalisation": "imagenet"} if case == MAE else {}
    options = said | options_of(case) | more
    return convert_checkpoint(rewritten(case, folder, change), **options)


def folder_with(case: str, folder: Path, **config: Any) -> Path:
    """A case of transformers as a folder whose config.json is changed; None removes a key."""
    for path in (GOLDEN / case).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    facts = json.loads((folder / "config.json").read_text()) | config
    facts = {k: v for k, v in facts.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def torch_file(
    path: Path,
    content: bytes,
    storages: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file as torch.save lays it out, around a given pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


class Bomb:
    """Runs a command when it is unpickled by a reader that can be talked into it."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def bomb(target: Path, protocol: int = 2) -> bytes:
    """A pickle that would make a file."""
    return pickle.dumps({"model": Bomb(f"touch {target}")}, protocol=protocol)
