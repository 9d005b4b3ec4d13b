"""Figures of reports: the names and colours of curves, panels of them, image files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coder import files
from train.configs.options import OptionsError
from train.studies import results

Point = dict[str, Any]
Head = tuple[str, bool]  # its kind, and whether the decoder's first block comes before it

AXES = {"top1": "top-1 accuracy (%)", "miou": "mean IoU (%)"}
X_LABELS = {"bytes_per_image": "bytes per image"}
# Okabe and Ito's colours, told apart by colour-blind readers; NEC first and boldest. Refined
# embeddings have the colour and marker of plain ones, and a line of dots.
_STYLE = {
    "nec": ("NEC", "#D55E00", "o"),
    "nec-refined": ("NEC, refined", "#D55E00", "o"),
    "nec-transform": ("NEC, through the transform", "#882255", "D"),
    "nec-transform-refined": ("NEC, through the transform, refined", "#882255", "D"),
    "uqe": ("UQE, as published", "#999999", "v"),
    "uqe-channel": ("UQE, per channel", "#0072B2", "^"),
    "channels": ("per channel, untrained", "#0072B2", "o"),
    "transform": ("transform, untrained", "#CC79A7", "X"),
    "transform-refined": ("transform, untrained, refined", "#CC79A7", "X"),
    "pca-int8": ("PCA + int8", "#E69F00", "<"),
    "pca-int8-zstd": ("PCA + int8 + zstd", "#E69F00", ">"),
    "pq": ("product quantisation", "#8C564B", "p"),
    "pq-zstd": ("product quantisation + zstd", "#8C564B", "P"),
    "binary": ("binary", "#17BECF", "h"),
    "binary-zstd": ("binary + zstd", "#17BECF", "H"),
    "float16": ("float16 + zstd", "#56B4E9", "s"),
    "jpeg2000": ("JPEG 2000", "#009E73", "D"),
    "raw-zstd": ("raw pixels + zstd", "#000000", "*"),
}
# With several curves of NEC, these are their colours, and baselines are thin and dashed.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dvp*XP"
_GREYS = ("#777777", "#B0B0B0", "#333333")  # one per base model
_LOOK = ("color", "marker", "linewidth", "markersize", "linestyle")


def head_name(head: str, with_decoder: bool) -> str:
    """The name of a head, such as `attention + decoder`."""
    return head + (" + decoder" if with_decoder else "")


def head_of(point: Point) -> Head:
    """The head of a point."""
    return point["head"], point["with_decoder"]


def heads_of(points: Sequence[Point]) -> list[Head]:
    """The heads of points, each once."""
    return list(dict.fromkeys(map(head_of, points)))


def label(method: str) -> str:
    """A method's name in legends and tables."""
    return _STYLE[method][0]


