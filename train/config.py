"""The configurations of training runs, as frozen dataclasses that are also command lines."""

import json
from dataclasses import asdict, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, Suppress, arg


class OptionsError(ValueError):
    """Options that do not go together; the message says what to change."""


def flag(name: str) -> str:
    """How the command line spells a field."""
    return "--lambda" if name == "lam" else f"--{name.replace('_', '-')}"


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON has them, by field."""
    return json.loads(json.dumps(asdict(options), default=str))


def deciding(options: dict[str, Any]) -> dict[str, Any]:
    """What results follow from, of options as `plain` has them.

    Left out is what may change between two starts of a run, rounding apart: where things lie, how
    often they are saved, how many images are taken at a time. Of a cache it counts whether there
    is one.
    """
    free = ("workdir", "out", "checkpoint_every", "microbatch", "cache_gb")
    kept = {name: value for name, value in options.items() if name not in free}
    return kept | ({"cache": options["cache"] is not None} if "cache" in options else {})


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every training run has."""

    data: str = ""
    """Images: a folder, a folder with split.csv, tfds:NAME, or blue-marble."""
    workdir: Path = Path("runs/train")
    """Where checkpoints, metrics and the model go. The same command goes on where it stopped."""
    split: str = "train"
    """Split to train on; `all` for the whole data set."""
    val_split: str = "val"
    """Split to validate on."""
    images: int | None = None
    """At most this many training images, evenly spread; all if not given."""
    chip: int = 256
    """Side of the windows that large images are cut into, pixels."""
    steps: int = 1000
    """Optimiser steps."""
    epochs: int | None = None
    """Passes over the training images, instead of --steps."""
    batch: int = 64
    """Images a step, over all devices."""
    microbatch: int | None = None
    """Images at a time, over all devices, if memory is short of a whole batch: gradients add up."""
    lr: float = 1.5e-4
    """Peak learning rate; cosine to zero."""
    warmup: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """AdamW weight decay, of matrices only."""
    mask_ratio: float | None = None
    """Part of the patches hidden from the encoder; if not given, 0.75, or 0 with features."""
    init: str = ""
    """Model to start from: the path of its file."""
    arch: str | None = None
    """Architecture of a fresh model: vit-ti, vit-s, vit-b, vit-l, vit-h; or what --init must be."""
    image_size: int | None = None
    """Side of the images, pixels; 128, or that of --init."""
    patch: int | None = None
    """Side of a patch, pixels, if other than the architecture's."""
    depth: int | None = None
    """Encoder blocks, if other than the architecture's."""
    proxy: Literal["pixels", "features"] | None = None
    """What distortion compares: hidden pixels, or the embedding of the model that is started from. If not given, what the model's decoder predicts."""  # noqa: E501
    bands: tuple[str, ...] = ()
    """Bands of the images, in order, NAME or NAME=BAND of the model's; those without one start from the mean of the others."""  # noqa: E501
    decoder_depth: int | None = None
    """Blocks of a new decoder, if other than the architecture's (1 for features)."""
    code_class_token: bool | None = None
    """Whether the class token is coded; yes, or as --init has it."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    """Of matrix products, in training and in coding; float32, or that of --init. bfloat16 is for a GPU or TPU."""  # noqa: E501
    val_images: int = 512
    """At most this many validation images, evenly spread."""
    val_every: int = 500
    """Steps between validations."""
    log_every: int = 20
    """Steps between lines of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the newest two are kept."""
    seed: int = 0
    """Root of all randomness."""

    def __post_init__(self) -> None:
        whole = ("chip", "steps", "batch", "val_images", "val_every", "log_every")
        for name in (*whole, "checkpoint_every", "images", "epochs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise OptionsError(f"{flag(name)} must be 1 or more")
        if self.microbatch is not None and (self.microbatch < 1 or self.batch % self.microbatch):
            raise OptionsError(f"--microbatch {self.microbatch} must divide --batch {self.batch}")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise OptionsError("--mask-ratio must be at least 0 and below 1")
        if self.decoder_depth is not None and self.decoder_depth < 1:
            raise OptionsError("--decoder-depth must be 1 or more")
        if not self.lr > 0 or self.warmup < 0 or self.weight_decay < 0:
            raise OptionsError("--lr must be positive, --warmup and --weight-decay not negative")
        own = ("image_size", "patch", "depth")
        given = [name for name in own if getattr(self, name) is not None]
        if self.init and given:
            flags = ", ".join(flag(name) for name in given)
            raise OptionsError(f"{flags}: these come from --init")


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Pre-train a masked autoencoder on images (He 2022), or the decoder of a model (--init)."""

    trainable: str = "mae"
    """Which parameters train: mae (all), decoder, or another set of `compress`."""
    lr: float = 1e-3
    """Peak learning rate; cosine to zero."""
    warmup: int = 100
    """Steps of linear warm-up."""


