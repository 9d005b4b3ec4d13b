"""NecParams: a model as a JAX pytree, and its file."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from coder import EmbeddingCodec, FileError, InputError, codecs
from coder.codecs import MODEL
from coder.errors import about
from coder.format import container
from nec_jax.jax_defaults import jax_defaults
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import Weights, flatten_weights, unflatten_weights


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights"],
    meta_fields=["codec", "config"],
    drop_fields=["provenance"],
)
@dataclass(frozen=True)
class NecParams:
    """Weights (leaves) with their static config and codec, which compare by value.

    It goes through `jit`, `device_put` and orbax like any pytree. Models of one config and codec
    are averaged by `jax.tree.map(lambda *w: sum(w) / len(w), *models)`. What such functions return
    has no provenance, since it is another model: `dataclasses.replace` gives it one.

    Attributes:
      weights: {"encoder": ..., "bottleneck": ..., "decoder": ...}, float32.
      config: architecture and input contract.
      codec: codes latents as bytes; None for a model that is only pre-trained. Its refiner, if it
        has one, is a part of the model and of its file.
      provenance: canonical JSON of how the model was made, for people and reports.
    """

    weights: Weights
    config: ModelConfig
    codec: EmbeddingCodec | None = None
    provenance: str = "{}"


@jax_defaults()
def save(params: NecParams, path: str | os.PathLike[str]) -> None:
    """Write a model file: weights, config, codec and its refiner in one safetensors file.

    Weights that float16 holds exactly are written as float16, in half the bytes.

    Raises:
      InputError: what `load` would refuse: weights that are not float32, or the refiner of another
        codec.
    """
    weights = flatten_weights(params.weights)
    check_float32(weights)
    tensors = {f"weights/{k}": as_stored(v) for k, v in weights.items()}
    content: dict[str, Any] = {"config": params.config.to_meta(), "codec": None}
    content["provenance"] = params.provenance
    codec, parts = params.codec, {}
    if codec is not None:
        parts["codec"] = codec.to_parts()
        if codec.refiner is not None:
            codec.with_refiner(codec.refiner)  # refuses that of another codec
            parts["refiner"] = codec.refiner.to_parts()
    for part, (held, described) in parts.items():
        tensors |= {f"{part}/{k}": v for k, v in held.items()}
        content[part] = described
    container.write(path, MODEL, tensors, content)


def digest_of(params: NecParams) -> str:
    """64 hexadecimal digits of weights and configuration: all that makes latents, and no codec."""
    weights, config = flatten_weights(params.weights), params.config.to_meta()
    return container.digest(weights, container.canonical_json(config)).hex()


def check_float32(tensors: dict[str, np.ndarray]) -> None:
    """Raise InputError unless all weights are float32, the only dtype that `load` takes."""
    wrong = [f"{name} is {value.dtype}" for name, value in tensors.items() if value.dtype != "f4"]
    if wrong:
        raise InputError(
            f"{len(wrong)} of {len(tensors)} weights are not float32 ({', '.join(wrong[:3])}): "
            "cast them, jax.tree.map(lambda w: w.astype('float32'), weights)"
        )


def as_stored(leaf: np.ndarray) -> np.ndarray:
    """Weights as a file holds them: as float16, where that changes none of them."""
    with np.errstate(over="ignore"):
        half = leaf.astype(np.float16)
    return half if np.array_equal(half.astype(leaf.dtype), leaf, equal_nan=True) else leaf


def model_path(name: str | os.PathLike[str]) -> Path:
    """The file of a model, by its path or by the name of a shipped model.

    Raises:
      FileError: no such model, or a checkpoint of another project.
    """
    path = Path(name)
    if path.suffix in (".pth", ".pt", ".bin"):
        raise FileError("not a model of nec-jax: nec convert makes one of a checkpoint", path)
    return container.found(name, "model")


@jax_defaults()
def load(name: str | os.PathLike[str]) -> NecParams:
    """Read a model, by its path or by the name of a shipped model.

    Raises:
      FileError: no such model, a damaged file, or one of another kind.
    """
    path = model_path(name)
    tensors, content = container.read(path, MODEL)
    forms = {"config": dict, "codec": (dict, type(None)), "provenance": str}
    forms |= {"refiner": dict} if "refiner" in content else {}
    sound = [isinstance(content.get(key), form) for key, form in forms.items()]
    if content.keys() != forms.keys() or not all(sound):
        raise FileError("not the content of a model file: update nec-jax", path)
    try:
        config = ModelConfig.from_meta(content["config"])
        like = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"unusable model configuration: {error}", path) from error
    with about(path):
        weights = unflatten_weights(container.under("weights/", tensors), like)
        codec = None
        if content["codec"] is not None:
            codec = codecs.from_parts(container.under("codec/", tensors), content["codec"])
            codec = codecs.with_refiner_of(codec, tensors, content)
        elif "refiner" in content or container.under("refiner/", tensors):
            raise FileError("a refiner, and no codec that it belongs to: make the model again")
    coded = config.embedding_width, config.code_class_token
    if codec is not None and (codec.channels, codec.class_token) != coded:
        raise FileError("its codec is not one of its architecture: make it again", path)
    return NecParams(weights, config, codec, content["provenance"])
