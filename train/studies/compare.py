"""`nec compare`: bytes at equal score, from the reports of `evaluate`.

Bjontegaard's delta (ITU-T VCEG-M33, 2001) is the mean difference of the logarithms of two rates
(bytes per image) over the scores that both curves reach. A point counts only if no cheaper point of
its curve scores as well. Between points, the logarithm of the rate is interpolated by a monotone
piecewise cubic. An error is compared by its logarithm, as in the PSNR of the original. Intervals
are those of a paired bootstrap: images are resampled with replacement, the same for both curves.
"""

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from coder import files
from train.configs.options import OptionsError
from train.configs.study_options import AXES, Compare
from train.studies import results
from train.studies.curves import Point, draw_points, head_name, head_of, label
from train.studies.report import FILES, average
from train.studies.scores import Scores

log = logging.getLogger(__name__)

_SAMPLES = 200  # points in the range of scores that two curves share
_MISSING = 0.05  # if more of the resamples than this have no delta, no interval is given
NONE = "-"
# What is read of a point, and of each of its images; some points have no errors.
_OF_A_POINT = (
    "method", "setting", "head", "with_decoder", "bytes_per_image", "codec_bytes", "mean"
)  # fmt: skip
_EACH = ("bytes", "hits", "totals", "errors")
_APART = "the two are not of one run, or were edited: evaluate again"
# How far a report's figures, which are rounded, may lie from the means of its images: rtol, atol.
_ROUNDED = {"bytes_per_image": (0, 0.01), "mean": (0, 0.001), "mse": (1e-3, 0)}
Key = tuple[str, bool]  # the method, and whether its scores are after the decoder's first block
Points = NDArray[np.float64]  # [2, P]: log bytes and scores of P points
Measured = tuple[Point, dict[str, NDArray]]  # a point, and the values of each image


@dataclass(frozen=True)
class Rated:
    """The P points of a curve, measured on N images; N is 1 if only means are known.

    Attributes:
      sizes: bytes of each image, float64 [P, N].
      scores: the scores of P heads; or errors [P, N].
    """

    sizes: NDArray[np.float64]
    scores: Sequence[Scores] | NDArray[np.float64]

    def points(self, times: NDArray[np.int64]) -> Points:
        """Log bytes and scores of each point, with each image counted `times` [N]."""
        rates = np.log(self.sizes @ times / times.sum())
        if isinstance(self.scores, np.ndarray):
            values = -10 * np.log10(self.scores @ times / times.sum())
        else:
            values = [one.percent(times).mean() for one in self.scores]
        return np.array([rates, values])

    def front(self, times: NDArray[np.int64]) -> Points:
        """The points that score more than every cheaper one, by rising bytes."""
        points = self.points(times)
        return points[:, on_front(points)]


def run(options: Compare) -> None:
    """Print the tables, and draw the curves."""
    if not options.reports:
        raise OptionsError("no reports: give folders that `nec evaluate` wrote")
    if options.plot is not None:
        place = options.plot.parent, [options.plot.name]
        inputs = [folder / name for folder in options.reports for name in FILES]
        files.check_outputs(*place, overwrite=options.overwrite, inputs=inputs)
    measured = read_reports(options)
    curves = as_curves(options, measured)
    against = (options.against, options.against_decoder)
    if against not in curves:
        known = ", ".join(_name(key) for key in curves)
        raise OptionsError(f"no curve of {_name(against)}: there are {known}")
    if len(curves) == 1:
        raise OptionsError(f"only {_name(against)} is there: nothing to compare it with")
    for number, what in enumerate(("score", "mse")):
        ours = {key: one for key, pair in curves.items() if (one := pair[number]) is not None}
        reference = ours.pop(against, None)
        if what == "mse":  # it does not depend on the head, nor on a decoder before the head
            ours = {k: v for k, v in ours.items() if not (k[1] and (k[0], False) in curves)}
            ours.pop((against[0], not against[1]), None)
        if reference is not None and ours:
            print("\n".join(tables(options, what, _name(against), reference, ours)) + "\n")
    if options.plot is not None:
        plot(options, [point for point, _ in measured], options.plot)


def plot(options: Compare, points: Sequence[Point], path: Path) -> None:
    """Plot bytes per image against score, all reports in one figure; the first of equal points."""
    x = f"bytes per image + codec / {options.archive:,}" if options.archive else "bytes_per_image"
    shown: dict[tuple, Point] = {}
    for point in points:
        same = (point["method"], point["setting"], *head_of(point))
        shown.setdefault(same, point | {x: point["bytes_per_image"] + share(options, point)})
    files.make_folder(path.parent)
    draw_points(list(shown.values()), x, (), (), points[0].get("of", ""), [path])
    log.info(f"wrote {path}")


def share(options: Compare, point: Point) -> float:
    """The share of one image in the bytes of the codec."""
    return point["codec_bytes"] / options.archive if options.archive else 0.0


