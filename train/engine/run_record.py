"""`run.json`: the inputs, software and times of a run, so that its model can be reproduced.

Also the lock of its folder, and the summary at its end.

Times are kept here and not in the model file, so that two runs of one configuration make equal
models.
"""

import hashlib
import json
import platform
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock, Timeout
from rich.table import Table

import nec_jax
from coder import FileError, files
from nec_jax.images.record import Source
from nec_jax.model_file import NecParams, model_path
from train.configs.options import Distil, OptionsError, Training, deciding, flag, plain
from train.data import fingerprint
from train.engine.log import CONSOLE, read_metrics
from train.engine.processes import is_main_process

PACKAGES = (
    "nec-jax", "jax", "jaxlib", "flax", "optax", "numpy", "constriction", "orbax-checkpoint",
    "grain",
)  # fmt: skip

Record = dict[str, Any]


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Make a folder, and hold the operating system's lock of its file `.lock` for a block.

    If the process is killed, the lock ends too.

    Raises:
      OptionsError: another run holds the lock.
      OutputError: the folder cannot be made.
    """
    files.make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OptionsError(
            f"another run is at work in {folder}: wait for its end, or choose another --workdir"
        ) from None
    try:
        yield
    finally:
        lock.release()


def refuse_changed_config(options: Training) -> None:
    """Refuse a work folder of another configuration: resuming would mix two runs.

    Raises:
      OptionsError: options differ; names them.
    """
    path = options.workdir / "run.json"
    if not path.exists():
        names = ("model.safetensors", "metrics.jsonl", "checkpoints")
        theirs = [name for name in names if (options.workdir / name).exists()]
        if theirs:
            raise OptionsError(
                f"{options.workdir} holds {theirs[0]} and no run.json: no run wrote it, and a run "
                "would replace it: choose another --workdir"
            )
    if not path.exists() or not _has_trained(options.workdir):
        return
    # An option that did not exist then had the value that is its default now.
    before = deciding(plain(type(options)()) | read_record(path)["config"])
    now = deciding(plain(options))
    changed = [k for k in now if before.get(k) != now[k]] + [k for k in before if k not in now]
    if changed:
        raise OptionsError(
            f"{options.workdir} was made with other settings ("
            + ", ".join(f"{flag(k)}: {before.get(k)!r} -> {now.get(k)!r}" for k in changed)
            + "): choose another --workdir, or delete it to start again"
        )


def read_record(path: Path) -> Record:
    """What `run.json` holds.

    Raises:
      FileError: as `files.read_json`, or not the record of a run.
    """
    record = files.read_json(path, "record of a run")
    starts = record.get("starts")
    of_starts = isinstance(starts, list) and all(
        isinstance(start, dict) and {"start", "end"} <= start.keys() for start in starts
    )
    if not starts or not of_starts or not isinstance(record.get("config"), dict):
        raise FileError(
            "damaged, or no record of a run: bring it back, or choose another --workdir", path
        )
    return record


def _has_trained(workdir: Path) -> bool:
    """Whether the folder holds a checkpoint or a model."""
    return (workdir / "model.safetensors").exists() or any((workdir / "checkpoints").glob("*"))


@contextmanager
def recorded(options: Training, sources: dict[str, Source]) -> Iterator[Callable[..., None]]:
    """Lock the work folder for this run and begin `run.json`; yields a function that ends the run.

    That function writes the model, finishes `run.json` and prints the summary. Its arguments are
    the model and, if it has a codec, a function that makes the blobs of some validation images.
    Process 0 does all of this for all processes. Arguments and errors are those of `begin`.

    Raises:
      OptionsError: another run is at work in the folder.
    """
    if not is_main_process():
        yield lambda params, blobs=list: None
        return

    def end(params: NecParams, blobs: Callable[[], Sequence[bytes]] = list) -> None:
        path = options.workdir / "model.safetensors"
        nec_jax.save(params, path)
        coded = blobs()  # before the run counts as finished: it may fail, and takes its time
        print_summary(finish(options.workdir), path, sources["train"], params, coded)

    with held(options.workdir):
        refuse_changed_config(options)  # again: another run may have been here meanwhile
        begin(options, sources)
        yield end


def begin(options: Training, sources: dict[str, Source]) -> None:
    """Write `run.json`, or add another start to the one that is there.

    Args:
      options: the options, after `refuse_changed_config`.
      sources: the data of training and validation, by role.

    Raises:
      OptionsError: the data or the initial model differ from those that the run began with.
    """
    made_of = {
        "command": type(options).__name__.lower(),
        "config": plain(options),
        "data": {role: fingerprint(source) for role, source in sources.items()},
        "init": _model(options.init),
    }
    if isinstance(options, Distil):
        made_of["teacher"] = _model(options.teacher)
    files.make_folder(options.workdir)
    path = options.workdir / "run.json"
    record = made_of | {"starts": []}
    before = read_record(path) if path.exists() else None
    # If nothing was trained yet, changed options begin a new record.
    if before and (before["config"] == made_of["config"] or _has_trained(options.workdir)):
        record = before
        for part in [name for name in ("data", "init", "teacher") if name in made_of]:
            if record.get(part) != made_of[part]:
                raise OptionsError(
                    f"{options.workdir} was begun with another {part} of the same name "
                    f"({record.get(part)} -> {made_of[part]}): bring it back, choose another "
                    "--workdir, or delete this one to start again"
                )
        _close(record, _last_sign(options.workdir))
    record["starts"].append({"start": _now(), "end": None} | environment())
    files.write_text(path, json.dumps(record, indent=1) + "\n", overwrite=True)


def _model(name: str) -> Record | None:
    return {"path": name, "sha256": sha256(model_path(name))} if name else None


def finish(workdir: Path) -> Record:
    """Record that the run has ended and written its model; return the content of `run.json`."""
    record = read_record(workdir / "run.json")
    _close(record, _now())
    record |= {"model_sha256": sha256(workdir / "model.safetensors")}
    files.write_text(workdir / "run.json", json.dumps(record, indent=1) + "\n", overwrite=True)
    return record


def _close(record: Record, end: str) -> None:
    """Record the end of the last start, unless it has one."""
    last = record["starts"][-1]
    if last["end"] is None:
        last["end"] = max(end, last["start"])
    spans = [
        datetime.fromisoformat(start["end"]) - datetime.fromisoformat(start["start"])
        for start in record["starts"]
    ]
    record["wall_s"] = sum(span.total_seconds() for span in spans)


def _last_sign(workdir: Path) -> str:
    """The time at which an interrupted run wrote its last line of metrics."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return ""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def environment() -> Record:
    """Software, machine and devices of this process."""
    devices = jax.devices()
    return {
        "packages": {name: version(name) for name in PACKAGES},
        "git": git_revision(Path(__file__).parent.parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": {
            "kinds": sorted({device.device_kind for device in devices}),
            "count": len(devices),
            "processes": jax.process_count(),
        },
    }


