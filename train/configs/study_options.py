"""The options of studies: what to measure, in which combinations, and how to show it."""

from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional, Suppress

from train.configs.options import Compress, OptionsError, check, check_cache, check_counts, flag

HeadKind = Literal["linear", "class-linear", "attention", "token-linear", "conv"]
HEADS: dict[str, tuple[HeadKind, ...]] = {
    "classification": ("linear", "class-linear", "attention"),
    "segmentation": ("token-linear", "conv"),
}
"""The kinds of heads for each task."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure bytes per image against the scores of heads on decoded embeddings."""

    models: tuple[str, ...] = ()
    """Files of compressed models, one per lambda."""
    model: str = ""
    """A model with a codec of many qualities (nec-vit-ti, or a path), in place of --base and --models."""  # noqa: E501
    base: str = ""
    """The uncompressed model that --models were adapted from; the baselines code its embeddings. Without --models, only the baselines are measured."""  # noqa: E501
    data: str = ""
    """Labelled images: a folder with split.csv, tfds:NAME, blue-marble, or a Potsdam folder."""
    cache: Path | None = None
    """Activation cache that the models were trained with (compress --cache). Its activations replace a pass through the frozen blocks. They are float16, so the bytes differ a little."""  # noqa: E501
    cache_gb: float | None = None
    """Maximum size of that folder, in units of 1e9 bytes; 20 if not given."""
    out: Path = Path("runs/evaluate")
    """Folder for report.json, images.npz, report.md and rate_distortion.png."""
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    task: Literal["classification", "segmentation"] = "classification"
    """What the heads predict."""
    split: str = "val"
    """Split to score. Choose settings on val; report test once."""
    chip: int | None = None
    """Cut every image into windows of this side, in pixels. If not given: 256 for blue-marble and data with masks, else whole images. Windows begin at the upper left; the remainder at the right and the bottom is dropped, and a log line says how much."""  # noqa: E501
    image_size: int | None = None
    """Resize images to this side, in pixels; that of the models if not given."""
    limit: int | None = None
    """Maximum number of images per split, evenly spread."""
    seeds: int = 3
    """Number of times to train each head, each with another seed."""
    epochs: int | None = None
    """Passes of a head over the training split; the head's default if not given."""
    baselines: bool = True
    """Also measure the baselines."""
    uqe_bits: tuple[int, ...] = (2, 3, 5, 8)
    """Baseline: uniform quantisation of embeddings (UQE) with these numbers of bits per value."""
    qualities: tuple[int, ...] = ()
    """Qualities to measure, for models with a codec of many qualities; 0 is the lowest. If not given: eight for --model, the default quality for --models."""  # noqa: E501
    transform_qualities: tuple[int, ...] = ()
    """Baseline: a codec fitted to the base's embeddings (coder.fit), at these qualities; 0 is the lowest."""  # noqa: E501
    channel_gains: tuple[float, ...] = ()
    """Baseline: an untrained per-channel codec of the base's embeddings, with these numbers of symbols per standard deviation."""  # noqa: E501
    pca: tuple[int, ...] = ()
    """Baseline: this many principal components per token, one byte each; with and without zstd."""
    pq: tuple[int, ...] = ()
    """Baseline: product quantisation (faiss), this many bytes per token; with and without zstd."""
    binary: bool = False
    """Baseline: one bit per channel; with and without zstd."""
    jpeg2000: tuple[float, ...] = (25.0, 50.0, 100.0, 200.0)
    """Baseline: images in JPEG 2000 at these compression ratios."""
    refine: Literal["no", "own", "fit"] = "no"
    """Whether to measure refined embeddings too, as methods of their own. own: by the refiners that the models have (nec refine). fit: also train a refiner on the embeddings of the training images for each codec that has none, --transform-qualities included (minutes each)."""  # noqa: E501
    refiner_steps: int | None = None
    """With --refine fit: training steps of each refiner; 4000 if not given."""
    for_refiner: bool = False
    """With --refine own or fit: choose the symbols that are best for readers that refine. They are decoded with and without the refiner."""  # noqa: E501
    heads: tuple[HeadKind, ...] = ()
    """Kinds of heads to train; all kinds for the task if not given."""
    decoder_heads: bool = True
    """Also train the last of these heads after the decoder's first block, if the model has a decoder (slow)."""  # noqa: E501

    def __post_init__(self) -> None:
        if self.model and (self.base or self.models):
            raise OptionsError("--model replaces --base and --models: leave those two out")
        if self.model and self.cache is not None:
            raise OptionsError("--cache is for --models that share frozen blocks: leave it out")
        check_counts(self, "chip", "image_size", "limit", "seeds", "epochs", "pca", "pq")
        check_counts(self, "refiner_steps")
        check(self, ["channel_gains"], lambda gain: 0 < gain < inf, "positive and finite")
        check(self, ["qualities", "transform_qualities"], lambda n: n >= 0, "0 or more")
        check(self, ["uqe_bits"], lambda n: 1 <= n <= 8, "1 to 8")
        check(self, ["jpeg2000"], lambda ratio: 1 < ratio < inf, "above 1, and finite")
        if self.pq and find_spec("faiss") is None:
            raise OptionsError("--pq needs faiss: install nec-jax[faiss]")
        if wrong := [head for head in self.heads if head not in HEADS[self.task]]:
            raise OptionsError(
                f"--heads {' '.join(wrong)}: not for {self.task}, choose from "
                f"{', '.join(HEADS[self.task])}"
            )
        check_cache(self)
        if self.refiner_steps is not None and self.refine != "fit":
            raise OptionsError("--refiner-steps goes with --refine fit: pass both, or leave it out")
        if self.for_refiner and self.refine == "no":
            raise OptionsError("--for-refiner needs a refiner: pass --refine own or fit too")
        if self.base and not self.models and not self.baselines:
            raise OptionsError(
                "--base with --no-baselines: nothing to measure, pass --models, or leave "
                "--no-baselines out"
            )
        if self.split in ("train", "all"):
            raise OptionsError(
                f"--split {self.split} would score images that the heads learned on: choose val or "
                "test"
            )


