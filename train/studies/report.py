"""Reports of one evaluation (report.md, and report.json for programs) and of a whole sweep."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coder import files
from train.configs.options import OptionsError
from train.configs.study_options import Report as ReportOptions
from train.studies import curves, results
from train.studies.curves import AXES, Point, head_name, head_of, heads_of
from train.studies.scores import Scores
from train.studies.study import Method

log = logging.getLogger(__name__)

Report = dict[str, Any]

METRICS = {"classification": "top1", "segmentation": "miou"}
_MEASURED = (
    "bytes_per_image", "estimated_bytes_per_image", "codec_bytes", "refiner_bytes", "mean", "std",
    "seeds", "mse",
)  # fmt: skip
FILES = ("report.json", "images.npz", "report.md", "rate_distortion.png")
"""What `write` writes."""
_OF_A_SWEEP = ("report.md", "rate_distortion.png", "rate_distortion.pdf")
IMAGES = "images"
"""The key of the values of each image in a point that is not yet written."""


def point(method: Method, task: str, head: str, with_decoder: bool, scores: Scores) -> Point:
    """One entry of `points` in report.json, with the values of each image under `IMAGES`."""
    percent = scores.percent()
    each: dict[str, NDArray] = {"bytes": method.sizes, "hits": scores.hits, "totals": scores.totals}
    if method.errors is not None:
        each["errors"] = method.errors
    return {
        "method": method.name,
        "setting": method.setting,
        "task": task,
        "head": head,
        "with_decoder": with_decoder,
        "bytes_per_image": round(method.bytes_per_image, 2),
        "codec_bytes": method.codec_bytes,
        "metric": METRICS[task],
        "mean": round(float(np.mean(percent)), 3),
        "std": round(float(np.std(percent, ddof=1)) if len(percent) > 1 else 0.0, 3),
        "seeds": len(percent),
        **({} if method.errors is None else {"mse": float(f"{np.mean(method.errors):.4g}")}),
        **{name: round(value, 4) for name, value in method.facts.items()},
        IMAGES: each,
    }


def spread(scores: Sequence[float] | NDArray) -> str:
    """Mean and standard deviation of scores, as text."""
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    return f"{np.mean(scores):.1f} +- {np.std(scores, ddof=1):.1f}"


def run(options: ReportOptions) -> None:
    """Write report.md and the figure of a sweep's results.csv."""
    files.check_input(options.results, "table: give the results.csv of a sweep")
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
    axes = results.axes_of(rows)
    if wrong := [name for name in by if name not in axes]:
        raise OptionsError(f"--by {wrong[0]}: the axes of this table are {', '.join(axes)}")
    path = options.results.resolve()
    title = path.parent.name if path.stem == "results" else path.stem
    text = sweep_markdown(points, title, [name for name in varied if name != "lambda"])
    out = options.out or options.results.parent
    files.check_outputs(out, _OF_A_SWEEP, overwrite=options.overwrite, inputs=[options.results])
    files.make_folder(out)
    paths = [out / f"rate_distortion.{kind}" for kind in ("png", "pdf")]
    curves.draw_points(points, options.x, by, others, title, paths)
    files.write_text(out / "report.md", text, overwrite=True)
    log.info(f"wrote {out}/report.md, rate_distortion.png, .pdf")


def average(rows: Sequence[results.Row]) -> list[Point]:
    """Points of a table, averaged over the seeds of training.

    With one seed of training, `mean` and `std` stay those over the seeds of the head; with more,
    `std` is the deviation between trainings. `runs` says how many there are.
    """
    groups: dict[tuple, list[results.Row]] = {}
    for row in rows:
        same = tuple((k, v) for k, v in row.items() if k not in (*_MEASURED, "seed"))
        groups.setdefault(same, []).append(row)
    points = []
    for same, group in groups.items():
        numbers = {k: [float(r[k]) for r in group if r.get(k)] for k in _MEASURED}
        point: Point = dict(same) | {k: float(np.mean(v)) for k, v in numbers.items() if v}
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
    return "\n".join([f"# {title}", "", _explained(points, over), "", *_table(points, axes), ""])


