"""`Head`: a trained head from its file, applied in NumPy."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from coder.errors import FileError, about
from coder.format import container
from coder.refiner import Network, network_shapes
from coder.task_heads import head_layers as layers
from coder.task_heads.head_settings import (
    OTHER_SIZE,
    HeadSettings,
    ModelFacts,
    batch_size,
    check_embeddings,
    check_tokens,
    with_tuples,
)

KIND, REFINER = "head", "refiner/"
"""The kind of a head's file; the prefix of its tensors that belong to a refiner."""
Floats = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]


class Head:
    """A trained head, from its file: `coder.load_head`.

    Attributes:
      settings: kind, classes, grid, size of masks and refiner.
    """

    settings: HeadSettings

    def __init__(self, settings: HeadSettings, weights: Mapping[str, Floats]):
        self.settings, self._weights = settings, dict(weights)

    def __repr__(self) -> str:
        return f"<Head {self.settings.kind}: {len(self.classes)} classes>"

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their indices."""
        return self.settings.classes

    def predict_proba(self, y_hat: ArrayLike) -> Floats:
        """Probabilities of the classes: float32 [N, K], or [N, H, W, K] for masks.

        Linear heads give the softmax of their regression scores, which ranks the classes but is not
        calibrated. For masks, `predict` needs only 1/K of the memory.

        Args:
          y_hat: plain decoded embeddings [N, n, D], the class token first if the model codes one,
            with the grid that the head was trained on. A head that was fitted to refined embeddings
            refines them itself.

        Raises:
          InputError: embeddings of another shape, or with NaN or infinity.
        """
        return self._infer(y_hat, lambda logits: layers.softmax(logits, axis=-1))

    def predict(self, y_hat: ArrayLike) -> NDArray[np.int32]:
        """The most probable class: int32 [N], or [N, H, W] for masks. Raises as `predict_proba`."""
        return self._infer(y_hat, lambda logits: logits.argmax(-1).astype(np.int32))

    def _infer(self, y_hat: ArrayLike, result: Callable[[Floats], NDArray]) -> NDArray:
        y = check_embeddings(self.settings.model, y_hat, "y_hat")
        check_tokens(self.settings, y, "y_hat", OTHER_SIZE)
        size = batch_size(self.settings)
        starts = range(0, len(y), size)
        return np.concatenate([result(self._logits(y[i : i + size])) for i in starts])

    def _logits(self, y: Floats) -> Floats:
        """Embeddings [B, n, D] -> logits [B, K], or [B, H, W, K]."""
        s, w = self.settings, self._weights
        x = self._tokens(self._refined(y) if s.refine else y)
        if s.kind == "conv":
            x = layers.segmenter(w, "head/segmenter", x.reshape(len(x), *s.grid, -1))
            out = layers.dense(w, "head/segmenter/classifier", x)
        else:
            if s.kind == "attention":
                heads = s.model.decoder_heads if s.with_decoder else s.model.heads
                x = layers.attention_pool(w, "head/pool", x, heads)
            elif s.kind == "token-linear":
                x = x.reshape(len(x), *s.grid, -1)
            else:
                x = x.mean(1)
            out = layers.dense(w, "head/classifier", x)
        return out if s.mask_size is None else layers.resized(out, s.mask_size)

    def _tokens(self, y: Floats) -> Floats:
        """The tokens [B, t, E] that the head itself reads."""
        s, w, m = self.settings, self._weights, self.settings.model
        if s.with_decoder:
            x = layers.dense(w, "stem/embed", y)
            x = x + (w["stem/positions"] if "stem/positions" in w else self._positions())
            x = layers.block(w, "block_0", x, m.decoder_heads, m.epsilon)
            return layers.layer_norm(w, "norm", x, m.epsilon)[:, s.class_tokens :]
        x = y[:, s.class_tokens :]
        if s.kind == "class-linear":
            x = np.concatenate([y[:, :1], x.mean(1, keepdims=True)], axis=-1)
        return (x - w["scaling/mean"]) / w["scaling/std"]

    def _positions(self) -> Floats:
        """Those of the grid; the class token has none."""
        s = self.settings
        positions = layers.sincos_positions(s.grid, s.model.decoder_width)
        return np.pad(positions, [(s.class_tokens, 0), (0, 0)])

    def _refined(self, y: Floats) -> Floats:
        """`coder.Refiner.refine`, with the arrays that the head holds."""
        held = container.under(REFINER, self._weights)
        gain, *arrays = (held[name] for name in Network._fields)
        network = Network(float(gain), *arrays)
        if network.gain == 0:
            return y
        y, first = y.copy(), self.settings.class_tokens
        for one in y:
            u = (one[first:] - held["mean"]) / held["scale"]
            one[first:] += held["scale"] * network.change(u, self.settings.grid)[0]
        return y


def load_head(path: str | os.PathLike[str]) -> Head:
    """Read the file of a head, which `nec_jax.heads.save` wrote.

    Raises:
      FileError: no such file, a damaged one, or one of another kind.
    """
    tensors, config = read_parts(path)
    try:
        model = ModelFacts.from_meta(config["model"])
        settings = HeadSettings(**with_tuples(config | {"model": model}))
        shapes = weight_shapes(settings)
        if settings.refine:
            own = network_shapes(model.embedding_width, container.under(REFINER, tensors))
            shapes |= {f"{REFINER}{name}": shape for name, shape in own.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"unusable head configuration: {error}", path) from error
    with about(path):
        container.check_weights(tensors, shapes)
    weights = {name: values.astype(np.float32) for name, values in tensors.items()}
    return Head(settings, weights)


def read_parts(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray], Any]:
    """The tensors of a head's file, and its configuration as JSON. Raises FileError."""
    tensors, content = container.read(path, KIND)
    if content.keys() != {"config"}:
        raise FileError("not the content of a head file: update nec-jax", path)
    return tensors, content["config"]


