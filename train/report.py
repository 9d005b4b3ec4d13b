"""A study's report: report.json for programs, report.md and rate_distortion.png for people."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from train.methods import Method

Report = dict[str, Any]

METRICS = {"classification": "top1", "segmentation": "miou"}
AXES = {"top1": "top-1 accuracy (%)", "miou": "mean IoU (%)"}
# Okabe and Ito's colours, told apart by colour-blind readers; NEC first and boldest.
_STYLE = {
    "nec": ("NEC", "#D55E00", "o"),
    "uqe": ("UQE, as published", "#999999", "v"),
    "uqe-channel": ("UQE, per channel", "#0072B2", "^"),
    "float16": ("float16 + zstd", "#56B4E9", "s"),
    "jpeg2000": ("JPEG 2000", "#009E73", "D"),
    "raw-zstd": ("raw pixels + zstd", "#000000", "*"),
}


def point(
    method: "Method", task: str, head: str, with_decoder: bool, scores: Sequence[float]
) -> dict[str, Any]:
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


def write(report: Report, folder: Path) -> None:
    """Write report.json, report.md and rate_distortion.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    (folder / "report.md").write_text(markdown(report))
    plot(report, folder / "rate_distortion.png")


def markdown(report: Report) -> str:
    """The report as a table: a row a method and setting, a column a head."""
    points = report["points"]
    heads = list(dict.fromkeys((p["head"], p["with_decoder"]) for p in points))
    metrics = ", ".join(dict.fromkeys(f"{AXES[p['metric']]} ({p['task']})" for p in points))
    rows = list(dict.fromkeys((p["method"], p["setting"]) for p in points))
    cells = {(p["method"], p["setting"], p["head"], p["with_decoder"]): p for p in points}
    exact = "exact" if report["roundtrip_exact"] else "NOT EXACT"
    lines = [
        f"# {report['dataset']}, {report['split']}: {report['images']} images",
        "",
        f"Base model `{report['model']}`. Round trip of every image: {exact}. Scores are "
        f"{metrics}, mean ± standard deviation over seeds. Bytes are real, with all framing; codec "
        "bytes are what a decoder needs once.",
        "",
        "| method | setting | bytes / image | estimated | codec bytes | "
        + " | ".join(head_name(*h) for h in heads)
        + " |",
        "| --- | --- | ---: | ---: | ---: |" + " ---: |" * len(heads),
    ]
    for method, setting in rows:
        row = [cells.get((method, setting, *h)) for h in heads]
        first = next(p for p in row if p is not None)
        estimate = first.get("estimated_bytes_per_image")
        scores = ["" if p is None else _score(p) for p in row]
        lines.append(
            f"| {method} | {setting} | {first['bytes_per_image']:,.1f} | "
            f"{'' if estimate is None else f'{estimate:,.1f}'} | {first['codec_bytes']:,} | "
            + " | ".join(scores)
            + " |"
        )
    return "\n".join(lines) + "\n"


def _score(p: dict[str, Any]) -> str:
    return f"{p['mean']:.1f}" + (f" ± {p['std']:.1f}" if p["seeds"] > 1 else "")


def plot(report: Report, path: Path) -> None:
    """Bytes an image (log) against score, a panel a head, a line a method, with error bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogFormatterSciNotation

    points = report["points"]
    heads = list(dict.fromkeys((p["head"], p["with_decoder"]) for p in points))
    figure, axes = plt.subplots(1, len(heads), figsize=(4.4 * len(heads), 4.6), squeeze=False)
    for axis, head in zip(axes[0], heads, strict=True):
        for method, (label, colour, marker) in _STYLE.items():
            chosen = [p for p in points if (p["head"], p["with_decoder"]) == head]
            chosen = sorted(
                (p for p in chosen if p["method"] == method), key=lambda p: p["bytes_per_image"]
            )
            if not chosen:
                continue
            axis.errorbar(
                [p["bytes_per_image"] for p in chosen],
                [p["mean"] for p in chosen],
                [p["std"] for p in chosen],
                label=label,
                color=colour,
                marker=marker,
                linewidth=2.2 if method == "nec" else 1.2,
                markersize=7 if method in ("nec", "raw-zstd") else 5,
                capsize=3,
            )
        axis.set_xscale("log")
        sizes = [p["bytes_per_image"] for p in points]
        if max(sizes) < 10 * min(sizes):  # labels of minor ticks would run into each other
            axis.set_xlim(min(sizes) / 2, 2 * max(sizes))
            axis.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1, 0.1)))
        metric = next(p["metric"] for p in points if (p["head"], p["with_decoder"]) == head)
        axis.set_title(head_name(*head))
        axis.set_xlabel("bytes an image")
        axis.set_ylabel(AXES[metric])
        axis.grid(visible=True, which="major", alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(heads))
    rows = -(-len(labels) // columns)
    figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{report['dataset']}, {report['split']} split, {report['images']} images")
    figure.tight_layout(rect=(0, 0.05 * rows + 0.01, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