def tables(
    options: Compare, what: str, name: str, reference: Rated, others: dict[Key, Rated]
) -> list[str]:
    """Two tables in markdown: deltas over ranges of bytes, and bytes at the reference's scores."""
    images = reference.sizes.shape[1]
    draws = resamples(images, options.resamples)
    edge = np.log(options.edge)
    ranges = {"all": (-np.inf, np.inf)}
    ranges |= {f"below {options.edge:g}": (-np.inf, edge), f"from {options.edge:g}": (edge, np.inf)}
    head = [f"bytes at equal {what}, against {name}", *ranges]
    rows = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * len(ranges)]
    ours = [reference.points(times) for times in draws]
    fronts = [points[:, on_front(points)] for points in ours]
    which = on_front(ours[0])
    rates, values = fronts[0]
    as_text = [f"{v:.1f}" if what == "score" else f"{10 ** (-v / 10):.3f}" for v in values]
    shown = [f"{np.exp(r):,.0f} ({text})" for r, text in zip(rates, as_text, strict=True)]
    points = [
        f"| bytes ({what}) of {name} | {' | '.join(shown)} |",
        "| --- |" + " ---: |" * len(rates),
    ]
    apart = []
    for key, other in others.items():
        if other.sizes.shape[1] != images:
            raise OptionsError(
                f"{_name(key)} was measured on {other.sizes.shape[1]} images, {name} on {images}: "
                "give reports of the same images"
            )
        pairs = [(front, other.front(times)) for front, times in zip(fronts, draws, strict=True)]
        cells = [interval([delta(*pair, *part) for pair in pairs]) for part in ranges.values()]
        at = [
            rates_at(theirs, values[which]) - rates[which]
            for (rates, values), (_, theirs) in zip(ours, pairs, strict=True)
        ]
        shown = [interval(column) for column in np.array(at).T]
        if set(cells + shown) == {NONE}:
            apart.append(_name(key))
            continue
        rows.append(f"| {_name(key)} | {' | '.join(cells)} |")
        points.append(f"| {_name(key)} | {' | '.join(shown)} |")
    if apart:
        points += [
            "",
            f"Not compared (no {what} in common, or only one point): {'; '.join(apart)}.",
        ]
    return [*rows, "", *points]


def _name(key: Key) -> str:
    return head_name(label(key[0]), key[1])


def on_front(points: Points) -> NDArray[np.intp]:
    """The indices of the points that score more than every cheaper one, by rising bytes."""
    rates, values = points
    order = np.lexsort((-values, rates))
    values = values[order]
    best = np.concatenate([[-np.inf], np.maximum.accumulate(values)[:-1]])
    return order[values > best]


def delta(reference: Points, other: Points, low: float, high: float) -> float:
    """The mean log ratio of bytes over the scores that both fronts reach.

    Only scores that the reference reaches with log bytes from `low` to `high` count.
    """
    (rates, values), (_, others) = reference, other
    if len(values) < 2 or len(others) < 2:
        return np.nan
    ends = np.interp(np.clip([low, high], rates[0], rates[-1]), rates, values)
    first, last = max(ends[0], others[0]), min(ends[1], others[-1])
    if not first < last:
        return np.nan
    at = np.linspace(first, last, _SAMPLES)
    return float(np.mean(rates_at(other, at) - rates_at(reference, at)))


def rates_at(front: Points, at: NDArray) -> NDArray[np.float64]:
    """Log bytes of a curve at the scores `at`; NaN where the curve does not reach them."""
    rates, values = front
    if len(values) < 2:
        return np.where(at == values[0], rates[0], np.nan)
    return PchipInterpolator(values, rates, extrapolate=False)(at)


def interval(logs: Sequence[float] | NDArray) -> str:
    """The first log ratio in percent, and the interval that holds 95 % of the others."""
    if not np.isfinite(logs[0]):
        return NONE
    percent = 100 * np.expm1(np.asarray(logs))
    drawn = percent[1:][np.isfinite(percent[1:])]
    if len(drawn) < max(1, (1 - _MISSING) * (len(percent) - 1)):
        return f"{round(percent[0]):+d} %"
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{round(percent[0]):+d} % ({round(low):+d} to {round(high):+d})"


def resamples(images: int, count: int) -> list[NDArray[np.int64]]:
    """How often each image counts, [images]: once, then in each of `count` bootstrap draws."""
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(images, np.full(images, 1 / images), count)
    return [np.ones(images, np.int64), *(drawn if images > 1 else [])]


def read_reports(options: Compare) -> list[Measured]:
    """The points of all reports, of the head that is asked for."""
    found = [pair for path in options.reports for pair in read_points(path)]
    of = dict.fromkeys(point.get("of", "a table") for point, _ in found)
    heads = {point["head"] for point, _ in found}
    if len(of) > 1:
        raise OptionsError(
            f"the reports are of different images ({'; '.join(of)}): give reports of the same ones"
        )
    if options.head not in heads | {""}:
        raise OptionsError(f"--head {options.head}: choose from {', '.join(sorted(heads))}")
    if not options.head and len(heads) > 1:
        raise OptionsError(f"several heads: pass --head, one of {', '.join(sorted(heads))}")
    return [pair for pair in found if pair[0]["head"] == (options.head or pair[0]["head"])]