@dataclass(frozen=True, kw_only=True)
class Compress(Training):
    """Adapt a pre-trained model to compression: `lambda * mse + bits_per_element`."""

    lam: Annotated[float, arg(name="lambda")] = 10.0
    """Weight of the distortion: a larger one costs more bytes and loses less. The paper's 1e7, 1e8, 1e9, 1e10 are about 1.02, 10.2, 102, 1017 here (its rate is a sum over a batch)."""  # noqa: E501
    codec: Literal["per-channel", "transform"] = "per-channel"
    """What is coded: each channel of each token on its own, or the coefficients of a transform of the token grid, at many rates."""  # noqa: E501
    rounding: Literal["noise", "straight-through", "soft"] = "straight-through"
    """What the decoder sees in training; the rate always sees noise."""
    trainable: str = "paper+gain"
    """Which parameters train: paper, paper+gain, late (last block, decoder), density, all; or patterns of paths between commas: 'encoder/block_{last}/.*,encoder/norm/.*,bottleneck/.*'."""  # noqa: E501
    gain: Literal["calibrated", "identity"] | float = "calibrated"
    """The gain before rounding at the start: chosen on data for this lambda; so many symbols in a channel's standard deviation; or one (paper)."""  # noqa: E501
    density_lr: float = 1e-3
    """Peak learning rate of the density and the gains."""
    calibration_images: int = 1024
    """Whole training images that the tables are calibrated on after training."""
    cache: Path | None = None
    """Folder for the activations of the frozen first blocks, which are then computed once an image (features, nothing hidden; --trainable late). Runs may share it."""  # noqa: E501
    cache_gb: float = 20.0
    """What that folder may take, 1e9 bytes each."""
    views: int = 1
    """With --cache: how many versions of each image, the first whole, the others cropped at random."""  # noqa: E501
    describe: bool = False
    """Print parameters, tokens and FLOPs as JSON, and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lam > 0 and self.density_lr > 0):
            raise OptionsError("--lambda and --density-lr must be positive")
        if self.codec == "transform" and self.gain == "identity":
            raise OptionsError("--gain identity is not for --codec transform: leave it out")
        if not isinstance(self.gain, str) and not self.gain > 0:
            raise OptionsError(f"--gain {self.gain:g} must be positive")
        if self.calibration_images < 1 or self.views < 1:
            raise OptionsError("--calibration-images and --views must be 1 or more")
        if self.views > 1 and self.cache is None:
            raise OptionsError("--views goes with --cache: without it each crop is a new one")
        coded = ("paper", "paper+gain", "late", "density", "all")  # the rate depends on these
        if self.trainable not in coded and "/" not in self.trainable:
            raise OptionsError(
                f"--trainable {self.trainable}: choose from {', '.join(coded)}, or give patterns "
                "of paths between commas, such as 'encoder/block_{last}/.*,bottleneck/.*'"
            )


HeadKind = Literal["linear", "attention", "conv"]
HEADS: dict[str, tuple[HeadKind, ...]] = {
    "classification": ("linear", "attention"),
    "segmentation": ("conv",),
}
"""The kinds of heads for a task."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Rate-distortion study: real bytes against the scores of heads on what was decoded."""

    models: tuple[str, ...] = ()
    """Compressed models: paths, one a lambda."""
    base: str = ""
    """The uncompressed model of the baselines: what the models were adapted from. Alone, only the baselines are measured."""  # noqa: E501
    data: str = ""
    """Labelled images: a folder with split.csv, tfds:NAME, blue-marble, a Potsdam folder."""
    cache: Path | None = None
    """Folder of activations that the models were trained with (compress --cache), to read them instead of passing every image through the frozen blocks. float16: the bytes differ a little."""  # noqa: E501
    cache_gb: float = 20.0
    """What that folder may take, 1e9 bytes each."""
    out: Path = Path("runs/evaluate")
    """Folder for report.json, report.md and rate_distortion.png."""
    task: Literal["classification", "segmentation"] = "classification"
    """What the heads predict."""
    split: str = "val"
    """Split that is scored. Choose on val; report test once."""
    chip: int = 256
    """Side of the windows that large images are cut into, pixels."""
    image_size: int | None = None
    """Side that images are brought to, pixels, if other than the models'."""
    limit: int | None = None
    """At most this many images a split, evenly spread."""
    seeds: int = 3
    """Heads are trained this many times."""
    epochs: int | None = None
    """Passes of a head over the training split, if other than its default."""
    baselines: bool = True
    """Whether to measure the baselines too."""
    uqe_bits: tuple[int, ...] = field(default=(2, 3, 5, 8))
    """Bits of the uniformly quantised embeddings."""
    rates: tuple[int, ...] = ()
    """Rates of models that were trained through a transform, 0 the smallest; if none is named, the one of their training."""  # noqa: E501
    transform_rates: tuple[int, ...] = ()
    """Rates of a transform that is fitted to the base's embeddings (coder.fit), 0 the smallest."""
    pca: tuple[int, ...] = ()
    """Principal components that are kept of each token, a byte each; with and without zstd."""
    pq: tuple[int, ...] = ()
    """Bytes of each token by product quantisation (faiss); with and without zstd."""
    binary: bool = False
    """Whether to measure a bit a channel; with and without zstd."""
    jpeg2000: tuple[float, ...] = field(default=(25.0, 50.0, 100.0, 200.0))
    """JPEG 2000 compression ratios."""
    heads: tuple[HeadKind, ...] = ()
    """Only these heads; all that fit the task if none is named."""
    decoder_heads: bool = True
    """Whether the last of them is also put behind the model's first decoder block, if it has one (slow)."""  # noqa: E501

    def __post_init__(self) -> None:
        if min((*self.transform_rates, 0)) < 0 or min((*self.pca, *self.pq, 1)) < 1:
            raise OptionsError("--transform-rates must be 0 or more, --pca and --pq 1 or more")
        if self.pq and find_spec("faiss") is None:
            raise OptionsError("--pq needs faiss: pip install nec-jax[faiss]")
        if self.seeds < 1 or (self.epochs is not None and self.epochs < 1):
            raise OptionsError("--seeds and --epochs must be 1 or more")
        if self.image_size is not None and self.image_size < 1:
            raise OptionsError("--image-size must be 1 or more")
        if self.heads and not set(self.heads) & set(HEADS[self.task]):
            raise OptionsError(f"--heads {' '.join(self.heads)}: none is for {self.task}")
        if self.split in ("train", "all"):
            raise OptionsError(f"--split {self.split} would score images that the heads learned on")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Compress and evaluate every point of a study: `sweep NAME` or `sweep FILE.toml`."""

    workdir: Path = Path("runs/sweep")
    """Where results.csv and the points' runs go. The same command goes on where it stopped."""
    compress: Compress = field(default_factory=Compress)
    """What all points share in training."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """How every point is measured."""
    axes: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Options of `compress` and the values that they take, in all combinations, ..."""
    points: Suppress[list[dict[str, Any]]] = field(default_factory=list)
    """... at each of these settings of other options."""

    def __post_init__(self) -> None:
        for table, names in (
            ("compress", ("workdir", "describe")),
            ("evaluate", ("models", "base", "out")),
        ):
            default = Compress() if table == "compress" else Evaluate()
            for name in names:
                if getattr(getattr(self, table), name) != getattr(default, name):
                    raise OptionsError(f"{table}.{name}: a sweep sets it by itself, leave it out")
        for name, values in self.axes.items():
            if not (isinstance(values, list) and values):
                raise OptionsError(f"axis {name}: give a list of values")
        if not (isinstance(self.points, list) and all(isinstance(p, dict) for p in self.points)):
            raise OptionsError("points: give tables, [[points]]")
        for name in [*self.axes, *(name for point in self.points for name in point)]:
            if name not in AXES:
                raise OptionsError(f"{name} cannot be an axis: choose from {', '.join(AXES)}")
        if twice := [name for name in self.axes if any(name in point for point in self.points)]:
            raise OptionsError(f"{', '.join(twice)}: in [axes] or in [[points]], not in both")


AXES = {
    "lambda" if f.name == "lam" else f.name: f.name
    for f in fields(Compress)
    if f.name not in ("workdir", "arch", "image_size", "patch", "depth", "describe")
}
"""What a study may vary, and its field's name: `compress`'s options, but those of fresh models."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The tables and plots of a sweep: `report RESULTS.csv`."""

    results: Positional[Path] = Path("results.csv")
    """The table that `sweep` wrote."""
    out: Path | None = None
    """Folder for report.md, rate_distortion.png and .pdf; the table's if not given."""
    x: str = "bytes_per_image"
    """Column on the horizontal axis."""
    by: tuple[str, ...] = ()
    """Axes that have a line for each of their values; if none is named, all that vary but lambda and seed."""  # noqa: E501
