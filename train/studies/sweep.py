"""`nec sweep`: train and evaluate every point of a study, into one table.

A point in results.csv is done; an interrupted one resumes from its work folder. What all points
share is kept in sweep.json next to the table.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import nec_jax
from coder import CodecError, FileError, files
from nec_jax.api import with_coding
from nec_jax.images.record import DataError
from nec_jax.sources import folder_of
from train.configs import parse
from train.configs.options import Compress, OptionsError, deciding, plain
from train.configs.study_options import AXES, Evaluate, Sweep
from train.engine.checkpoint import CheckpointError
from train.engine.initial_model import config_for
from train.engine.inputs import refuse_cache, refuse_folders, same_in_every_epoch, unchanged_blocks
from train.engine.loop import NonFiniteLoss
from train.engine.run_record import held
from train.studies import evaluate, report
from train.studies.methods import baseline_methods, load_compressed, nec_methods
from train.studies.results import Results
from train.studies.study import Method, Study
from train.tasks import compress

log = logging.getLogger(__name__)

Points = list[dict[str, Any]]  # of a report
# Errors that end one point, and not the study.
_OF_A_POINT = (NonFiniteLoss, OptionsError, CodecError, DataError, CheckpointError, OSError)


def run(options: Sweep) -> None:
    """Train and measure all points that results.csv does not hold yet.

    Raises:
      OptionsError: no study; another study than the table's; another sweep is running in the
        folder; or, at the end, some points failed.
    """
    refuse_incomplete(options)
    points = plan(options)
    refuse_places(options, points)
    with held(options.workdir):
        fill(options, points, open_table(options))


def fill(options: Sweep, points: dict[str, Compress], table: Results) -> None:
    """Train and measure the points, and baselines of their models, that are not in the table."""
    studies, jobs = Studies(options.evaluate), {}
    for name, point in points.items():
        values = table.values(vars(point))
        jobs[name] = (values, False, functools.partial(train_and_measure, studies, point))
    if options.evaluate.baselines:
        # With the first point of each model, which stays the same when the study grows.
        for init, point in {p.init: p for p in reversed(points.values())}.items():
            values = {"init": init} if "init" in table.axes else {}
            work = functools.partial(baselines, studies, point)
            jobs[f"baselines of {init}"] = values, True, work

    failed = []
    for number, (name, (values, baseline, work)) in enumerate(jobs.items(), 1):
        label = f"[{number} of {len(jobs)}] {name}"
        if table.has(values, baseline=baseline):
            log.info(f"{label}: done")
            continue
        log.info(label)
        try:
            table.add(values, work())
        except _OF_A_POINT as error:
            log.error(f"{label}: FAILED: {error}")
            failed.append(name)
    log.info(f"{options.workdir / 'results.csv'} has {len(table.rows)} rows")
    if failed:
        raise OptionsError(
            f"{len(failed)} of {len(jobs)} failed, for the reasons above; the same command tries "
            f"them again: {'; '.join(failed)}"
        )


def plan(options: Sweep) -> dict[str, Compress]:
    """The options of every point, by the name of its folder."""
    points = {}
    for setting in options.points or [{}]:
        for values in itertools.product(*options.axes.values()):
            chosen = setting | dict(zip(options.axes, values, strict=True))
            point = parse(options.compress, chosen, f"a point of the study, {chosen}:")
            name = folder_name(chosen, point)
            points[name] = dataclasses.replace(point, workdir=options.workdir / "points" / name)
    return points


def folder_name(chosen: dict[str, Any], point: Compress) -> str:
    """A readable name, unique to the options of a point: `lambda-10,seed-0,1b2c3d4e`."""
    words = [re.sub(r"[^\w.]+", "-", f"{name}-{value}") for name, value in chosen.items()]
    # Options at their defaults are left out, so that a new option renames no folder.
    default = deciding(plain(Compress()))
    set_here = {k: v for k, v in deciding(plain(point)).items() if v != default[k]}
    content = json.dumps(set_here, sort_keys=True)
    return ",".join([*words, hashlib.sha256(content.encode()).hexdigest()[:8]])[-120:].lstrip("-,")


class Studies:
    """The labelled images, read once per image size (with a cache: once per model)."""

    def __init__(self, options: Evaluate):
        self.options = options
        self._read: dict[tuple[int | str, ...], Study] = {}
        self._load = functools.lru_cache(1)(
            lambda init, precision: with_coding(nec_jax.load(init), precision=precision)
        )

    def of(self, point: Compress) -> tuple[nec_jax.NecParams, Study]:
        """The model that a point starts from, uncompressed, and the images at its size."""
        base, options = self._load(point.init, point.precision), self.options
        key, blocks = (options.image_size or base.config.image_size,), 0
        if options.cache is not None:
            blocks = unchanged_blocks(point, base)
            if blocks:
                key = (point.init, blocks, base.config.precision)
            else:
                options = dataclasses.replace(options, cache=None, cache_gb=None)
        if key not in self._read:
            self._read[key] = evaluate.open_study(options, base, blocks)
        return base, self._read[key]


def train_and_measure(studies: Studies, point: Compress) -> Points:
    """Train a point, unless its model is there, and measure it."""
    base, study = studies.of(point)  # before hours of training: are there labelled images?
    model = point.workdir / "model.safetensors"
    if not model.exists():
        compress.run(without_useless_cache(point, base))
    shutil.rmtree(point.workdir / "checkpoints", ignore_errors=True)  # nothing goes on from them
    return measure_point(studies.options, study, model, base)


def without_useless_cache(point: Compress, base: nec_jax.NecParams) -> Compress:
    """The point without --cache if its activations cannot be cached: points share the option."""
    if point.cache is None:
        return point
    trains_from_tokens = same_in_every_epoch(point, config_for(point, base.config))
    if trains_from_tokens and unchanged_blocks(point, base):
        return point
    log.info("this point has no activations to cache: it trains from the images")
    return dataclasses.replace(point, cache=None, cache_gb=None, views=1)


def measure_point(options: Evaluate, study: Study, model: Path, base: nec_jax.NecParams) -> Points:
    """Measure the real bytes of a compressed model and the scores of heads; write its report."""
    [(setting, params)] = load_compressed([str(model)]).items()
    coded = nec_methods(options, study, setting, params, base)
    return reported(options, study, coded, str(model), model.parent)


def baselines(studies: Studies, point: Compress) -> Points:
    """The baselines for all points that start from the same model as this one."""
    base, study = studies.of(point)
    coded = baseline_methods(studies.options, study, base)
    folder = point.workdir.parent.parent / "baselines" / Path(point.init).stem
    return reported(studies.options, study, coded, point.init, folder)


def reported(
    options: Evaluate, study: Study, coded: Iterable[Method], model: str, folder: Path
) -> Points:
    """Points of all methods for the table; also writes a report of them in a folder."""
    points = [point for method in coded for point in evaluate.measure(options, study, method)]
    report.write(evaluate.as_report(options, study, model, points), folder)
    return [report.without_images(point) for point in points]


def varied(options: Sweep) -> list[str]:
    """The axes of a study."""
    return list(dict.fromkeys([*(n for point in options.points for n in point), *options.axes]))


def refuse_incomplete(options: Sweep) -> None:
    """Raise OptionsError if a study is incomplete, before anything runs."""
    if jax.process_count() > 1:
        raise OptionsError("a sweep runs in one process: start only one")
    axes = varied(options)
    if not axes:
        raise OptionsError("no study: give its name or its file, sweep FILE.toml")
    for table, name in (("compress", "init"), ("compress", "data"), ("evaluate", "data")):
        axis = table == "compress" and name in axes
        if not axis and not getattr(getattr(options, table), name):
            raise OptionsError(f"no {name}: pass --{table}.{name}, or set it in [{table}]")


def refuse_places(options: Sweep, points: dict[str, Compress]) -> None:
    """Refuse, before any work, folders that cannot be written or that contain images.

    Raises:
      OutputError: as `refuse_folders`.
    """
    images = [folder for folder in [folder_of(options.evaluate.data)] if folder is not None]
    names = ("results.csv", "sweep.json")
    files.check_outputs(options.workdir, names, overwrite=True, inputs=images)
    if options.evaluate.cache is not None:
        refuse_cache(options.evaluate.cache, images)
    for point in points.values():
        refuse_folders(point)


def open_table(options: Sweep) -> Results:
    """Open results.csv, and check that its points share the settings of the study.

    Raises:
      OptionsError: options that are not axes have changed; names them.
    """
    path = options.workdir / "sweep.json"
    now = {"compress": plain(options.compress), "evaluate": plain(options.evaluate)}
    # Without the file, only the axes in the table are known.
    before = files.read_json(path, "record of a sweep") if path.exists() else dict(now)
    if not all(isinstance(before.get(part), dict) for part in now):
        raise FileError(
            "damaged, or no record of a sweep: bring it back; or delete it, if the table has the "
            "same options",
            path,
        )
    # An option that did not exist then had the value that is its default now.
    for part, default in (("compress", Compress()), ("evaluate", Evaluate())):
        before[part] = plain(default) | before[part]
    table = Results(options.workdir / "results.csv", varied(options), before["compress"])
    # Each row holds its axes; baselines have their own rows.
    free = [f"compress.{AXES[name]}" for name in table.axes] + ["evaluate.baselines"]
    was = {part: deciding(before[part]) for part in now}
    changed = [
        f"{part}.{name}: {was[part].get(name)!r} -> {value!r}"
        for part, values in now.items()
        for name, value in deciding(values).items()
        if f"{part}.{name}" not in free and was[part].get(name, value) != value
    ]
    if table.rows and changed:
        raise OptionsError(
            f"{options.workdir} holds points of other settings ({', '.join(changed)}): choose "
            "another --workdir, or make it an axis"
        )
    files.write_text(path, json.dumps(now, indent=1) + "\n", overwrite=True)
    return table