def draw_points(
    points: Sequence[Point],
    x: str,
    by: Sequence[str],
    others: Sequence[str],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw a panel per head, with a curve for each combination of values of `by` and each baseline.

    Points that differ in `others` are not joined, but look alike.
    """
    points = [p for p in points if p.get(x, "") != ""]  # baselines have no lambda, steps, ...
    try:
        places = [float(p[x]) for p in points]
    except ValueError:
        places = []
    if not places:
        raise OptionsError(f"--x {x}: the table has no such column of numbers")
    kinds = [(m, _values(p, by)) for m in _STYLE for p in points if p["method"] == m]
    looks = _looks(list(dict.fromkeys(kinds)))
    panels: dict[str, list[Curve]] = {}
    metrics = []
    for head in heads_of(points):
        lines: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
        for place, p in zip(places, points, strict=True):
            if head_of(p) == head:
                key = (p["method"], _values(p, by), _values(p, others))
                lines.setdefault(key, []).append((place, p["mean"], p["std"]))
        panels[head_name(*head)] = [
            Curve(_label(*kind), sorted(line), look)
            for kind, look in looks.items()
            for key, line in lines.items()
            if key[:2] == kind
        ]
        metrics.append(next(AXES[p["metric"]] for p in points if head_of(p) == head))
    draw(panels, X_LABELS.get(x, x.replace("_", " ")), metrics, title, paths)


def _label(method: str, values: str) -> str:
    if method in results.NEC and values:
        return values + (", refined" if method.endswith(results.REFINED) else "")
    return ", ".join(filter(None, (label(method), values)))


def _looks(kinds: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The matplotlib style of each (method, values)."""
    nec = list(dict.fromkeys(values for method, values in kinds if method in results.NEC))
    models = list(dict.fromkeys(values for method, values in kinds if method not in results.NEC))
    looks = {}
    for method, values in kinds:
        _, colour, marker = _STYLE[method]
        width, size, line = 1.2, 7 if method == "raw-zstd" else 5, "-"
        if method in results.NEC:
            width, size = 2.2, 7
        if len(nec) > 1 and method in results.NEC:
            i = nec.index(values)
            colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
            width, size = 1.8, 6
        elif len(nec) > 1:
            i = models.index(values)
            colour, width, line = _GREYS[i % len(_GREYS)], 1.0, "--"
        if method.endswith(results.REFINED):
            line = ":"
        looks[method, values] = dict(zip(_LOOK, (colour, marker, width, size, line), strict=True))
    return looks


def _values(point: Point, by: Sequence[str]) -> str:
    """The values of axes as text; those that a baseline does not have are left out."""
    given = [name for name in by if point["method"] in results.NEC or point[name] != ""]
    return ", ".join(f"{name} {_short(point[name])}" for name in given)


def _short(value: str) -> str:
    """A path without the parts that all model paths share; None as a word."""
    path = Path(value)
    if path.suffix == ".safetensors":
        return path.parent.name if path.stem == "model" else path.stem
    return value or "default"


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
      label: label in the legend, shown once for all panels.
      points: (x, mean, deviation), in the order to join them.
      style: arguments of matplotlib's `errorbar`: colour, marker, widths.
    """

    label: str
    points: Sequence[tuple[float, float, float]]
    style: Mapping[str, object]


def draw(
    panels: Mapping[str, Sequence[Curve]],
    x_label: str,
    y_labels: Sequence[str],
    title: str,
    paths: Sequence[Path],
) -> None:
    """Draw a panel for each entry, x on a log axis where it is positive, and write image files.

    All panels share their axes, except y axes of different quantities.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogFormatterSciNotation

    xs = [x for curves in panels.values() for curve in curves for x, _, _ in curve.points]
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    width = max(6.4, 4.4 * len(panels))
    entry = 0.55 + 0.08 * max(map(len, labels))  # inches, about
    columns = max(1, min(len(labels), int(width / entry)))
    below = 0.1 + 0.22 * -(-len(labels) // columns)  # inches of the legend
    size = (width, 4.4 + below)
    one_quantity = len(set(y_labels)) == 1
    figure, axes = plt.subplots(
        1, len(panels), figsize=size, squeeze=False, sharex=True, sharey=one_quantity
    )
    legend = {}
    for axis, (name, curves), y_label in zip(axes[0], panels.items(), y_labels, strict=True):
        for curve in curves:
            x, mean, deviation = zip(*curve.points, strict=True)
            legend[curve.label] = axis.errorbar(
                x, mean, deviation, label=curve.label, capsize=3, **curve.style
            )
        if min(xs) > 0:
            axis.set_xscale("log")
            if max(xs) < 10 * min(xs):  # labels of minor ticks would run into each other
                axis.set_xlim(min(xs) / 2, 2 * max(xs))
                axis.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1, 0.1)))
        low, high = axis.get_ylim()
        if (short := max(abs(low), abs(high)) / 10 - (high - low)) > 0:  # noise is no slope
            axis.set_ylim(low - short / 2, high + short / 2)
        axis.set_title(name)
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        axis.grid(visible=True, which="major", alpha=0.3)
    figure.legend(legend.values(), legend.keys(), loc="lower center", ncols=columns, frameon=False)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, below / size[1], 1, 1))
    for path in paths:
        save(figure, path, dpi=130)
    plt.close(figure)


def save(figure: Any, path: Path, dpi: int) -> None:
    """Write a figure in the format of the path's suffix. An existing file is replaced."""
    with files.writing(path, overwrite=True) as file:
        figure.savefig(file, dpi=dpi, format=path.suffix[1:])
