"""Training and encoding on a GPU: images per second, and the utilisation of the chip.

    python -m benchmarks.accelerator [--json]

Utilisation is model FLOPs over those of the chip in bfloat16 (Chowdhery 2022, PaLM, appendix B).
Model FLOPs are those of the matrix products that the method needs, each counted once; element-wise
work is not counted. Images of 224 pixels, random weights; training is the paper's (mask ratio 0.75,
the paper's trainable set), encoding goes from uint8 arrays to blobs.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

import nec_jax
from benchmarks.encode import fit_codec, images_of
from benchmarks.peer import best_seconds, parse
from benchmarks.train_step import MASK_RATIO, compiled_step
from coder import Pool
from coder.pool import available_cores
from nec_jax import NecParams
from nec_jax.models import nec
from nec_jax.models.architecture import ModelConfig, model_config
from nec_jax.models.freezing import trainable_rule
from nec_jax.models.mae import DecoderStem
from nec_jax.models.nec import init_weights
from nec_jax.models.vit import Encoder
from nec_jax.models.weight_tree import path_name

# Dense bfloat16 FLOPs per second, from the maker's data sheet.
DATA_SHEET = {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H200": 989.4e12}
BATCH = 256
STEPS = 5  # steps between two readings of the clock
SECONDS = 2.0  # seconds of runs per row
IMAGES = 2048  # images that are encoded end to end
RATES = (0.1, 0.5)  # bits per element
TRAINING = (
    ("vit-b", "bfloat16", ""),
    ("vit-l", "bfloat16", ""),
    ("vit-b", "tensorfloat32", ""),
    ("vit-b", "bfloat16", "sums in bfloat16"),
    ("vit-b", "bfloat16", "attention by XLA"),
    ("vit-b", "bfloat16", "dense layers without barriers"),
)
ENCODING = (
    ("vit-b", "bfloat16", ""),
    ("vit-l", "bfloat16", ""),
    ("vit-b", "bfloat16", "sums in bfloat16"),
    ("vit-b", "tensorfloat32", ""),
)

Row = dict[str, Any]


def model_flops(config: ModelConfig, training: bool) -> float:
    """FLOPs of matrix products for one image: a forward pass, or a step of the training."""
    shapes = jax.eval_shape(lambda: init_weights(config, jax.random.key(0)))
    rule = trainable_rule("paper", config) if training else lambda _: False
    tokens = int(np.prod(config.grid(config.image_size, config.image_size)))
    seen = {"encoder": 1 + int(tokens * (1 - MASK_RATIO)) if training else 1 + tokens}
    seen["decoder"] = 1 + tokens
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = path_name(path)
        if not name.endswith("kernel") or (name.startswith("decoder") and not training):
            continue
        rows = seen[name.partition("/")[0]] - name.startswith(("encoder/patch", "decoder/pred"))
        gradients = training * (not name.startswith("encoder/patch")) + rule(name)
        total += 2 * rows * np.prod(leaf.shape) * (1 + gradients)
        if name.endswith("qkv/kernel"):  # and attention: q k^T and weights v
            total += 2 * 2 * rows**2 * leaf.shape[0] * (1 + 2 * training)
    return float(total)


def measured_peak() -> float:
    """FLOPs per second of a product of large bfloat16 matrices."""
    side = 8192
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), jnp.bfloat16)
    product = jax.jit(jnp.matmul)

    def run() -> None:
        jax.block_until_ready([product(a, b) for _ in range(20)])

    run()
    return 20 * 2 * side**3 / best_seconds(run, SECONDS)


def attend_by_xla(qkv: jax.Array, _: str) -> jax.Array:
    """`nec_jax.models.vit.attend` without flash attention."""
    return jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), implementation="xla")


def plain_product(x: jax.Array, kernel: jax.Array, precision: str) -> jax.Array:
    """`nec_jax.models.dense_layer.product` with JAX's own gradient."""
    return jnp.matmul(x, kernel, precision=precision)


