"""The summary that a training run prints at its end."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from nec_jax.images.record import Source
from nec_jax.model_file import NecParams
from train.engine.log import read_metrics
from train.engine.run_record import Record
from train.engine.terminal import CONSOLE


def print_summary(
    record: Record,
    path: Path,
    source: Source,
    params: NecParams,
    blobs: Sequence[bytes] = (),
) -> None:
    """Print what was trained, the results, and the next command, on stderr.

    Args:
      record: the result of `run_record.finish`.
      path: the model's file.
      source: the training images.
      params: the model saved at `path`.
      blobs: blobs of some validation images, if the model has a codec.
    """
    title = f"{record['command']} {path.parent}"
    table = Table(title=title, show_header=False, title_justify="left")
    rows = _run(record) + _validation(read_metrics(path.parent / "metrics.jsonl"))
    if params.codec:
        size = f"{np.mean([len(blob) for blob in blobs]):,.1f} ({len(blobs)} of val)"
        rows += [
            ("bytes per image, coded", size),
            ("codec", f"{params.codec.codec_bytes:,} bytes"),
        ]
    for row in [*rows, ("model", f"{path.stat().st_size / 1e6:,.1f} MB")]:
        table.add_row(*row)
    CONSOLE.print(table, soft_wrap=False)
    # As whole lines, so that they can be copied: a table would break them.
    for line in (f"wrote {path}", f"next: {shlex.join(next_command(record, path, source))}"):
        CONSOLE.print(line, highlight=False)


def _run(record: Record) -> list[tuple[str, str]]:
    config, data = record["config"], record["data"]
    seen, wall = config["steps"] * config["batch"], record["wall_s"]
    epochs, starts = seen / data["train"]["images"], len(record["starts"])
    val = min(data["val"]["images"], config["val_images"])
    return [
        ("images", f"{data['train']['images']:,} to train, {val:,} to validate"),
        ("steps", f"{config['steps']:,} of {config['batch']}, {epochs:.3g} epochs"),
        ("wall time", duration(wall) + (f" in {starts} starts" if starts > 1 else "")),
        ("images/s, all in all", f"{seen / max(wall, 1):.3g}"),
    ]


def _validation(metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    val = [line for line in metrics if line.get("split") == "val"]
    if not val:  # somebody took the file away
        return []
    names = {"loss": "val loss", "mse": "val mse", "bits_per_element": "bits per element"}
    rows = [
        (label, f"{val[0][name]:.4g} -> {val[-1][name]:.4g}")
        for name, label in names.items()
        if name in val[0]
    ]
    if "bits_per_image" in val[0]:
        first, last = (line["bits_per_image"] / 8 for line in (val[0], val[-1]))
        rows.append(("bytes per image, estimated", f"{first:,.1f} -> {last:,.1f}"))
    return rows


def duration(seconds: float) -> str:
    """A duration as `1 h 02 min 03 s`, without leading zero parts."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    if hours:
        return f"{hours} h {m:02d} min {s:02d} s"
    return f"{m} min {s:02d} s" if m else f"{s} s"


def next_command(record: Record, path: Path, source: Source) -> list[str]:
    """The next command after this run: compression, or the evaluation of its codec."""
    config = record["config"]
    data = ["--data", config["data"]]
    # 256 was the value of runs that cut nothing too; ids of windows end in their size.
    if next(iter(source.files()))[0].endswith(f",{config['chip']}"):
        data += ["--chip", str(config["chip"])]
    command = ["python", "-m", "train.main"]
    if record["command"] == "pretrain":
        workdir = path.parent.with_name(path.parent.name + "-nec")
        return [*command, "compress", "--init", str(path), *data, "--workdir", str(workdir)]
    if record["command"] == "distil":
        return [*command, "evaluate", "--model", str(path), "--data", "LABELLED"]
    # Without an initial model of the same bands there is no base to compare with.
    base = config["init"] if config["init"] and not config["bands"] else str(path)
    labelled = data if source.classes else ["--data", "LABELLED"]
    return [*command, "evaluate", "--base", base, "--models", str(path), *labelled]
