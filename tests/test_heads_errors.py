"""Heads: what they refuse, and what they say about it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from head_cases import CLASSES, labelled, masked, quick
from model_cases import tiny_config

from coder import FileError, InputError, safefile
from nec_jax import NecParams, heads

NAN = np.full((8, 17, 48), np.nan, np.float32)
ONE_HOLE = np.zeros((8, 17, 48), np.float32)
ONE_HOLE[3, 2, 1] = np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_hat": np.zeros((8, 17, 47))}, r"y_hat has shape .*: pass \[N, tokens, 48\]"),
        ({"y_hat": np.zeros((8, 48))}, r"y_hat has shape .*: pass \[N, tokens, 48\]"),
        ({"y_hat": np.zeros((0, 17, 48))}, "holds no embedding"),
        ({"y_hat": np.zeros((8, 1, 48))}, "holds no embedding"),
        ({"y_hat": NAN}, "NaN or infinity"),
        ({"y_hat": ONE_HOLE}, "NaN or infinity"),
        ({"targets": np.zeros(7, int)}, r"pass labels \[N\], one for each of 8"),
        ({"targets": np.zeros((8, 4, 4), int)}, r"pass labels \[N\]"),
        ({"targets": np.zeros(8)}, "is float64: pass class indices as integers"),
        ({"targets": np.array([0, 1, 2, 3, 0, 0, 0, 0])}, "ranges from 0 to 3: 3 classes have"),
        ({"targets": np.array([0, 1, 2, -1, 0, 0, 0, 0])}, "ranges from -1 to 2"),
        ({"targets": np.full(8, 255)}, "ranges from 255"),
        ({"kind": "tree"}, "unknown head 'tree': choose linear, class-linear, attention, token-"),
        ({"kind": "conv"}, r"pass masks \[N, H, W\]"),
        ({"kind": "conv", "targets": np.full((8, 4, 4), 255)}, "every pixel of targets is 255"),
        ({"kind": "conv", "targets": np.full((8, 4, 4), 3)}, "and 255 is ignored"),
        ({"classes": ("one",), "targets": np.zeros(8, int)}, "names of two or more"),
        ({"grid": (2, 4)}, r"17 tokens, the head takes 9 \(a grid of 2 x 4 and a class token\)"),
        ({"grid": (16, 0)}, "not a height and a width"),
        ({"epochs": 0}, "epochs and batch are at least 1"),
        ({"lr": -1.0}, "lr is above 0"),
        ({"lr": 1e30}, "training diverged in epoch 1: lower lr"),
        ({"val": (np.zeros((2, 10, 48)), np.zeros(2, int))}, "the y_hat of val has 10 tokens"),
        ({"val": (np.zeros((2, 17, 48)), np.zeros(3, int))}, "the targets of val"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_remedy(bare_model: NecParams, changes, message):
    y, _ = labelled(0, 8)
    call = {"y_hat": y, "targets": np.arange(8) % 3, "kind": "attention", "classes": CLASSES}
    call |= {"epochs": 3, "batch": 2} | changes
    with pytest.raises(InputError, match=message):
        heads.fit(bare_model, **call)


def test_masks_of_val_have_the_size_of_the_others(bare_model: NecParams):
    val = masked(0, 2)[0], np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(InputError, match=r"masks are \(32, 32\), those of val \(8, 8\)"):
        quick(bare_model, "conv", val=val)


def test_embeddings_of_another_grid_are_refused(bare_model: NecParams):
    head = quick(bare_model, "linear")
    with pytest.raises(InputError, match="10 tokens, the head takes 17"):
        heads.predict(head, np.zeros((1, 10, 48)))
    with pytest.raises(InputError, match="NaN"):
        heads.classify(head, NAN)


def test_a_config_knows_which_settings_go_together():
    config = heads.HeadConfig("conv", CLASSES, (4, 4), False, (8, 8), tiny_config())
    assert heads.HeadConfig.from_meta(config.to_meta()) == config
    with pytest.raises(InputError, match="mask_size goes with heads that predict masks"):
        dataclasses.replace(config, kind="attention")
    with pytest.raises(InputError, match="masks hold 255 at most"):
        dataclasses.replace(config, classes=tuple(map(str, range(256))))


def test_a_damaged_or_foreign_file_is_a_file_error(bare_model: NecParams, tmp_path: Path):
    path = tmp_path / "head"
    heads.save(quick(bare_model, "linear"), path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in (0, 20, header - 40, header + 3, len(data) - 1):
        damaged = bytearray(data)
        damaged[place] ^= 4
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(FileError, match="damaged"):
            heads.load(tmp_path / "damaged")
    with pytest.raises(FileError, match="no such head file"):
        heads.load(tmp_path / "nowhere")
    safefile.write(tmp_path / "codec", "codec", {}, {})
    with pytest.raises(FileError, match="a codec file where a head file is needed"):
        heads.load(tmp_path / "codec")
    tensors, content = safefile.read(path, "head")
    changes = [
        {"kind": "tree"},
        {"classes": "ab"},
        {"grid": [4]},
        {"mask_size": [8, 8]},
        {"model": None},
        {"with_decoder": 1},
        {"surplus": 1},
    ]
    for change in changes:
        safefile.write(path, "head", tensors, {"config": content["config"] | change})
        with pytest.raises(FileError, match="unusable head configuration"):
            heads.load(path)
    safefile.write(path, "head", tensors, {"config": content["config"] | {"kind": "attention"}})
    with pytest.raises(FileError, match="missing head/pool"):
        heads.load(path)
    safefile.write(path, "head", tensors, content | {"surplus": 1})
    with pytest.raises(FileError, match="update nec-jax"):
        heads.load(path)
