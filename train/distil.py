"""`python -m train.main distil`: an encoder learns to predict a larger model's tokens.

A masked autoencoder of pixels needs millions of images; the tokens of a teacher that has seen them
can be learned from some thousands. The teacher's embedding of each image is computed once and kept
(`train.prefix`). The student sees the same image, at its own size and turned or mirrored as the
teacher's grid of tokens is, and a few blocks behind it predict that grid, averaged to the
student's. Compared is smooth L1 (Girshick 2015, eq. 3) of standardised channels, as in the
distillation of features by Wei 2022 (arXiv 2205.14141).
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import nec_jax
from nec_jax.api import check_images
from nec_jax.calibration import fit_transform
from nec_jax.config import ModelConfig
from nec_jax.dense import Dense
from nec_jax.mae import DecoderStem, random_masking
from nec_jax.nec import Weights, init_weights, latents
from nec_jax.params import NecParams
from nec_jax.vit import Block, layer_norm
from train import loop, processes, run_record
from train.config import Distil, OptionsError
from train.data import at_most, open_source, read_all, spread
from train.data.joined import Joined
from train.data.record import CorruptImageError
from train.initial import feature_scale, fresh_model
from train.inputs import in_steps
from train.objective import Batch, Metrics, Objective
from train.prefix import Prefix, open_prefix, view_of
from train.summary import print_summary

_SCALE_SAMPLE = 512  # images whose tokens the targets are standardised by
_CODED = 64  # images that the rate is chosen by, and that are coded for real in the end
SYMMETRIES = 8  # of the square


def run(options: Distil) -> None:
    """Train and write `model.safetensors`, an encoder, in the work folder."""
    processes.print_devices()
    if not options.teacher:
        raise OptionsError("no teacher: pass --teacher (a model file, as nec convert makes it)")
    teacher = nec_jax.load(options.teacher)
    images = Images(options, teacher, options.split)
    options = in_steps(options, images.source)
    val_images = Images(options, teacher, options.val_split)
    run_record.refuse_changed_config(options)
    base = _fresh(options, images.source)
    config = base.config
    ratio = _pooling(config, teacher.config)
    images.open(options.views)
    val_images.open((1,))
    val = val_images.whole(config.image_size, options.val_images)
    check_images(config, val["image"])
    weights = starting_weights(options, base, teacher, images.whole_tokens(_SCALE_SAMPLE), ratio)
    sources = {"train": images.source, "val": val_images.source}
    with run_record.recorded(options, sources) as finish_record:
        trained = loop.fit(
            options,
            prediction(options, config, teacher, ratio),
            lambda: weights,
            weights,
            lambda path: path.startswith(("encoder/", "predictor/")),
            images.batches(config.image_size, options.batch),
            val,
        )
        params = NecParams(
            {"encoder": halved(trained["encoder"]), "bottleneck": base.weights["bottleneck"]},
            config,
            provenance=json.dumps(facts(options, teacher, images.source), sort_keys=True),
        )
        print("making the codec", file=sys.stderr)
        params = with_ladder(params, images, options.calibration_images, options.most_bytes)
        path = options.workdir / "model.safetensors"
        if processes.is_main_process():
            nec_jax.save(params, path)
            grid = config.grid(config.image_size, config.image_size)
            y = nec_jax.latents(params, val["image"][:_CODED])
            print_summary(
                finish_record(),
                path,
                images.source,
                params,
                [params.codec.encode(one, grid) for one in y],
            )


def facts(options: Distil, teacher: NecParams, source: Joined) -> dict[str, Any]:
    """What the model file says of how it was made."""
    run = {name: getattr(options, name) for name in ("views", "steps", "batch", "optimiser", "lr")}
    made = {"teacher": json.loads(teacher.provenance), "data": source.name, "images": len(source)}
    return {"distil": made | run}


def halved(weights: Weights) -> Weights:
    """Rounded to what float16 holds; `nec_jax.save` then writes half of the bytes."""
    return jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), weights)


def with_ladder(params: NecParams, images: "Images", limit: int, most_bytes: int) -> NecParams:
    """The model with a codec of all rates, fitted to the embeddings of whole training images.

    Coded is, unless `encode` is told a rate, at the largest that needs at most so many bytes on
    average.
    """
    pairs = read_all(images.source, params.config.image_size, limit=limit).images
    y = nec_jax.latents(params, pairs)
    side = params.config.image_size
    grid = params.config.grid(side, side)
    ladder = fit_transform(y, grid)
    some = y[:: max(1, len(y) // _CODED)]

    def size(rate: int) -> float:
        return float(np.mean([len(ladder.at(rate).encode(one, grid)) for one in some]))

    fit = [rate for rate in range(ladder.rates) if size(rate) <= most_bytes]
    return dataclasses.replace(
        params, codec=dataclasses.replace(ladder, rate_index=max(fit, default=0))
    )


def _fresh(options: Distil, source: Joined) -> NecParams:
    """An encoder alone, of the decoder's sizes that the predictor takes."""
    base = fresh_model(options, source)
    config = dataclasses.replace(base.config, decoder_target="none")
    weights = init_weights(config, jax.random.key(options.seed))
    return dataclasses.replace(base, weights=weights, config=config)


