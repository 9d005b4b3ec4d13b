"""The options of training runs: frozen dataclasses, each of them also a command line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from coder.errors import printable


class OptionsError(ValueError):
    """Options that do not go together; the message says what to change."""

    def __str__(self) -> str:
        return printable(super().__str__())


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--lambda" if name == "lam" else f"--{name.replace('_', '-')}"


def check(options: Any, names: Sequence[str], right: Callable[[Any], bool], what: str) -> None:
    """Raise OptionsError for the first of these fields that holds a value that is not `right`."""
    for name in names:
        value = getattr(options, name)
        values = value if isinstance(value, tuple) else (value,)
        if value is not None and not all(map(right, values)):
            raise OptionsError(f"{flag(name)} must be {what}")


def check_counts(options: Any, *names: str) -> None:
    """Raise OptionsError for the first of these fields that holds a number below 1."""
    check(options, names, lambda n: n >= 1, "1 or more")


def check_positive(options: Any, *names: str) -> None:
    """Raise OptionsError for the first of these fields that is not positive and finite."""
    check(options, names, lambda x: 0 < x < inf, "positive and finite")


def check_cache(options: Any) -> None:
    """Raise OptionsError if `--cache-gb` is not positive, or is given without `--cache`."""
    check(options, ["cache_gb"], lambda x: x > 0, "positive")
    if options.cache_gb is not None and options.cache is None:
        raise OptionsError("--cache-gb goes with --cache: pass both, or leave it out")


def refuse_warmup(options: "Training", steps: int) -> None:
    """Raise OptionsError if a warm-up that is not the default is longer than the run.

    The default may be longer: a short run then ends during its warm-up.
    """
    if steps < options.warmup != type(options).warmup:
        raise OptionsError(
            f"--warmup {options.warmup} is longer than the run of {steps} steps, which would never "
            "reach --lr: lower --warmup, or raise --steps"
        )


def plain(options: Any) -> dict[str, Any]:
    """Options as a dict that JSON can hold, by field."""
    return json.loads(json.dumps(asdict(options), default=str))


def deciding(options: dict[str, Any]) -> dict[str, Any]:
    """The options that decide a run's results, from the result of `plain`.

    Leaves out the options that may change when a run is resumed: paths, how often checkpoints are
    saved, and how many images are processed at a time, which changes results by rounding only. Also
    leaves out `describe`, an option of earlier versions. Of the cache, only whether there is one is
    kept. No chip is the same as 256, an earlier default: if the two give other images, the
    fingerprint of the data differs.
    """
    free = ("workdir", "out", "overwrite", "checkpoint_every", "microbatch", "cache_gb", "describe")
    kept = {name: value for name, value in options.items() if name not in free}
    if "chip" in options:
        kept["chip"] = options["chip"] or 256
    return kept | ({"cache": options["cache"] is not None} if "cache" in options else {})


Gain = Literal["calibrated", "identity", "any"] | float


@dataclass(frozen=True, kw_only=True)
class Training:
    """Options of every training run."""

    data: str = ""
    """Images: a folder, a folder with split.csv, tfds:NAME, or blue-marble."""
    workdir: Path = Path("runs/train")
    """Folder for checkpoints, metrics and the model. Run the same command again to resume."""
    split: str = "train"
    """Split to train on; `all` for the whole data set."""
    val_split: str = "val"
    """Split to validate on."""
    images: int | None = None
    """Maximum number of training images, evenly spread; all if not given."""
    chip: int | None = None
    """Cut every image into windows of this side, in pixels. If not given: 256 for blue-marble and data with masks, else whole images. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
    steps: int = 1000
    """Optimiser steps."""
    epochs: int | None = None
    """Passes over the training images, instead of --steps."""
    batch: int = 64
    """Images per step, over all devices."""
    microbatch: int | None = None
    """Images per forward pass, over all devices, if a batch does not fit in memory: gradients are accumulated."""  # noqa: E501
    lr: float = 1.5e-4
    """Peak learning rate; it decays to zero by a cosine."""
    warmup: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.05
    """Weight decay; applies to matrices only."""
    mask_ratio: float | None = None
    """Fraction of the patches hidden from the encoder. If not given: 0.75, or 0 with --proxy features."""  # noqa: E501
    init: str = ""
    """Model file to start from."""
    arch: str | None = None
    """Architecture of a fresh model: vit-ti, vit-s, vit-b, vit-l or vit-h. With --init, the architecture that it must have."""  # noqa: E501
    image_size: int | None = None
    """Side of the images, in pixels. If not given: that of --init, else 128."""
    patch: int | None = None
    """Side of a patch, in pixels; the architecture's if not given."""
    depth: int | None = None
    """Number of encoder blocks; the architecture's if not given."""
    proxy: Literal["pixels", "features"] | None = None
    """What the distortion compares: the hidden pixels, or the embedding of the model in --init. If not given, what the model's decoder predicts."""  # noqa: E501
    bands: tuple[str, ...] = ()
    """Bands of the images, in order. NAME=BAND starts a band from a band of the model; a NAME that the model does not have starts from the mean of the others."""  # noqa: E501
    decoder_depth: int | None = None
    """Number of blocks of a new decoder; the architecture's if not given (1 for features)."""
    code_class_token: bool | None = None
    """Whether to code the class token. If not given: as --init does, else yes."""
    precision: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    """Precision of matrix products, in training and in coding. If not given: that of --init, else float32. bfloat16 is for a GPU or TPU."""  # noqa: E501
    val_images: int = 512
    """Maximum number of validation images, evenly spread."""
    val_every: int = 500
    """Steps between validations."""
    log_every: int = 20
    """Steps between lines of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints; only the newest two are kept."""
    seed: int = 0
    """Random seed of the whole run."""

    def __post_init__(self) -> None:
        check_counts(self, "chip", "steps", "batch", "val_images", "val_every", "log_every")
        check_counts(self, "checkpoint_every", "images", "epochs", "decoder_depth")
        check_counts(self, "image_size", "patch", "depth")
        check_positive(self, "lr")
        check(self, ["warmup", "weight_decay"], lambda x: 0 <= x < inf, "0 or more, and finite")
        check(self, ["mask_ratio"], lambda x: 0 <= x < 1, "at least 0 and below 1")
        if self.epochs is None:  # else the steps are not known yet: `in_steps`
            refuse_warmup(self, self.steps)
        if self.microbatch is not None and (self.microbatch < 1 or self.batch % self.microbatch):
            raise OptionsError(f"--microbatch {self.microbatch} must divide --batch {self.batch}")
        own = ("image_size", "patch", "depth")
        given = [flag(name) for name in own if getattr(self, name) is not None]
        if self.init and given:
            raise OptionsError(f"{', '.join(given)}: these come from --init, leave them out")


