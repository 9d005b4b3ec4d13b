"""Reports for people: of one evaluation (with report.json for programs), and of a whole sweep."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train import config, results
from train.config import OptionsError
from train.figure import Curve, draw

if TYPE_CHECKING:
    from train.methods import Method

Report = dict[str, Any]
Point = dict[str, Any]
Head = tuple[str, bool]  # its kind, and whether the decoder's first block comes before it

METRICS = {"classification": "top1", "segmentation": "miou"}
AXES = {"top1": "top-1 accuracy (%)", "miou": "mean IoU (%)"}
X_LABELS = {"bytes_per_image": "bytes an image"}
# Okabe and Ito's colours, told apart by colour-blind readers; NEC first and boldest.
_STYLE = {
    "nec": ("NEC", "#D55E00", "o"),
    "nec-transform": ("NEC, through the transform", "#882255", "D"),
    "uqe": ("UQE, as published", "#999999", "v"),
    "uqe-channel": ("UQE, per channel", "#0072B2", "^"),
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
# Where there are several curves of NEC, these are theirs, and baselines are thin and dashed.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "os^Dvp*XP"
_GREYS = ("#777777", "#B0B0B0", "#333333")  # one a model that is compressed
_MEASURED = ("bytes_per_image", "estimated_bytes_per_image", "codec_bytes", "mean", "std", "seeds")


def point(
    method: "Method", task: str, head: str, with_decoder: bool, scores: Sequence[float]
) -> Point:
    """One entry of `points` in report.json; scores in percent, one a seed."""
    return {
        "method": method.name,
        "setting": method.setting,
        "task": task,
        "head": head,
        "with_decoder": with_decoder,
        "bytes_per_image": round(method.bytes_per_image, 2),
        "codec_bytes": method.codec_bytes,
        "metric": METRICS[task],
        "mean": round(float(np.mean(scores)), 3),
        "std": round(float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0, 3),
        "seeds": len(scores),
        **{name: round(value, 4) for name, value in method.facts.items()},
    }


def spread(scores: Sequence[float]) -> str:
    """Mean and standard deviation of scores, as text."""
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    return f"{np.mean(scores):.1f} +- {np.std(scores, ddof=1):.1f}"


def head_name(head: str, with_decoder: bool) -> str:
    """`attention + decoder`."""
    return head + (" + decoder" if with_decoder else "")


def run(options: config.Report) -> None:
    """Write report.md and the figure of a sweep's results.csv."""
    if not options.results.is_file():
        raise OptionsError(f"no table {options.results}: give the results.csv of a sweep")
    rows = results.read(options.results)
    if not rows:
        raise OptionsError(f"{options.results} has no rows yet: run the sweep first")
    points = average(rows)
    nec = [row for row in rows if row["method"] in results.NEC]
    varied = [n for n in results.axes_of(rows) if n != "seed" and len({r[n] for r in nec}) > 1]
    sized = options.x.endswith("bytes_per_image")
    lines = [n for n in varied if n != options.x and not (sized and n == "lambda")]
    by = options.by or tuple(lines)
    others = [name for name in lines if name not in by]
    for name in by:
        if name not in results.axes_of(rows):
            raise OptionsError(
                f"--by {name}: the axes of this table are {', '.join(results.axes_of(rows))}"
            )
    path = options.results.resolve()
    title = path.parent.name if path.stem == "results" else path.stem
    out = options.out or options.results.parent
    out.mkdir(parents=True, exist_ok=True)
    text = sweep_markdown(points, title, [name for name in varied if name != "lambda"])
    (out / "report.md").write_text(text)
    paths = [out / f"rate_distortion.{kind}" for kind in ("png", "pdf")]
    _draw(points, options.x, by, others, title, paths)
    print(f"wrote {out}/report.md, rate_distortion.png, .pdf", file=sys.stderr)


def average(rows: Sequence[results.Row]) -> list[Point]:
    """Points of a table, over the seeds of training: what is measured becomes a mean of them.

    With one seed of training, `mean` and `std` stay those over the seeds of the head; with more,
    `std` is the deviation between trainings. `runs` says how many there are.
    """
    groups: dict[tuple, list[results.Row]] = {}
    for row in rows:
        same = tuple((k, v) for k, v in row.items() if k not in (*_MEASURED, "seed"))
        groups.setdefault(same, []).append(row)
    points = []
    for same, group in groups.items():
        numbers = {k: [float(r[k]) for r in group] for k in _MEASURED if group[0].get(k)}
        point: Point = dict(same) | {k: float(np.mean(v)) for k, v in numbers.items()}
        point["with_decoder"] = point["with_decoder"] == "True"
        point["runs"] = len(group)
        if len(group) > 1:
            point["std"] = float(np.std(numbers["mean"], ddof=1))
        points.append(point)
    return points


