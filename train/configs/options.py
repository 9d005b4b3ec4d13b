"""The options of training runs, as frozen dataclasses that are also command lines."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from coder.errors import printable


class OptionsError(ValueError):
    """Options that do not go together; the message says what to change."""

    def __str__(self) -> str:
        return printable(super().__str__())


def flag(name: str) -> str:
    """How the command line spells a field."""
    return "--lambda" if name == "lam" else f"--{name.replace('_', '-')}"


def _check(options: Any, names: tuple[str, ...], right: Callable[[Any], bool], what: str) -> None:
    """Raises OptionsError that names the first of these fields with a value that is not right."""
    for name in names:
        value = getattr(options, name)
        values = value if isinstance(value, tuple) else (value,)
        if value is not None and not (values and all(map(right, values))):
            raise OptionsError(f"{flag(name)} must be {what}")


def _is_positive(value: float) -> bool:
    return 0 < value < inf


def _check_counts(options: Any, *names: str) -> None:
    _check(options, names, lambda n: n >= 1, "1 or more")


def check_cache(options: Any) -> None:
    """Raises OptionsError unless `--cache-gb` is a size, and of a cache that is there."""
    _check(options, ("cache_gb",), lambda x: x > 0, "positive")
    if options.cache_gb is not None and options.cache is None:
        raise OptionsError("--cache-gb goes with --cache: pass both, or leave it out")


def refuse_warmup(options: "Training", steps: int) -> None:
    """Raises OptionsError if a warm-up that was asked for is longer than the run.

    The default may be: of a short run it is cut off.
    """
    if steps < options.warmup != type(options).warmup:
        raise OptionsError(
            f"--warmup {options.warmup} is longer than the run of {steps} steps, which would never "
            "reach --lr: lower it, or raise --steps"
        )


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON has them, by field."""
    return json.loads(json.dumps(asdict(options), default=str))


def deciding(options: dict[str, Any]) -> dict[str, Any]:
    """What results follow from, of options as `plain` has them.

    Left out is what may change between two starts of a run, rounding apart: where things lie, how
    often they are saved, how many images are taken at a time. What counts for a cache is whether
    there is one, not where. No chip counts as 256, which was the default once: where the two
    differ, so does the fingerprint of the data.
    """
    free = ("workdir", "out", "overwrite", "checkpoint_every", "microbatch", "cache_gb")
    kept = {name: value for name, value in options.items() if name not in free}
    if "chip" in options:
        kept["chip"] = options["chip"] or 256
    return kept | ({"cache": options["cache"] is not None} if "cache" in options else {})


