"""What the tests of distillation share: a teacher, and two data sets."""

import dataclasses
from pathlib import Path

from model_cases import random_images, random_weights, tiny_config
from PIL import Image

import nec_jax
from nec_jax import NecParams
from train.configs.options import Distil
from train.tasks.teacher import Images

TEACHER = tiny_config(depth=2, image_size=64, patch=8, registers=2)  # 8 x 8 tokens


def make_teacher() -> NecParams:
    """Of random weights."""
    return NecParams(random_weights(TEACHER), TEACHER)


def write_data(root: Path) -> Path:
    """Two data sets, `one` and `two`, of 30 and 20 images, split, and the teacher's file."""
    nec_jax.save(make_teacher(), root / "teacher.safetensors")
    for seed, (name, count) in enumerate([("one", 30), ("two", 20)]):
        (root / name).mkdir()
        for i, pixels in enumerate(random_images(seed, count, 72)):
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def options(data: Path, **more: object) -> Distil:
    base = Distil(
        data=f"{data / 'one'},{data / 'two'}",
        teacher=str(data / "teacher.safetensors"),
        cache=data / "cache",
        image_size=64,
        depth=1,
        predictor=1,
        batch=4,
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


def opened(data: Path, teacher: NecParams, views: int = 1) -> Images:
    images = Images(options(data, views=(views,)), teacher, "train")
    images.open((views,))
    return images
