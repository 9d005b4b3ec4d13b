"""Curves of the points of reports: their names, colours and panels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.configs.options import OptionsError
from train.studies import results
from train.studies.figure import Curve, draw

Point = dict[str, Any]
Head = tuple[str, bool]  # its kind, and whether the decoder's first block comes before it

AXES = {"top1": "top-1 accuracy (%)", "miou": "mean IoU (%)"}
X_LABELS = {"bytes_per_image": "bytes per image"}
# Okabe and Ito's colours, told apart by colour-blind readers; NEC first and boldest.
_STYLE = {
    "nec": ("NEC", "#D55E00", "o"),
    "nec-transform": ("NEC, through the transform", "#882255", "D"),
    "uqe": ("UQE, as published", "#999999", "v"),
    "uqe-channel": ("UQE, per channel", "#0072B2", "^"),
    "channels": ("per channel, untrained", "#0072B2", "o"),
    "transform": ("transform, untrained", "#CC79A7", "X"),
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
        return values
    return ", ".join(filter(None, (_STYLE[method][0], values)))


def _looks(kinds: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The matplotlib style of each (method, values)."""
    nec = [values for method, values in kinds if method in results.NEC]
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
        looks[method, values] = {
            "color": colour,
            "marker": marker,
            "linewidth": width,
            "markersize": size,
            "linestyle": line,
        }
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