@dataclass(frozen=True, kw_only=True)
class Pretrain(Training):
    """Pre-train a masked autoencoder (He 2022), or the decoder of a model (--init)."""

    trainable: str = "mae"
    """Which parameters to train: mae (encoder and decoder), decoder, or a set that `compress --trainable` takes."""  # noqa: E501
    lr: float = 1e-3
    """Peak learning rate; it decays to zero by a cosine."""
    warmup: int = 100
    """Steps of linear warm-up."""


@dataclass(frozen=True, kw_only=True)
class Compress(Training):
    """Adapt a pre-trained model to compression: `lambda * mse + bits_per_element`."""

    lam: Annotated[float, arg(name="lambda")] = 10.0
    """Weight of the distortion: a larger value costs more bytes and loses less. The paper's 1e7, 1e8, 1e9 and 1e10 are about 1.02, 10.2, 102 and 1017 here, because its rate is a sum over the batch."""  # noqa: E501
    codec: Literal["per-channel", "transform"] = "per-channel"
    """What is coded: the channels of each token, or the coefficients of a transform of the token grid, which gives a codec of many qualities."""  # noqa: E501
    rounding: Literal["noise", "straight-through", "soft"] = "straight-through"
    """How training replaces rounding in what the decoder sees. The bits are estimated from values with noise; for straight-through with --codec transform, from the rounded values."""  # noqa: E501
    trainable: str = "paper+gain"
    """Which parameters to train: paper, paper+gain, late (last block and decoder), density or all; or patterns of parameter paths, separated by commas: 'encoder/block_{last}/.*,encoder/norm/.*,bottleneck/.*'."""  # noqa: E501
    gain: Gain = "calibrated"
    """Initial gain before rounding. calibrated: chosen on data for this lambda. FLOAT: this many symbols per standard deviation of a channel. identity: 1, as in the paper. any, only with --codec transform: a random gain for each image, so that one decoder serves all qualities."""  # noqa: E501
    density_lr: float = 1e-3
    """Peak learning rate of the density and the gains."""
    calibration_images: int = 1024
    """Number of whole training images to calibrate the tables on after training."""
    cache: Path | None = None
    """Folder for the activations of the frozen first blocks, so that they are computed once per image. Needs --proxy features, --mask-ratio 0 and a --trainable that freezes them, such as late. Runs may share it."""  # noqa: E501
    cache_gb: float | None = None
    """Maximum size of that folder, in units of 1e9 bytes; 20 if not given."""
    views: int = 1
    """With --cache: number of versions of each image. The first is whole, the others are random crops."""  # noqa: E501

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "lam", "density_lr")
        check_counts(self, "calibration_images", "views")
        if self.gain == ("identity" if self.codec == "transform" else "any"):
            raise OptionsError(f"--gain {self.gain} is not for --codec {self.codec}: leave it out")
        if not isinstance(self.gain, str):
            check_positive(self, "gain")
        check_cache(self)
        if self.views > 1 and self.cache is None:
            raise OptionsError("--views goes with --cache: without it each crop is a new one")
        coded = ["paper", "paper+gain", "late", "density", "all"]  # the rate depends on these
        coded += ["decoder"] if self.codec == "transform" else []  # a transform needs no training
        if self.trainable not in coded and "/" not in self.trainable:
            raise OptionsError(
                f"--trainable {self.trainable}: choose from {', '.join(coded)}, or give patterns "
                "of paths between commas, such as 'encoder/block_{last}/.*,bottleneck/.*'"
            )