def refuse_unused_baselines(options: Evaluate) -> None:
    """Raise OptionsError for options of baselines together with --no-baselines.

    A study's file may have both, since its next sweep may measure them.
    """
    names = ("uqe_bits", "jpeg2000", "transform_qualities", "channel_gains", "pca", "pq", "binary")
    unused = (n for n in names if getattr(options, n) not in (getattr(Evaluate, n), (), False))
    if not options.baselines and (named := ", ".join(map(flag, unused))):
        raise OptionsError(
            f"{named}: these are baselines, and --no-baselines measures none: leave "
            "--no-baselines out, or the options of baselines"
        )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Compress and evaluate all points of a study: `sweep NAME` or `sweep FILE.toml`."""

    workdir: Path = Path("runs/sweep")
    """Folder for results.csv and the runs of all points. Run the same command again to resume."""
    compress: Compress = field(default_factory=Compress)
    """Training options that all points share."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """Evaluation options that all points share."""
    axes: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Options of `compress` and the values of each: every combination is a point, ..."""
    points: Suppress[list[dict[str, Any]]] = field(default_factory=list)
    """... once for each of these settings of other options."""

    def __post_init__(self) -> None:
        of_evaluate = ("model", "models", "base", "out", "overwrite")
        for table, name in (("compress", "workdir"), *(("evaluate", n) for n in of_evaluate)):
            options = getattr(self, table)
            if getattr(options, name) != getattr(type(options), name):
                raise OptionsError(f"{table}.{name}: a sweep sets it itself, leave it out")
        if self.evaluate.refine == "own":
            raise OptionsError("evaluate.refine: a sweep makes models without refiners, give fit")
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
    if f.name not in ("workdir", "arch", "image_size", "patch", "depth")
}
"""The options of `compress` that a study may vary, and their fields; not those of fresh models."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Make the tables and plots of a sweep: `report RESULTS.csv`."""

    results: Positional[Path] = Path("results.csv")
    """The table that `sweep` wrote."""
    out: Path | None = None
    """Folder for report.md, rate_distortion.png and .pdf; the folder of the table if not given."""
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    x: str = "bytes_per_image"
    """Column on the horizontal axis."""
    by: tuple[str, ...] = ()
    """Axes: one line is drawn for each combination of their values. If not given, all axes that vary except lambda and seed."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare bytes at equal score: Bjontegaard deltas with bootstrap intervals."""

    reports: Positional[tuple[Path, ...]] = ()
    """Folders that `evaluate` wrote for the same images; or tables of sweeps, without intervals."""
    against: str = "nec"
    """Method to compare the others with."""
    against_decoder: bool = False
    """Compare with its scores after the decoder's first block."""
    head: str = ""
    """Head to compare by, if there are several."""
    resamples: int = 1000
    """Number of bootstrap resamples."""
    archive: int | None = None
    """Divide the codec's bytes among this many images of an archive. If not given, the codec's bytes are not counted."""  # noqa: E501
    plot: Path | None = None
    """Image file (.png, .pdf or .svg) for the curves of all methods."""
    overwrite: bool = False
    """Replace what is there; an input, a pipe or a device is never replaced."""
    edge: float = 2048
    """Also give the deltas below and above this many bytes per image."""

    def __post_init__(self) -> None:
        check_counts(self, "resamples", "archive")
        if self.plot is not None and self.plot.suffix not in (".png", ".pdf", ".svg"):
            raise OptionsError(f"--plot {self.plot}: name a .png, .pdf or .svg file")