def sweep_markdown(points: Sequence[Point], title: str, axes: Sequence[str]) -> str:
    """The points of a sweep as a table, with a column for each of these axes."""
    counts = {p["runs"] for p in points if p["method"] in results.NEC} or {1}
    seeds = max(p["seeds"] for p in points)
    of_heads = "one training of the head" if seeds == 1 else f"{seeds:g} trainings of the head"
    over = of_heads
    if max(counts) > 1:
        up_to = "up to " if len(counts) > 1 else ""
        over = f"{up_to}{max(counts)} trainings (baselines: {of_heads})"
    lines = [
        f"# {title}",
        "",
        _explained(points, over),
        "",
        *_table(points, axes),
    ]
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and rate_distortion.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (folder / "report.md").write_text(markdown(report))
    plot(report, folder / "rate_distortion.png")


def markdown(report: Report) -> str:
    """The report as a table: a row a method and setting, a column a head."""
    exact = "exact" if report["roundtrip_exact"] else "NOT EXACT"
    lines = [
        f"# {report['dataset']}, {report['split']}: {report['images']} images",
        "",
        f"Base model `{report['model']}`. Round trip of every image: {exact}. "
        + _explained(report["points"], "seeds"),
        "",
        *_table(report["points"], []),
    ]
    return "\n".join(lines) + "\n"


def _explained(points: Sequence[Point], over: str) -> str:
    metrics = ", ".join(dict.fromkeys(f"{AXES[p['metric']]} ({p['task']})" for p in points))
    return (
        f"Scores are {metrics}, mean ± standard deviation over {over}. Bytes are real, with all "
        "framing; codec bytes are what a decoder needs once."
    )


def _head(point: Point) -> Head:
    return point["head"], point["with_decoder"]


def _heads(points: Sequence[Point]) -> list[Head]:
    return list(dict.fromkeys(map(_head, points)))


def _table(points: Sequence[Point], axes: Sequence[str]) -> list[str]:
    """Lines of markdown: a row a method, setting and values of the axes, a column a head."""
    heads, keys = _heads(points), ("method", "setting", *axes)
    cells: dict[tuple, dict[Head, Point]] = {}
    for p in points:
        cells.setdefault(tuple(p[k] for k in keys), {})[_head(p)] = p
    titles = [*keys, "bytes / image", "estimated", "codec bytes", *(head_name(*h) for h in heads)]
    lines = [
        "| " + " | ".join(titles) + " |",
        "|" + " --- |" * len(keys) + " ---: |" * (3 + len(heads)),
    ]
    for key, row in cells.items():
        first = next(iter(row.values()))
        estimate = first.get("estimated_bytes_per_image")
        sizes = [
            f"{first['bytes_per_image']:,.1f}",
            "" if estimate is None else f"{estimate:,.1f}",
            f"{first['codec_bytes']:,.0f}",
        ]
        scores = [_score(row[h]) if h in row else "" for h in heads]
        lines.append("| " + " | ".join([*key, *sizes, *scores]) + " |")
    return lines


def _score(p: Point) -> str:
    several = p["seeds"] > 1 or p.get("runs", 1) > 1
    return f"{p['mean']:.1f}" + (f" ± {p['std']:.1f}" if several else "")


def plot(report: Report, path: Path) -> None:
    """Bytes an image (log) against score, a panel a head, a line a method, with error bars."""
    title = f"{report['dataset']}, {report['split']} split, {report['images']} images"
    _draw(report["points"], "bytes_per_image", (), (), title, [path])


def _draw(
    points: Sequence[Point],
    x: str,
    by: Sequence[str],
    others: Sequence[str],
    title: str,
    paths: Sequence[Path],
) -> None:
    """A panel a head; in each a curve for each of the values of `by`, and one a baseline.

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
    for head in _heads(points):
        lines: dict[tuple[str, str, str], list[tuple[float, float, float]]] = {}
        for place, p in zip(places, points, strict=True):
            if _head(p) == head:
                key = (p["method"], _values(p, by), _values(p, others))
                lines.setdefault(key, []).append((place, p["mean"], p["std"]))
        panels[head_name(*head)] = [
            Curve(_label(*kind), sorted(line), look)
            for kind, look in looks.items()
            for key, line in lines.items()
            if key[:2] == kind
        ]
        metrics.append(next(AXES[p["metric"]] for p in points if _head(p) == head))
    draw(panels, X_LABELS.get(x, x.replace("_", " ")), metrics, title, paths)


def _label(method: str, values: str) -> str:
    if method in results.NEC and values:
        return values
    return ", ".join(filter(None, (_STYLE[method][0], values)))


def _looks(kinds: Sequence[tuple[str, str]]) -> dict[tuple[str, str], dict[str, Any]]:
    """How each (method, values) is drawn, as matplotlib says it."""
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
    """The values of axes in words; those that say nothing of a baseline are left out."""
    given = [name for name in by if point["method"] in results.NEC or point[name] != ""]
    return ", ".join(f"{name} {_short(point[name])}" for name in given)


def _short(value: str) -> str:
    """A path without what all paths of models have in common; a value of None in words."""
    path = Path(value)
    if path.suffix == ".safetensors":
        return path.parent.name if path.stem == "model" else path.stem
    return value or "default"
