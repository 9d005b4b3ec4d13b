"""`nec distil`: an encoder learns to predict a larger model's tokens.

A masked autoencoder of pixels needs millions of images. The tokens of a teacher that has seen them
can be learned from some thousands of images and mixtures of them (`train.data.views`). The
teacher's embedding of each view is computed once and kept (`train.engine.activation_cache`). The
student sees the same view at its own size, turned or mirrored like the teacher's grid of tokens. A
few blocks after the student, the predictor, predict that grid, averaged to the student's. The loss
is smooth L1 (Girshick 2015, eq. 3) on standardised channels, as in Wei 2022 (arXiv 2205.14141).
"""

import dataclasses
import json
import logging
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

import nec_jax
from nec_jax.api import check_images
from nec_jax.calibration import fit_transform
from nec_jax.images.record import Source
from nec_jax.model_file import NecParams
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.dense_layer import Dense
from nec_jax.models.mae import DecoderStem, random_masking
from nec_jax.models.nec import init_weights, latents
from nec_jax.models.vit import Block, layer_norm
from nec_jax.models.weight_tree import Weights
from train.configs.options import Distil, OptionsError
from train.data import read_all
from train.engine import loop, processes, run_record
from train.engine.initial_model import feature_scale, fresh_model
from train.engine.inputs import in_steps, refuse_folders
from train.engine.losses import Batch, Metrics, Objective, measured_alike
from train.engine.pictures import evenly_spread
from train.tasks.teacher import Images, passed_blocks, pooled, pooling

log = logging.getLogger(__name__)

_SCALE_SAMPLE = 512  # images to measure the standardisation of the targets on
_CODED = 64  # images to choose the default quality on, and to code at the end for real sizes


def run(options: Distil) -> None:
    """Train and write `model.safetensors`, an encoder, in the work folder."""
    processes.log_devices()
    if not options.teacher:
        raise OptionsError("no teacher: pass --teacher (a model file, as nec convert makes it)")
    refuse_folders(options)
    teacher = nec_jax.load(options.teacher)
    images = Images(options, teacher, options.split)
    options = in_steps(options, images.source)
    val_images = Images(options, teacher, options.val_split)
    run_record.refuse_changed_config(options)
    # An encoder only; the predictor takes the sizes of the decoder.
    fresh = fresh_model(options, images.source)
    config = dataclasses.replace(fresh.config, decoder_target="none")
    base = NecParams(init_weights(config, jax.random.key(options.seed)), config)
    ratio = pooling(config, teacher.config)
    images.open(options.views)
    val_images.open((1,))
    val = val_images.whole(config.image_size, options.val_images)
    check_images(config, val["image"])
    weights = starting_weights(options, base, teacher, images.whole_tokens(_SCALE_SAMPLE), ratio)
    sources: dict[str, Source] = {"train": images.source, "val": val_images.source}
    with run_record.recorded(options, sources) as end:
        trained = loop.fit(
            options,
            prediction(options, config, teacher, ratio),
            lambda: weights,
            weights,
            is_trained,
            images.batches(config.image_size, options.batch),
            val,
        )
        names = ("views", "steps", "batch", "optimiser", "lr")
        facts = {name: getattr(options, name) for name in names} | {
            "teacher": json.loads(teacher.provenance),
            "data": images.source.name,
            "images": len(images.source),
        }
        params = NecParams(
            {"encoder": halved(trained["encoder"]), "bottleneck": base.weights["bottleneck"]},
            config,
            provenance=json.dumps({"distil": facts}, sort_keys=True),
        )
        log.info("making the codec")
        params = with_ladder(params, images, options.calibration_images, options.max_bytes)
        some = evenly_spread(val["image"], _CODED)
        end(params, lambda: nec_jax.encode(params, some))


def is_trained(path: str) -> bool:
    """Whether a weight trains: all but the teacher's and the scale of its tokens."""
    return path.startswith(("encoder/", "predictor/"))


