"""The options of studies: what is measured, in what combinations, and shown how."""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, Suppress

from train.configs.options import Compress, OptionsError, check_cache, flag

HeadKind = Literal["linear", "class-linear", "attention", "token-linear", "conv"]
HEADS: dict[str, tuple[HeadKind, ...]] = {
    "classification": ("linear", "class-linear", "attention"),
    "segmentation": ("token-linear", "conv"),
}
"""The kinds of heads for a task."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Rate-distortion study: real bytes against the scores of heads on what was decoded."""

    models: tuple[str, ...] = ()
    """Compressed models: paths, one a lambda."""
    model: str = ""
    """A model with a codec of its own, nec-vit-ti or a path, in place of --base and --models."""
    base: str = ""
    """The uncompressed model of the baselines: what the models were adapted from. Alone, only the baselines are measured."""  # noqa: E501
    data: str = ""
    """Labelled images: a folder with split.csv, tfds:NAME, blue-marble, a Potsdam folder."""
    cache: Path | None = None
    """Folder of activations that the models were trained with (compress --cache), to read them instead of passing every image through the frozen blocks. float16: the bytes differ a little."""  # noqa: E501
    cache_gb: float | None = None
    """What that folder may take, 1e9 bytes each; 20 if not given."""
    out: Path = Path("runs/evaluate")
    """Folder for report.json, images.npz, report.md and rate_distortion.png."""
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    task: Literal["classification", "segmentation"] = "classification"
    """What the heads predict."""
    split: str = "val"
    """Split that is scored. Choose on val; report test once."""
    chip: int | None = None
    """Side of the windows that every image is cut into, pixels. If not given, whole images, and windows of 256 where there are masks, and of blue-marble. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
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
    qualities: tuple[int, ...] = ()
    """Qualities of models with a codec of many, 0 the smallest; if none is named, the one of their training, or eight of --model."""  # noqa: E501
    transform_qualities: tuple[int, ...] = ()
    """Qualities of a codec that is fitted to the base's embeddings (coder.fit), 0 the smallest."""
    channel_gains: tuple[float, ...] = ()
    """Symbols in a channel's standard deviation, of a codec of channels that is fitted to the base's embeddings, untrained."""  # noqa: E501
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
        if self.model and (self.base or self.models):
            raise OptionsError("--model is in the place of --base and --models: leave those out")
        if self.model and self.cache is not None:
            raise OptionsError("--cache is for models that share frozen blocks: leave it out")
        if min((*self.qualities, 0)) < 0:
            raise OptionsError("--qualities must be 0 or more")
        if not all(0 < gain < inf for gain in self.channel_gains):
            raise OptionsError("--channel-gains must be positive and finite")
        if not all(1 <= ratio < inf for ratio in self.jpeg2000):
            raise OptionsError("--jpeg2000 must be 1 or more, and finite")
        if min((*self.transform_qualities, 0)) < 0 or min((*self.pca, *self.pq, 1)) < 1:
            raise OptionsError("--transform-qualities must be 0 or more, --pca and --pq 1 or more")
        if self.pq and find_spec("faiss") is None:
            raise OptionsError("--pq needs faiss: pip install nec-jax[faiss]")
        if self.seeds < 1 or (self.epochs is not None and self.epochs < 1):
            raise OptionsError("--seeds and --epochs must be 1 or more")
        if self.image_size is not None and self.image_size < 1:
            raise OptionsError("--image-size must be 1 or more")
        if wrong := [head for head in self.heads if head not in HEADS[self.task]]:
            raise OptionsError(
                f"--heads {' '.join(wrong)}: not for {self.task}, choose from "
                f"{', '.join(HEADS[self.task])}"
            )
        check_cache(self)
        if self.base and not self.models and not self.baselines:
            raise OptionsError(
                "--base alone measures the baselines, and --no-baselines leaves them out: nothing "
                "to measure, pass --models, or leave --no-baselines out"
            )
        if self.split in ("train", "all"):
            raise OptionsError(
                f"--split {self.split} would score images that the heads learned on: choose val or "
                "test"
            )


def refuse_unused_baselines(options: Evaluate) -> None:
    """Raise OptionsError for baselines that are named though none is measured.

    A study may name them all the same: its next sweep may measure them.
    """
    names = ("uqe_bits", "jpeg2000", "transform_qualities", "channel_gains", "pca", "pq", "binary")
    usual = Evaluate()
    named = [
        flag(name)
        for name in names
        if getattr(options, name) not in (getattr(usual, name), (), False)
    ]
    if named and not options.baselines:
        raise OptionsError(
            f"{', '.join(named)}: these are baselines, and --no-baselines measures none: leave "
            "--no-baselines out, or the options of baselines"
        )


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
            ("evaluate", ("model", "models", "base", "out", "overwrite")),
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
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    x: str = "bytes_per_image"
    """Column on the horizontal axis."""
    by: tuple[str, ...] = ()
    """Axes that have a line for each of their values; if none is named, all that vary but lambda and seed."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Bytes at equal score: Bjontegaard's quality deltas, with intervals of a paired bootstrap."""

    reports: Positional[tuple[Path, ...]] = ()
    """Folders that `evaluate` wrote, of the same images; or tables of sweeps, for no intervals."""
    against: str = "nec"
    """The method that the others are compared with."""
    against_decoder: bool = False
    """Whether its scores are those behind its decoder's first block."""
    head: str = ""
    """The head that is scored, if there are several."""
    resamples: int = 1000
    """Of the bootstrap."""
    archive: int | None = None
    """Images of an archive over which the bytes of codecs are spread; not counted if not given."""
    plot: Path | None = None
    """Image file for the curves of all of them, .png, .pdf or .svg."""
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    edge: float = 2048
    """Bytes an image at which the range is divided, beside the delta over the whole of it."""

    def __post_init__(self) -> None:
        if self.resamples < 1 or (self.archive is not None and self.archive < 1):
            raise OptionsError("--resamples and --archive must be 1 or more")
        if self.plot is not None and self.plot.suffix not in (".png", ".pdf", ".svg"):
            raise OptionsError(f"--plot {self.plot}: name a .png, .pdf or .svg file")