def halved(method: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A method with its result, and so the sums of the blocks after it, in bfloat16."""

    def call(*arguments: Any, **more: Any) -> jax.Array:
        return method(*arguments, **more).astype(jnp.bfloat16)

    return call


def variant(name: str) -> ExitStack:
    """The model with a part replaced, for the duration of the context."""
    patches = {
        "": [],
        "attention by XLA": [patch("nec_jax.models.vit.attend", attend_by_xla)],
        "dense layers without barriers": [
            patch("nec_jax.models.dense_layer.product", plain_product)
        ],
        "sums in bfloat16": [
            patch.object(Encoder, "_tokens", halved(Encoder._tokens)),
            patch.object(DecoderStem, "__call__", halved(DecoderStem.__call__)),
        ],
    }
    stack = ExitStack()
    for one in patches[name]:
        stack.enter_context(one)
    return stack


def train(arch: str, precision: str, changed: str) -> Row:
    """One row of training."""
    config = model_config(arch, precision=precision)
    start = time.perf_counter()
    with variant(changed):
        step = compiled_step(config, BATCH, STEPS)
    compiled = time.perf_counter() - start
    rate = BATCH * STEPS / best_seconds(step, SECONDS)
    flops = rate * model_flops(config, training=True)
    row: Row = {"work": "train", "arch": arch, "precision": precision, "changed": changed}
    return row | {"images_per_s": rate, "flops_per_s": flops, "start_s": compiled}


def encode(arch: str, precision: str, changed: str) -> Iterator[Row]:
    """The model alone; then, if unchanged, to blobs at each rate, on one core and on all."""
    config = model_config(arch, precision=precision, decoder_target="none", coding_batch=BATCH)
    weights = init_weights(config, jax.random.key(0))
    params = NecParams(weights, config)
    sixteen = images_of(config)
    images = np.concatenate([np.roll(sixteen, 5 * i, axis=2) for i in range(IMAGES // 16)])
    latents = jax.jit(lambda weights, x: nec.latents(config, weights, x))
    batch = jax.device_put(images[:BATCH])

    def run() -> None:
        jax.block_until_ready([latents(weights, batch) for _ in range(STEPS)])

    with variant(changed):
        run()
    row: Row = {"work": "encode", "arch": arch, "precision": precision}
    row["changed"] = changed or "model alone"
    rate = BATCH * STEPS / best_seconds(run, SECONDS)
    flops = model_flops(config, training=False)
    yield row | {"images_per_s": rate, "flops_per_s": rate * flops}
    if changed:
        return
    y = nec_jax.latents(params, images[:64])
    for bits in RATES:
        codec, _ = fit_codec(y, bits)
        coded = dataclasses.replace(params, codec=codec)
        row |= {"bytes": float(np.mean([len(codec.encode(one, (14, 14))) for one in y]))}
        few = images[: BATCH * 2]
        rate = len(few) / best_seconds(functools.partial(nec_jax.encode, coded, few), 0.0)
        yield row | {"changed": "1 process", "images_per_s": rate, "flops_per_s": rate * flops}
        with Pool(codec) as pool:
            pool.encode(y, (14, 14))  # starts the processes
            encode_all = functools.partial(nec_jax.encode, coded, images, pool=pool)
            rate = len(images) / best_seconds(encode_all, SECONDS)
        name = f"{available_cores()} processes"
        yield row | {"changed": name, "images_per_s": rate, "flops_per_s": rate * flops}


def main() -> None:
    """Print one line per measurement, as soon as it is made."""
    arguments = parse(__doc__)
    kind = jax.devices()[0].device_kind
    found = measured_peak()
    peak = DATA_SHEET.get(kind, found)
    if not arguments.json:
        print(f"{kind}: bfloat16 products at {found / 1e12:.4g} TFLOP/s, of {peak / 1e12:.4g}")
        names = ("work", "model", "precision", "", "bytes", "images/s", "in use")
        print("{:8s}{:8s}{:15s}{:30s}{:>8s}{:>10s}{:>8s}".format(*names))
    rows = itertools.chain(
        (train(*case) for case in TRAINING),
        itertools.chain.from_iterable(encode(*case) for case in ENCODING),
    )
    for row in rows:
        if arguments.json:
            print(json.dumps(row | {"device": kind, "peak_flops": peak}), flush=True)
            continue
        size = f"{row['bytes']:.0f}" if "bytes" in row else ""
        used = row["flops_per_s"] / peak
        print(
            f"{row['work']:8s}{row['arch']:8s}{row['precision']:15s}{row['changed']:30s}"
            f"{size:>8s}{row['images_per_s']:10.0f}{used:8.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