@dataclass(frozen=True, kw_only=True)
class Describe(Compress):
    """Print the parameters, tokens and FLOPs of a compression as JSON, without a run."""


@dataclass(frozen=True, kw_only=True)
class Distil(Training):
    """Train an encoder to predict a larger model's tokens of the same images.

    The encoder starts from fresh weights. The larger model, the teacher, is frozen. Its tokens are
    computed once per image and kept in --cache.
    """

    data: str = ""
    """Images, as for `pretrain`. Separate several data sets by commas."""
    chip: int | None = None
    """Cut every image into windows of this side, in pixels. If there are several data sets, only blue-marble and those with masks are cut. Images of TFDS always stay whole. If not given, as for `pretrain`. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
    images: int | None = None
    """Maximum number of training images of each data set, evenly spread; all if not given."""
    val_images: int = 512
    """Maximum number of validation images: of each data set, and of all together."""
    teacher: str = ""
    """Model file of the teacher."""
    cache: Path = Path("runs/cache")
    """Folder for the teacher's tokens. Runs may share it."""
    cache_gb: float | None = None
    """Maximum size of that folder, in units of 1e9 bytes; 20 if not given."""
    views: tuple[int, ...] = (1,)
    """Number of versions of each image. The first is whole, the others are crops with changed colours, half of them mixed with another image. One number, or one per data set."""  # noqa: E501
    mask_ratio: float | None = None
    """Fraction of the patches hidden from the encoder; 0 if not given."""
    predictor: int = 1
    """Number of blocks between the encoder and the prediction, as wide as the encoder. They are dropped after training."""  # noqa: E501
    class_weight: float = 0.5
    """Share of the loss, 0 to 1, for the class token; the tokens of the grid share the rest."""
    calibration_images: int = 2048
    """Number of whole training images to fit the codec to after training."""
    max_bytes: int = 500
    """Set the default quality of the codec: the highest that needs at most this many bytes per image on average."""  # noqa: E501
    optimiser: Literal["adamw", "muon"] = "adamw"
    """Optimiser of the matrices; AdamW trains everything else."""
    lr: float = 1.5e-3
    """Peak learning rate; it decays to zero by a cosine."""
    warmup: int = 200
    """Steps of linear warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init or self.proxy is not None:
            raise OptionsError("--init, --proxy: the encoder has fresh weights, leave them out")
        if self.decoder_depth is not None:
            raise OptionsError("--decoder-depth: there is no decoder, pass --predictor instead")
        check_cache(self)
        check_counts(self, "views", "calibration_images", "max_bytes")
        check(self, ["predictor"], lambda n: n >= 0, "0 or more")
        check(self, ["class_weight"], lambda x: 0 <= x <= 1, "from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Refine:
    """Train a refiner: it brings a model's decoded embeddings closer to the encoded ones.

    The model's codec must have a transform, as that of nec-vit-ti and those of `nec distil` and
    `nec compress --codec transform`. The codec and its blobs stay the same. Training takes minutes.
    A run that is stopped writes nothing; the same command starts it again.
    """

    model: Positional[str] = ""
    """The model: a file, or nec-vit-ti."""
    data: tuple[str, ...] = ()
    """Images, as for `pretrain`; labels are not used. A refiner that saw several data sets is better on others."""  # noqa: E501
    out: Path | None = None
    """File for the model with its refiner."""
    refiner: Path | None = None
    """File for the refiner alone."""
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    split: str = "train"
    """Split to train on; `all` for the whole data sets."""
    limit: int | None = None
    """Maximum number of images of each data set, evenly spread. All together have at most 524,288 tokens, shared among the data sets."""  # noqa: E501
    chip: int | None = None
    """Cut every image into windows of this side, in pixels. If there are several data sets, only blue-marble and those with masks are cut. Images of TFDS always stay whole. If not given, as for `pretrain`. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
    image_size: int | None = None
    """Resize images to this side, in pixels; that of the model if not given."""
    hidden: int = 640
    """Number of hidden units. The refiner's size and the time grow with it."""
    steps: int = 4000
    """Training steps, of 2,048 tokens each."""
    seed: int = 0
    """Random seed. The same command gives the same bytes on one machine."""

    def __post_init__(self) -> None:
        check_counts(self, "limit", "chip", "image_size", "hidden", "steps")
        check(self, ["seed"], lambda n: n >= 0, "0 or more")