def as_curves(
    options: Compare, measured: Sequence[Measured]
) -> dict[Key, tuple[Rated, Rated | None]]:
    """The curves, by score and by error; those with one point alone as well."""
    found: dict[Key, list[Measured]] = {}
    for point, images in measured:
        found.setdefault((point["method"], point["with_decoder"]), []).append((point, images))
    return {key: _rated(options, points) for key, points in found.items()}


def refuse_mixtures(path: Path, points: Sequence[Point]) -> None:
    """Raise OptionsError if the points of a method differ in more than lambda."""
    for method in dict.fromkeys(point["method"] for point in points):
        mine = [point for point in points if point["method"] == method]
        for name in set(AXES) - {"lambda"}:
            if len(values := {point.get(name) for point in mine}) > 1:
                raise OptionsError(
                    f"{path}: points of {label(method)} differ in {name} "
                    f"({', '.join(sorted(map(str, values)))}): give a table of one of them"
                )


def read_points(path: Path) -> list[Measured]:
    """The points of a folder of `evaluate`, or of a table, which has means only."""
    if path.suffix == ".csv" and path.is_file():
        points = average(results.read(path))
        if not points:
            raise OptionsError(f"{path} has no rows yet: run the sweep first")
        refuse_mixtures(path, points)
        return [(point, {"bytes": np.array([point["bytes_per_image"]])}) for point in points]
    if not (path / "report.json").is_file() or not (path / "images.npz").is_file():
        raise OptionsError(f"{path} has no report.json and images.npz: `evaluate` writes both")
    report = files.read_json(path / "report.json", "report of `evaluate`")
    try:
        what = f"{report['dataset']}, {report['split']} split, {report['images']} images"
        points = [point | {"of": what} for point in report["points"]]
        with np.load(path / "images.npz") as held:
            each = dict(held)
        for i, point in enumerate(points):
            here = point.keys() | {name for name in _EACH if f"{i}.{name}" in each}
            if missing := {*_OF_A_POINT, *_EACH[:3]} - here:
                raise ValueError(f"point {i} has no {min(missing)}")
            _refuse_apart(path, i, point, each)
        if len(held_points := {name.partition(".")[0] for name in each}) != len(points):
            raise OptionsError(
                f"{path}: report.json has {len(points)} points and images.npz has "
                f"{len(held_points)}: {_APART}"
            )
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise OptionsError(
            f"{path}: report.json or images.npz is damaged ({error}): evaluate again"
        ) from error
    return [
        (point, {name: each[f"{i}.{name}"] for name in _EACH if f"{i}.{name}" in each})
        for i, point in enumerate(points)
    ]


def _refuse_apart(path: Path, index: int, point: Point, each: dict[str, NDArray]) -> None:
    """Raise OptionsError unless a point's figures are the rounded means of its arrays."""
    means = {"bytes_per_image": float(np.mean(each[f"{index}.bytes"]))}
    scores = Scores(each[f"{index}.hits"], each[f"{index}.totals"])
    means["mean"] = float(np.mean(scores.percent()))
    if "mse" in point and f"{index}.errors" in each:
        means["mse"] = float(np.mean(each[f"{index}.errors"]))
    for name, value in means.items():
        if not np.isclose(point[name], value, rtol=_ROUNDED[name][0], atol=_ROUNDED[name][1]):
            raise OptionsError(
                f"{path}: point {index} of report.json ({point['method']} {point['setting']}, head "
                f"{point['head']}) has a {name} of {point[name]:g}, and its images in images.npz "
                f"have {value:g}: {_APART}"
            )


def _rated(options: Compare, points: Sequence[Measured]) -> tuple[Rated, Rated | None]:
    counts = {len(images["bytes"]) for _, images in points}
    if len(counts) > 1:
        raise OptionsError(f"points of one curve are of {sorted(counts)} images: give one report")
    sizes = np.stack([images["bytes"] + share(options, p) for p, images in points])
    if "hits" in points[0][1]:
        scores = [Scores(images["hits"], images["totals"]) for _, images in points]
        errors = [images.get("errors") for _, images in points]
    else:  # a mean, as one image's
        means = [np.array([[[round(1e6 * p["mean"])]]]) for p, _ in points]
        scores = [Scores(mean, np.full_like(mean, 10**8)) for mean in means]
        errors = [np.array([float(p["mse"])]) if p.get("mse") else None for p, _ in points]
    known = [one for one in errors if one is not None]
    of_errors = len(known) == len(points) and all(np.all(one > 0) for one in known)
    return Rated(sizes, scores), Rated(sizes, np.stack(known)) if of_errors else None