def _pooling(student: ModelConfig, teacher: ModelConfig) -> int:
    """How many of the teacher's tokens, in each direction, make one of the student's."""
    mine, theirs = (c.grid(c.image_size, c.image_size)[0] for c in (student, teacher))
    if theirs % mine:
        fit = [n for n in range(1, theirs + 1) if theirs % n == 0]
        raise OptionsError(
            f"the teacher has {theirs} x {theirs} tokens, which do not make the student's {mine} x "
            f"{mine}: choose an --image-size of " + ", ".join(str(n * student.patch) for n in fit)
        )
    return theirs // mine


class Predictor(nn.Module):
    """Tokens of the student -> what it takes the teacher's to be, standardised."""

    config: ModelConfig
    channels: int
    depth: int

    @nn.compact
    def __call__(
        self, tokens: jax.Array, grid: tuple[int, int], kept: jax.Array | None = None
    ) -> jax.Array:
        """[B, (1 +) K, D] -> [B, (1 +) T, channels]; `kept` as in `Encoder`."""
        # As wide as the encoder: nothing is lost on the way from its tokens to the prediction.
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
    """Student and predictor, which train; the rest of the teacher, and the scale of its tokens.

    Args:
      sample: [N, n, width], the teacher's tokens of some images, as cached.
      ratio: see `_pooling`.
    """
    config, channels = base.config, teacher.config.embedding_width
    grid = config.grid(config.image_size, config.image_size)
    tokens = jnp.zeros((1, grid[0] * grid[1] + config.code_class_token, config.embedding_width))
    start = _blocks(teacher.config)
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


def _blocks(config: ModelConfig) -> int:
    """How many blocks the cached tokens have passed: all that the embedding has in common."""
    return min(config.embedding_blocks or (config.depth,))


def pooled(config: ModelConfig, rest: Weights, tokens: jax.Array, ratio: int) -> jax.Array:
    """The teacher's embedding [B, (1 +) T, D] of cached tokens, its grid averaged by `ratio`."""
    y = latents(config, {"encoder": rest}, tokens, start=_blocks(config))
    side = config.grid(config.image_size, config.image_size)[0] // ratio
    first = y.shape[1] - (side * ratio) ** 2
    cells = y[:, first:].reshape(len(y), side, ratio, side, ratio, -1).mean((2, 4))
    return jnp.concatenate([y[:, :first], cells.reshape(len(y), side * side, -1)], axis=1)


