"""Tables and curves of what `benchmarks.embedding_peers` measured.

    python -m benchmarks.embedding_rates FILE.csv ... [--vectors 1000000] [--plot FILE.png]

Bytes per vector count what a decoder needs once, spread over so many vectors. Between two settings
of `coder.fit`, the bytes for an error or a recall are interpolated, in the logarithm.

- The first table has a row for each setting of each other method: how many times as many bytes it
  takes as `coder.fit` at the same relative rms error, and at the same recall@10. Shown are the
  least, the median and the largest of a method's settings, and at how many it takes fewer.
- The tables after it have the bytes at round errors and recalls, for each kind of embeddings.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

OURS = "coder.fit"
ERRORS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
RECALLS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


class Point(NamedTuple):
    """A setting: bytes per vector, and the two errors, which are better the smaller they are."""

    setting: str
    size: float
    rms: float
    missed: float


def read(paths: list[Path], vectors: int) -> dict[tuple[str, str], dict[str, list[Point]]]:
    """The settings of each method, for each encoder and kind."""
    found: dict[Any, Any] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                size = float(row["bytes"]) + int(row["once"]) / vectors
                point = Point(
                    row["setting"], size, float(row["relative_rms"]), 1 - float(row["recall"])
                )
                found[row["encoder"], row["kind"]][row["method"]].append(point)
    return found


def size_at(points: list[Point], term: str, error: float) -> float | None:
    """Bytes per vector for an error, between the settings that are not beaten by another.

    None if no setting has an error as small. For an error that all keep, it is the fewest bytes.
    """
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point.size, getattr(point, term))):
        if not front or getattr(point, term) < front[-1][0]:
            front.append((getattr(point, term), point.size))
    kept = [i for i, (reached, _) in enumerate(front) if reached <= error]
    if not kept:
        return None
    i = kept[0]
    (high, fewer), (low, more) = front[max(0, i - 1)], front[i]
    if i == 0 or high == low:
        return more
    low, high, error = (max(one, 1e-4) for one in (low, high, error))
    part = float(np.log(high / error) / np.log(high / low)) if high > low else 1.0
    return float(fewer * (more / fewer) ** part)


def ratios(
    found: dict[str, list[Point]], method: str, term: str, most: float
) -> list[tuple[float, Point]]:
    """How many times as many bytes a method takes as ours, for its settings of a useful error."""
    pairs = []
    for point in found.get(method, []):
        own = size_at(found[OURS], term, getattr(point, term))
        if own is not None and getattr(point, term) <= most:
            pairs.append((point.size / own, point))
    return pairs


def summary(everything: dict[Any, dict[str, list[Point]]]) -> None:
    """Print how each method compares, over all encoders and kinds."""
    print("| method | settings | at equal error | fewer bytes at | at equal recall | fewer at |")
    print("| --- | ---: | --- | ---: | --- | ---: |")
    methods = dict.fromkeys(name for found in everything.values() for name in found)
    behind = []
    for method in methods:
        if method == OURS:
            continue
        cells = []
        for term, most in (("rms", 0.8), ("missed", 0.8)):
            pairs = []
            for key, found in everything.items():
                pairs += [(r, key, point) for r, point in ratios(found, method, term, most)]
            if not pairs:
                cells += ["0", "", ""]
                continue
            values = [r for r, *_ in pairs]
            few = [pair for pair in pairs if pair[0] < 1]
            behind += [(method, term, *pair) for pair in few]
            text = f"{min(values):.2f}, {np.median(values):.2f}, {max(values):.3g}"
            cells += [str(len(values)), text, str(len(few))]
        settings = cells[0] if cells[0] == cells[3] else f"{cells[0]}, {cells[3]}"
        print(f"| {method} | {settings} | {cells[1]} | {cells[2]} | {cells[4]} | {cells[5]} |")
    print("\nFewer bytes than ours:")
    for method, term, ratio, key, point in sorted(behind, key=lambda one: one[2]):
        print(
            f"- {method}, {point.setting}, {' '.join(key)}: {ratio:.2f} at equal {term} "
            f"({point.size:.2f} B, rms {point.rms:.4f}, recall {1 - point.missed:.3f})"
        )


def tables(everything: dict[Any, dict[str, list[Point]]]) -> None:
    """Print bytes at round errors and recalls, for each encoder and kind."""
    for (encoder, kind), found in everything.items():
        print(f"\n{encoder}, {kind}\n")
        names = [f"{100 * e:.0f} %" for e in ERRORS] + [f"{r:.2f}" for r in RECALLS]
        print(f"| bytes at error, at recall | {' | '.join(names)} |")
        print("| --- |" + " ---: |" * len(names))
        for method, points in found.items():
            if len(points) < 2:
                continue
            sizes = [size_at(points, "rms", e) for e in ERRORS]
            sizes += [size_at(points, "missed", 1 - r) for r in RECALLS]
            cells = ["" if size is None else f"{size:.3g}" for size in sizes]
            print(f"| {method} | {' | '.join(cells)} |")


def plot(everything: dict[Any, dict[str, list[Point]]], path: Path) -> None:
    """Draw bytes against recall: a row for each encoder, a column for each kind."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    encoders = list(dict.fromkeys(key[0] for key in everything))
    kinds = list(dict.fromkeys(key[1] for key in everything))
    size = 2.9 * len(kinds), 2.7 * len(encoders)
    figure, axes = plt.subplots(len(encoders), len(kinds), figsize=size, squeeze=False, sharey=True)
    methods = list(dict.fromkeys(name for found in everything.values() for name in found))
    for (encoder, kind), found in everything.items():
        axis = axes[encoders.index(encoder), kinds.index(kind)]
        for i, method in enumerate(methods):
            points = sorted(found.get(method, []), key=lambda point: point.size)
            style = {"color": "black", "linewidth": 2.2} if method == OURS else {"color": f"C{i}"}
            marker = "o" if len(points) < 8 else None
            axis.plot(
                [point.size for point in points],
                [1 - point.missed for point in points],
                label=method,
                marker=marker,
                markersize=3,
                zorder=3 if method == OURS else 2,
                **style,
            )
        axis.set(xscale="log", title=f"{encoder}, {kind}", ylim=(0, 1))
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("bytes per vector")
    for axis in axes[:, 0]:
        axis.set_ylabel("recall@10")
    handles = [Line2D([], [], color="black", linewidth=2.2)]
    handles += [Line2D([], [], color=f"C{i}") for i in range(1, len(methods))]
    figure.legend(handles, methods, loc="lower center", ncols=len(methods), fontsize=9)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the tables, and draw the curves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    everything = read(arguments.files, arguments.vectors)
    summary(everything)
    tables(everything)
    if arguments.plot is not None:
        plot(everything, arguments.plot)


if __name__ == "__main__":
    main()