def git_revision(root: Path) -> Record | None:
    """The commit of the packages in `root`, and whether they differ from it.

    None unless `root` is itself a checkout: an installed package may be inside another project's.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():
            return None
        changed = git("status", "--porcelain", "--", "coder", "nec_jax", "train")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


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
    config, data = record["config"], record["data"]
    seen, wall = config["steps"] * config["batch"], record["wall_s"]
    epochs, starts = seen / data["train"]["images"], len(record["starts"])
    val = min(data["val"]["images"], config["val_images"])
    rows = [
        ("images", f"{data['train']['images']:,} to train, {val:,} to validate"),
        ("steps", f"{config['steps']:,} of {config['batch']}, {epochs:.3g} epochs"),
        ("wall time", duration(wall) + (f" in {starts} starts" if starts > 1 else "")),
        ("images/s, all in all", f"{seen / max(wall, 1):.3g}"),
        *_validation(read_metrics(path.parent / "metrics.jsonl")),
    ]
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
    command = ["nec"]
    if record["command"] == "pretrain":
        workdir = path.parent.with_name(path.parent.name + "-nec")
        return [*command, "compress", "--init", str(path), *data, "--workdir", str(workdir)]
    if record["command"] == "distil":
        return [*command, "evaluate", "--model", str(path), "--data", "LABELLED"]
    # Without an initial model of the same bands there is no base to compare with.
    base = config["init"] if config["init"] and not config["bands"] else str(path)
    labelled = data if source.classes else ["--data", "LABELLED"]
    return [*command, "evaluate", "--base", base, "--models", str(path), *labelled]