def prediction(options: Distil, config: ModelConfig, teacher: NecParams, ratio: int) -> Objective:
    """Smooth L1 between predicted and standardised tokens, class token and grid weighed apart."""
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
        cells = jnp.mean(_smooth_l1(out[:, -count:] - wanted))
        metrics = {"loss": cells, "grid": cells}
        if weights["scale"]["class"] and config.code_class_token:
            first = standard(goal[:, 0], weights["scale"]["class"])
            one = jnp.mean(_smooth_l1(out[:, 0] - first))
            part = options.class_weight
            metrics = {"loss": part * one + (1 - part) * cells, "grid": cells, "class": one}
        return metrics

    def loss(
        weights: Weights, batch: Batch, keys: jax.Array, progress: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        metrics = measure(weights, batch, keys)
        return metrics["loss"], metrics

    return Objective(loss, measure)


def _smooth_l1(error: jax.Array) -> jax.Array:
    size = jnp.abs(error)
    return jnp.where(size < 1, 0.5 * size**2, size - 0.5)


def turned(grid: NDArray, symmetry: int) -> NDArray:
    """One of the eight symmetries of the square, of [side, side, ...]."""
    grid = np.rot90(grid, symmetry % 4)
    return grid[:, ::-1] if symmetry >= 4 else grid


class Images:
    """The images of one split of all data sets, and the teacher's tokens of each of their views."""

    def __init__(self, options: Distil, teacher: NecParams, split: str):
        if not options.data:
            raise OptionsError("no data: pass --data (folders, tfds:NAME ..., between commas)")
        limit = options.images if split == options.split else options.val_images
        self._parts = [
            at_most(open_source(name.strip(), split, chip=options.chip), limit)
            for name in options.data.split(",")
        ]
        self._options, self._teacher = options, teacher
        self._prefixes: list[Prefix] = []
        self._views: list[tuple[int, int, int]] = []  # data set, view, image
        self.source = Joined(self._parts)

    def open(self, views: tuple[int, ...]) -> None:
        """Read the teacher's tokens of so many views, or compute those that are not there."""
        options, sets = self._options, len(self._parts)
        if len(views) not in (1, sets):
            raise OptionsError(f"--views {' '.join(map(str, views))}: of {sets} data sets")
        views = views * (sets if len(views) == 1 else 1)
        self._prefixes = [
            open_prefix(
                options.cache,
                options.cache_gb,
                self._teacher,
                _blocks(self._teacher.config),
                part,
                views=count,
                seed=options.seed,
            )
            for part, count in zip(self._parts, views, strict=True)
        ]
        self._views = [
            (part, view, place)
            for part, source in enumerate(self._parts)
            for view in range(views[part])
            for place in range(len(source))
        ]

    def __len__(self) -> int:
        """Views of all images."""
        return len(self._views)

    def pair(self, part: int, view: int, place: int, size: int) -> dict[str, NDArray] | None:
        """One view of an image of a data set: {"image": [size, size, C], "tokens": [n, width]}.

        None for an image that cannot be read.
        """
        tokens = self._prefixes[part].row(view, place)
        if np.isnan(tokens[0, 0]):
            return None
        try:
            image = self._parts[part][place]["image"]
        except CorruptImageError:
            return None
        return {
            "image": view_of(image, size, view, self._options.seed, place),
            "tokens": np.asarray(tokens),
        }

    def whole_tokens(self, limit: int) -> NDArray[np.float16]:
        """The teacher's tokens of at most `limit` whole images, evenly spread."""
        places = map(self.source.place, spread(len(self.source), limit))
        rows = [self._prefixes[part].row(0, place) for part, place in places]
        return np.stack([row for row in rows if not np.isnan(row[0, 0])])

    def whole(self, size: int, limit: int) -> dict[str, NDArray]:
        """At most `limit` whole images and their tokens, evenly spread."""
        places = map(self.source.place, spread(len(self.source), limit))
        pairs = [self.pair(part, 0, place, size) for part, place in places]
        there = [pair for pair in pairs if pair is not None]
        return {name: np.stack([pair[name] for pair in there]) for name in there[0]}

    def batches(self, size: int, batch: int) -> Iterator[dict[str, NDArray]]:
        """Endless shuffled batches, each pair turned at random; resumable."""
        own, index, count = processes.own_share(batch)
        total = len(self)
        order, turns = np.random.SeedSequence([self._options.seed, 1]).generate_state(2)

        def readable(number: int) -> dict[str, NDArray]:
            pairs = (self.pair(*self._views[(number + i) % total], size) for i in range(total))
            return next(pair for pair in pairs if pair is not None)

        def turn(pair: dict[str, NDArray], rng: np.random.Generator) -> dict[str, NDArray]:
            symmetry = int(rng.integers(SYMMETRIES))
            tokens = pair["tokens"]
            side = self._teacher.config.image_size // self._teacher.config.patch
            first = len(tokens) - side * side
            grid = turned(tokens[first:].reshape(side, side, -1), symmetry)
            return {
                "image": np.ascontiguousarray(turned(pair["image"], symmetry)),
                "tokens": np.concatenate([tokens[:first], grid.reshape(side * side, -1)]),
            }

        pairs = grain.MapDataset.range(total).shuffle(seed=int(order)).repeat().map(readable)
        pairs = pairs.random_map(turn, seed=int(turns))
        batches = pairs.batch(own, drop_remainder=True)[index::count]
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(batches.to_iter_dataset(ahead))
