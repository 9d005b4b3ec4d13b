"""Heads: what they refuse, and what they say about it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from head_cases import CLASSES, labelled, masked, quick
from model_cases import tiny_config

from coder import FileError, InputError
from coder.format import container
from nec_jax import NecParams, heads

NAN = np.full((8, 17, 48), np.nan, np.float32)
ONE_HOLE = np.zeros((8, 17, 48), np.float32)
ONE_HOLE[3, 2, 1] = np.inf
MASKED = np.ma.masked_invalid(ONE_HOLE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_hat": np.zeros((8, 17, 47))}, r"y_hat has shape .*: pass \[N, tokens, 48\]"),
        ({"y_hat": np.zeros((8, 48))}, r"y_hat has shape .*: pass \[N, tokens, 48\]"),
        ({"y_hat": np.zeros((0, 17, 48))}, "holds no embedding"),
        ({"y_hat": np.zeros((8, 1, 48))}, "holds no embedding"),
        ({"y_hat": NAN}, "6528 of 6528 values of y_hat are NaN or infinite.* at \\(0, 0, 0\\)"),
        ({"y_hat": ONE_HOLE}, "1 of 6528 values of y_hat.*the first at \\(3, 2, 1\\) \\(inf\\)"),
        ({"y_hat": MASKED}, "1 of 6528 values of y_hat are masked, the first at \\(3, 2, 1\\)"),
        ({"y_hat": np.zeros((8, 17, 48), "c8")}, "y_hat are complex64"),
        ({"y_hat": np.zeros((8, 17, 48), "U3")}, "y_hat are <U3"),
        ({"y_hat": [[1.0], [2.0, 3.0]]}, "y_hat are not an array"),
        ({"y_hat": None}, "y_hat are of type NoneType"),
        ({"targets": ["farm"] * 8}, "targets is <U4: pass class indices as integers, places in"),
        ({"targets": np.zeros(8, bool)}, "targets is bool: pass class indices"),
        ({"targets": np.full(8, np.nan)}, "targets is float64: pass class indices"),
        ({"targets": np.ma.masked_equal(np.arange(8) % 3, 2)}, "2 of 8 values of targets are mask"),
        ({"targets": [0, 1, 2, 0, 1, 7, 9, 0]}, "2 have another, the first at \\(5,\\)"),
        ({"classes": "abc"}, "classes are 'abc': give the names"),
        ({"classes": {"a", "b", "c"}}, "classes are a set, which has no order"),
        ({"classes": frozenset("abc")}, "classes are a frozenset, which has no order"),
        ({"classes": 3}, "classes are 3: give the names"),
        ({"classes": dict.fromkeys(CLASSES, 0)}, "classes are a dict: give a list"),
        ({"classes": (0, 1, 2)}, "give the names of two or more"),
        (
            {"classes": ("farm", "sea", "farm")},
            "two classes have the name 'farm': give each a name",
        ),
        ({"grid": (4, 4, 1)}, "grid is \\(4, 4, 1\\): give its height and width"),
        ({"grid": 4}, "grid is 4: give its height and width"),
        ({"grid": (4.0, 4.0)}, "grid is .*two whole numbers"),
        ({"epochs": 2.5}, "whole numbers"),
        ({"batch": True}, "whole numbers"),
        ({"lr": "x"}, "lr is above 0"),
        ({"lr": np.nan}, "lr is above 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"val": np.zeros((3, 17, 48))}, "val is no pair"),
        ({"val": (NAN, np.zeros(8, int))}, "values of the y_hat of val are NaN"),
        ({"val": (np.zeros((2, 17, 48)), [0, 3])}, "targets of val ranges .*first at \\(1,\\)"),
        ({"val": (np.zeros((2, 17, 47)), [0, 1])}, "y_hat of val has shape .*of this model"),
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
        (
            {"grid": (2, 4)},
            r"the head takes 9 \(a grid of 2 x 4 and a class token\): pass the height .* as grid=",
        ),
        ({"grid": (16, 0)}, "give its height and width"),
        ({"epochs": 0}, "epochs and batch are whole numbers from 1"),
        ({"lr": -1.0}, "lr is above 0"),
        ({"lr": 1e30}, "training diverged in epoch 1: lower lr"),
        (
            {"val": (np.zeros((2, 10, 48)), np.zeros(2, int))},
            "the y_hat of val has 10 tokens.*: pass embeddings of the size",
        ),
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
    for use in (heads.predict_proba, heads.predict):
        with pytest.raises(InputError, match=r"10 tokens, the head takes 17 .*fit another") as info:
            use(head, np.zeros((1, 10, 48)))
        assert "grid=" not in str(info.value)  # which they do not take
    for wrong, message in (
        (NAN, "NaN"),
        (MASKED, "masked"),
        (np.zeros((1, 17, 47)), "of this model"),
    ):
        with pytest.raises(InputError, match=message):
            heads.predict(head, wrong)
        with pytest.raises(InputError, match=message):
            heads.predict_proba(head, wrong)


def test_a_masked_array_without_masked_values_is_its_data_and_a_grid_may_be_numpys(
    bare_model: NecParams,
):
    y, targets = labelled(0, 32)
    grid: Any = np.array([4, 4])
    usual = heads.fit(bare_model, y, targets, kind="linear", classes=CLASSES)
    same = heads.fit(
        bare_model,
        np.ma.array(y),
        np.ma.array(targets),
        kind="linear",
        classes=CLASSES,
        grid=grid,
    )
    np.testing.assert_array_equal(heads.predict_proba(same, y), heads.predict_proba(usual, y))


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
    for name in ("damaged", "nowhere"):
        with pytest.raises(FileError) as caught:
            heads.load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(FileError, match="no such head file"):
        heads.load(tmp_path / "nowhere")
    container.write(tmp_path / "codec", "codec", {}, {})
    with pytest.raises(FileError, match="a codec file where a head file is needed"):
        heads.load(tmp_path / "codec")
    tensors, content = container.read(path, "head")
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
        container.write(path, "head", tensors, {"config": content["config"] | change})
        with pytest.raises(FileError, match="unusable head configuration"):
            heads.load(path)
    container.write(path, "head", tensors, {"config": content["config"] | {"kind": "attention"}})
    with pytest.raises(FileError, match="missing head/pool") as caught:
        heads.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    container.write(path, "head", tensors, content | {"surplus": 1})
    with pytest.raises(FileError, match="update nec-jax"):
        heads.load(path)


@pytest.mark.parametrize("kind", ["linear", "attention"])
@pytest.mark.parametrize(
    "wrong",
    [{"epochs": -5}, {"epochs": 1.5}, {"batch": "x"}, {"batch": 0}, {"lr": 0}, {"lr": np.nan}],
)
def test_what_a_linear_head_ignores_is_checked_all_the_same(
    bare_model: NecParams, kind: Any, wrong: dict[str, Any]
) -> None:
    y, _ = labelled(0, 8)
    with pytest.raises(InputError, match="epochs and batch are whole numbers from 1"):
        heads.fit(bare_model, y, np.arange(8) % 3, kind=kind, classes=CLASSES, **wrong)