def halved(weights: Weights) -> Weights:
    """Weights rounded to float16, so that `nec_jax.save` writes half the bytes."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), weights)


def with_ladder(params: NecParams, images: Images, limit: int, max_bytes: int) -> NecParams:
    """The model with a codec of all qualities, fitted to the embeddings of whole training images.

    The class token has the weight of all tokens of the grid together, because it says as much about
    the image. The default quality is the highest that needs at most `max_bytes` per image on
    average. If all need more, it is the lowest, with a warning.
    """
    side = params.config.image_size
    y = nec_jax.latents(params, read_all(images.source, side, limit=limit).images)
    grid = params.config.grid(side, side)
    ladder = fit_transform(y, grid, class_weight=grid[0] * grid[1])
    some = evenly_spread(y, _CODED)

    def size(quality: int) -> float:
        return float(np.mean([len(ladder.at(quality).encode(one, grid)) for one in some]))

    fit = [quality for quality in range(ladder.num_qualities) if size(quality) <= max_bytes]
    if not fit:
        log.warning(
            f"even the lowest quality needs {size(0):.0f} bytes per image, more than --max-bytes "
            f"{max_bytes}: it becomes the default quality"
        )
    return dataclasses.replace(
        params, codec=dataclasses.replace(ladder, quality=max(fit, default=0))
    )


class Predictor(nn.Module):
    """Tokens of the student -> predicted tokens of the teacher, standardised."""

    config: ModelConfig
    channels: int
    depth: int

    @nn.compact
    def __call__(
        self, tokens: jax.Array, grid: tuple[int, int], kept: jax.Array | None = None
    ) -> jax.Array:
        """[B, (1 +) K, D] -> [B, (1 +) T, channels]; `kept` as in `Encoder`."""
        # As wide as the encoder, so that its tokens reach the prediction without loss.
        c = dataclasses.replace(
            self.config, decoder_width=self.config.width, decoder_heads=self.config.heads
        )
        x = DecoderStem(c, name="stem")(tokens, grid, kept)
        for i in range(self.depth):
            x = Block(c.heads, c.mlp_ratio, precision=c.precision, name=f"block_{i}")(x)
        x = layer_norm("norm", c.epsilon)(x)
        return Dense(self.channels, precision=c.precision, name="pred")(x)


def starting_weights(
    options: Distil, base: NecParams, teacher: NecParams, sample: NDArray, ratio: int
) -> Weights:
    """Student and predictor, which train; the teacher's last part, and the scale of its tokens.

    Args:
      sample: [N, n, width], the teacher's tokens of some images, as cached.
      ratio: see `pooling`.
    """
    config, channels = base.config, teacher.config.embedding_width
    grid = config.grid(config.image_size, config.image_size)
    shape = (1, grid[0] * grid[1] + config.code_class_token, config.embedding_width)
    tokens = jnp.zeros(shape, jnp.float32)
    start = passed_blocks(teacher.config)
    rest = {
        name: part
        for name, part in teacher.weights["encoder"].items()
        if name == "norm" or (name.startswith("block_") and int(name[6:]) >= start)
    }
    goal = np.asarray(jax.jit(lambda rows: pooled(teacher.config, rest, rows, ratio))(sample))
    first = goal.shape[1] - grid[0] * grid[1]
    predictor: Any = Predictor(config, channels, options.predictor).init(
        jax.random.key(options.seed), tokens, grid
    )
    return {
        "encoder": base.weights["encoder"],
        "predictor": predictor["params"],
        "teacher": rest,
        "scale": {
            "class": feature_scale(goal[:, :1]) if first else {},
            "grid": feature_scale(goal[:, first:]),
        },
    }


def prediction(options: Distil, config: ModelConfig, teacher: NecParams, ratio: int) -> Objective:
    """Smooth L1 between predicted and teacher tokens; class token and grid weighted apart."""
    hidden = options.mask_ratio or 0.0
    grid = config.grid(config.image_size, config.image_size)
    count = grid[0] * grid[1]

    def standard(y: jax.Array, scale: Weights) -> jax.Array:
        return (y - scale["mean"]) / scale["std"]

    def measure(weights: Weights, batch: Batch, keys: jax.Array) -> Metrics:
        goal = pooled(teacher.config, weights["teacher"], batch["tokens"], ratio)
        kept = random_masking(keys, count, hidden)[0] if hidden else None
        y = latents(config, weights, batch["image"], kept)
        module = Predictor(config, teacher.config.embedding_width, options.predictor)
        out: Any = module.apply({"params": weights["predictor"]}, y, grid, kept)
        wanted = standard(goal[:, -count:], weights["scale"]["grid"])
        cells = jnp.mean(optax.huber_loss(out[:, -count:], wanted))  # smooth L1, its other name
        metrics = {"loss": cells, "grid": cells}
        if weights["scale"]["class"] and config.code_class_token:
            first = standard(goal[:, 0], weights["scale"]["class"])
            one = jnp.mean(optax.huber_loss(out[:, 0], first))
            part = options.class_weight
            metrics = {"loss": part * one + (1 - part) * cells, "grid": cells, "class": one}
        return metrics

    return measured_alike(measure)