def write(report: Report, folder: Path) -> None:
    """Write `FILES`, which are replaced if they exist.

    images.npz has the values of each image as arrays named `0.bytes`, `0.hits`, ..., by point.
    """
    files.make_folder(folder)
    each = {f"{i}.{k}": v for i, p in enumerate(report["points"]) for k, v in p[IMAGES].items()}
    with files.writing(folder / "images.npz", overwrite=True) as file:
        np.savez_compressed(file, **each)
    report = report | {"points": [without_images(p) for p in report["points"]]}
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    files.write_text(folder / "report.json", text, overwrite=True)
    files.write_text(folder / "report.md", markdown(report), overwrite=True)
    title = f"{report['dataset']}, {report['split']} split, {report['images']} images"
    place = folder / "rate_distortion.png"
    curves.draw_points(report["points"], "bytes_per_image", (), (), title, [place])


def without_images(point: Point) -> Point:
    """A point without the values of each image, as in reports and tables."""
    return {name: value for name, value in point.items() if name != IMAGES}


def markdown(report: Report) -> str:
    """The report as a table: one row per method and setting, one column per head."""
    exact = "exact" if report["roundtrip_exact"] else "NOT EXACT"
    title = f"# {report['dataset']}, {report['split']}: {report['images']} images"
    about = f"Base model `{report['model']}`. Round trip of every image: {exact}. "
    about += _explained(report["points"], "seeds")
    return "\n".join([title, "", about, "", *_table(report["points"], []), ""])


def _explained(points: Sequence[Point], over: str) -> str:
    metrics = ", ".join(dict.fromkeys(f"{AXES[p['metric']]} ({p['task']})" for p in points))
    refined = any(p["method"].endswith(results.REFINED) for p in points)
    return (
        f"Scores are {metrics}, mean ± standard deviation over {over}. Bytes are real, with all "
        "framing; codec bytes are what a decoder needs once"
        + (", with the refiner if embeddings are refined. " if refined else ". ")
        + "Pixels (JPEG 2000, raw-zstd) are coded at the size at which the model sees them."
    )


def _table(points: Sequence[Point], axes: Sequence[str]) -> list[str]:
    """Lines of markdown: one row per method, setting and values of axes, one column per head."""
    heads, keys = heads_of(points), ("method", "setting", *axes)
    cells: dict[tuple, dict[curves.Head, Point]] = {}
    for p in points:
        cells.setdefault(tuple(p[k] for k in keys), {})[head_of(p)] = p
    errors = ["mse"] if any("mse" in p for p in points) else []
    titles = [*keys, "bytes / image", "estimated", "codec bytes", *errors]
    lines = [
        "| " + " | ".join([*titles, *(head_name(*h) for h in heads)]) + " |",
        "|" + " --- |" * len(keys) + " ---: |" * (len(titles) - len(keys) + len(heads)),
    ]
    for key, row in cells.items():
        first = next(iter(row.values()))
        estimate, mse = first.get("estimated_bytes_per_image"), first.get("mse")
        sizes = [
            f"{first['bytes_per_image']:,.1f}",
            "" if estimate is None else f"{estimate:,.1f}",
            f"{first['codec_bytes']:,.0f}",
        ]
        sizes += ["" if mse is None else f"{mse:.3f}"] * len(errors)
        scores = [_score(row[h]) if h in row else "" for h in heads]
        lines.append("| " + " | ".join([*key, *sizes, *scores]) + " |")
    return lines


def _score(p: Point) -> str:
    several = p["seeds"] > 1 or p.get("runs", 1) > 1
    return f"{p['mean']:.1f}" + (f" ± {p['std']:.1f}" if several else "")