Gain = Literal["calibrated", "identity", "any"] | float


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
    chip: int | None = None
    """Side of the windows that every image is cut into, pixels. If not given, whole images, and windows of 256 where there are masks, and of blue-marble. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
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
    """Weight decay, of matrices only."""
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
        _check_counts(self, "chip", "steps", "batch", "val_images", "val_every", "log_every")
        _check_counts(self, "checkpoint_every", "images", "epochs", "decoder_depth")
        _check(self, ("lr",), _is_positive, "positive and finite")
        _check(self, ("warmup", "weight_decay"), lambda x: 0 <= x < inf, "0 or more, and finite")
        if self.epochs is None:  # else the steps are not known yet: `in_steps`
            refuse_warmup(self, self.steps)
        if self.microbatch is not None and (self.microbatch < 1 or self.batch % self.microbatch):
            raise OptionsError(f"--microbatch {self.microbatch} must divide --batch {self.batch}")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise OptionsError("--mask-ratio must be at least 0 and below 1")
        own = ("image_size", "patch", "depth")
        given = [name for name in own if getattr(self, name) is not None]
        if self.init and given:
            flags = ", ".join(flag(name) for name in given)
            raise OptionsError(f"{flags}: these come from --init, leave them out")


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
    """What the decoder sees in training. The rate sees noise, but that of straight-through through a transform."""  # noqa: E501
    trainable: str = "paper+gain"
    """Which parameters train: paper, paper+gain, late (last block, decoder), density, all; or patterns of paths between commas: 'encoder/block_{last}/.*,encoder/norm/.*,bottleneck/.*'."""  # noqa: E501
    gain: Gain = "calibrated"
    """The gain before rounding at the start: chosen on data for this lambda; so many symbols in a channel's standard deviation; or one (paper). With a transform, any: another one for each image, so that a decoder serves all rates."""  # noqa: E501
    density_lr: float = 1e-3
    """Peak learning rate of the density and the gains."""
    calibration_images: int = 1024
    """Whole training images that the tables are calibrated on after training."""
    cache: Path | None = None
    """Folder for the activations of the frozen first blocks, which are then computed once an image (features, nothing hidden; --trainable late). Runs may share it."""  # noqa: E501
    cache_gb: float | None = None
    """What that folder may take, 1e9 bytes each; 20 if not given."""
    views: int = 1
    """With --cache: how many versions of each image, the first whole, the others cropped at random."""  # noqa: E501
    describe: bool = False
    """Print parameters, tokens and FLOPs as JSON, and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self, ("lam", "density_lr"), _is_positive, "positive and finite")
        _check_counts(self, "calibration_images", "views")
        if self.gain == ("identity" if self.codec == "transform" else "any"):
            raise OptionsError(f"--gain {self.gain} is not for --codec {self.codec}: leave it out")
        if not isinstance(self.gain, str) and not _is_positive(self.gain):
            raise OptionsError(f"--gain {self.gain:g} must be positive and finite")
        check_cache(self)
        if self.views > 1 and self.cache is None:
            raise OptionsError("--views goes with --cache: without it each crop is a new one")
        coded = ["paper", "paper+gain", "late", "density", "all"]  # the rate depends on these
        coded += ["decoder"] if self.codec == "transform" else []  # which needs no training
        if self.trainable not in coded and "/" not in self.trainable:
            raise OptionsError(
                f"--trainable {self.trainable}: choose from {', '.join(coded)}, or give patterns "
                "of paths between commas, such as 'encoder/block_{last}/.*,bottleneck/.*'"
            )


@dataclass(frozen=True, kw_only=True)
class Distil(Training):
    """Train an encoder from nothing to predict what a larger model makes of the same images.

    The teacher is frozen: its tokens are computed once an image and kept in --cache.
    """

    data: str = ""
    """Images, as elsewhere; several data sets between commas."""
    chip: int | None = None
    """Side of the windows that every image is cut into, pixels; of several data sets, blue-marble and those with masks are cut, and the others' images stay whole, as those of TFDS always do. If not given, as elsewhere. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
    images: int | None = None
    """At most this many training images of each data set, evenly spread; all if not given."""
    val_images: int = 512
    """At most this many validation images, and of each data set."""
    teacher: str = ""
    """The model to learn from: the path of its file."""
    cache: Path = Path("runs/cache")
    """Folder for the teacher's tokens, which are computed once an image. Runs may share it."""
    cache_gb: float | None = None
    """What that folder may take, 1e9 bytes each; 20 if not given."""
    views: tuple[int, ...] = (1,)
    """How many versions of each image: the first whole, the others crops in other colours, half of them mixed with another image. One number, or one for each data set."""  # noqa: E501
    mask_ratio: float | None = None
    """Part of the patches hidden from the encoder; 0 if not given."""
    predictor: int = 1
    """Blocks between the encoder and the prediction, as wide as it; they are not kept."""
    class_weight: float = 0.5
    """Part of the loss that the class token has; the tokens of the grid share the rest."""
    calibration_images: int = 2048
    """Whole training images that the codec is fitted to after training."""
    max_bytes: int = 500
    """Bytes an image, on average, of the rate that is coded unless another one is asked for."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """Of the matrices; all else is AdamW's."""
    lr: float = 1.5e-3
    """Peak learning rate; cosine to zero."""
    warmup: int = 200
    """Steps of linear warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init or self.proxy is not None:
            raise OptionsError(
                "--init and --proxy: a distilled model starts from nothing, leave them out"
            )
        if self.decoder_depth is not None:
            raise OptionsError(
                "--decoder-depth: there is no decoder; --predictor is how many blocks predict"
            )
        check_cache(self)
        _check_counts(self, "views", "calibration_images", "max_bytes")
        _check(self, ("predictor",), lambda n: n >= 0, "0 or more")
        _check(self, ("class_weight",), lambda x: 0 <= x <= 1, "from 0 to 1")
