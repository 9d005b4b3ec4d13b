"""The tables and curves of what `benchmarks.decoder` measured.

    python -m benchmarks.decoder_tables runs/decoder/*.json [--plot FILE.png]

In rows of refined embeddings, the numbers in brackets are the interval that holds 95 % of the
paired differences to the plain embeddings of the same blobs.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoder import AT, HEADS
from train.studies.scores import Scores

_RESAMPLES = 1000
_TITLES = {"linear": "linear head", "random": "linear head on 1,536 random ReLU features"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and draw the curves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="what benchmarks.decoder wrote")
    parser.add_argument("--plot", type=Path, help="image file for bytes against scores")
    options = parser.parse_args(arguments)
    for path in options.files:
        rows = json.loads(path.read_text())
        print(f"\n{path.stem}\n")
        if "saved" in rows[0]:
            places = [at for at in map(str, AT) if any(at in row["saved"] for row in rows)]
            print(
                f"| | {' | '.join(f'{at} B' for at in places)} |\n{'| --- ' * len(places)}| --- |"
            )
            for row in rows:
                for what, saved in (("", row["saved"]), (", read plain", row["saved_plain"])):
                    if what and not row["for_refiner"]:
                        continue  # the plain curve against itself
                    name = Path(row["score"]).name + ", for refiner" * row["for_refiner"] + what
                    cells = [f"{saved[at]:.0f} %" if at in saved else "" for at in places]
                    print(f"| {name} | {' | '.join(cells)} |")
            continue
        if "for_refiner" in rows[0]:
            print("| bytes | decoding, ms | refined, times | encoding, ms | for refiner, times |")
            print("| ---: " * 5 + "|")
            for row in rows:
                times = row["refined"] / row["decode"], row["for_refiner"] / row["encode"]
                print(
                    f"| {row['bytes']:,.0f} | {row['decode']:.2f} | {times[0]:.1f} | "
                    f"{row['encode']:.2f} | {times[1]:.1f} |"
                )
            continue
        print(f"| method | setting | bytes | {' | '.join(HEADS)} |")
        print("| --- | --- | ---: | ---: | ---: |")
        plain = {row["setting"]: row for row in rows if row["method"] == "transform"}
        for row in rows:
            cells = []
            for head in HEADS:
                text = f"{row[head]['score']:.1f}"
                if row["method"].startswith("transform, ") and "hits" in row[head]:
                    low, high = difference(plain[row["setting"]][head], row[head])
                    text += f" ({low:+.1f} to {high:+.1f})"
                cells.append(text)
            size = f"{row['bytes']:,.0f}"
            print(f"| {row['method']} | {row['setting']} | {size} | {' | '.join(cells)} |")
        if options.plot is not None:
            plot(rows, options.plot)


def difference(plain: dict[str, Any], refined: dict[str, Any]) -> tuple[float, float]:
    """The interval that holds 95 % of the paired differences of bootstrap resamples.

    Images are drawn; with tiles, tiles are drawn first, and then the images of each.
    """
    rng = np.random.default_rng(0)
    hits = [np.array(one["hits"], np.int64) for one in (plain, refined)]
    if "totals" not in plain:
        drawn = rng.integers(0, len(hits[0]), (_RESAMPLES, len(hits[0])))
        found = 100 * (hits[1] - hits[0])[drawn].mean(1)
        return _middle(found)
    totals = [np.array(one["totals"], np.int64) for one in (plain, refined)]
    tiles, found = np.array(plain["tiles"]), []
    groups = [np.flatnonzero(tiles == tile) for tile in np.unique(tiles)]
    for _ in range(_RESAMPLES):
        scores = []
        for group in rng.integers(0, len(groups), len(groups)):
            some = rng.choice(groups[group], len(groups[group]))
            before, after = (
                Scores(h[None, some], t[None, some]).percent()[0]
                for h, t in zip(hits, totals, strict=True)
            )
            scores.append(after - before)
        found.append(np.mean(scores))
    return _middle(found)


def _middle(drawn: Any) -> tuple[float, float]:
    """The interval that holds the middle 95 % of these."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bytes per image against the score of each head, a line for each method."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(HEADS), figsize=(11, 4.5), sharey=True, layout="tight")
    for axis, head in zip(axes, HEADS, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            points = sorted(
                (row["bytes"], row[head]["score"]) for row in rows if row["method"] == method
            )
            sizes, scores = zip(*points, strict=True)
            own = method.startswith("transform")
            label = method.removeprefix("transform, ") if method != "transform" else "plain"
            if method == "uncompressed":
                axis.axhline(scores[0], color="0.6", linewidth=1, label=method)
                continue
            style = {"linewidth": 2.2 if own else 1.2, "marker": "o" if own else "x"}
            axis.plot(sizes, scores, markersize=4, label=label, **style)
        axis.set(xscale="log", xlabel="bytes per image", title=_TITLES[head])
        axis.grid(alpha=0.3)
    scored = "mean IoU" if "tiles" in rows[0]["linear"] else "score"
    axes[0].set_ylabel(f"{scored}, percent")
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