def weight_shapes(settings: HeadSettings) -> Shapes:
    """The shapes of all weights of a head, by path; without those of a refiner."""
    model = settings.model
    width = model.decoder_width if settings.with_decoder else model.embedding_width
    width *= 2 if settings.kind == "class-linear" else 1
    classes = len(settings.classes)
    if settings.kind == "conv":
        found = _of_segmenter("head/segmenter", width, classes)
    else:
        found = _dense("head/classifier", width, classes)
    if settings.kind == "attention":
        found |= {"head/pool/latent": (width,)} | _norm("head/pool/norm", width)
        for name in ("q", "k", "v", "proj"):
            found |= _dense(f"head/pool/{name}", width, width)
        found |= _mlp("head/pool/mlp", width, model.mlp_ratio)
    if not settings.with_decoder:
        return found | {"scaling/mean": (width,), "scaling/std": (width,)}
    found |= {"stem/mask_token": (width,)} | _norm("norm", width)
    found |= _dense("stem/embed", model.embedding_width, width)
    if model.decoder_positions == "learned":
        found["stem/positions"] = (settings.tokens, width)
    for name in ("norm1", "norm2"):
        found |= _norm(f"block_0/{name}", width)
    found |= _dense("block_0/attn/qkv", width, 3 * width)
    found |= _dense("block_0/attn/proj", width, width)
    return found | _mlp("block_0/mlp", width, model.mlp_ratio)


def _of_segmenter(name: str, width: int, classes: int) -> Shapes:
    found, inner = {}, width // 2
    sides = {"conv_in": (width, inner)}
    sides |= {f"conv_{i}{part}": (inner, inner) for i in range(6) for part in "ab"}
    for place in sides:
        found |= _norm(f"{name}/{place.replace('conv', 'norm')}", inner)
    for i in range(2):
        before, inner = inner, max(1, inner // 2)
        sides[f"up_{i}"] = (before, 4 * inner)
    sides["conv_out"] = (inner, inner)
    for place, (i, o) in sides.items():
        found |= {f"{name}/{place}/kernel": (3, 3, i, o), f"{name}/{place}/bias": (o,)}
    return found | _norm(f"{name}/norm_out", inner) | _dense(f"{name}/classifier", inner, classes)


def _dense(name: str, i: int, o: int) -> Shapes:
    return {f"{name}/kernel": (i, o), f"{name}/bias": (o,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}/scale": (width,), f"{name}/bias": (width,)}


def _mlp(name: str, width: int, ratio: int) -> Shapes:
    return _dense(f"{name}/fc1", width, ratio * width) | _dense(f"{name}/fc2", ratio * width, width)
