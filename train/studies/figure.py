"""Draw curves in panels, for every rate-distortion figure of this project."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coder import files


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
