"""What a checkpoint says of itself, and what has to be told: config.json, preprocessor, script."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from convert_cases import GOLDEN, MAE, convert, folder_with, options_of, rewritten

from coder import FileError, InputError
from nec_jax import convert_checkpoint


def test_what_a_file_does_not_say_has_to_be_told(tmp_path: Path) -> None:
    timm = GOLDEN / "timm/model.safetensors"
    with pytest.raises(FileError, match=r"number of heads: pass --heads"):
        convert_checkpoint(timm, normalisation="imagenet")
    with pytest.raises(FileError, match=r"normalised: pass --normalisation imagenet"):
        convert_checkpoint(timm, heads=3)
    with pytest.raises(FileError, match=r"activation: pass --activation"):
        convert_checkpoint(GOLDEN / "open-clip/checkpoint.pt", heads=3)
    with pytest.raises(FileError, match=r"activation: pass --activation"):
        convert_checkpoint(GOLDEN / "timm-no-class-token/model.safetensors", heads=3)
    options = {k: v for k, v in options_of("prithvi").items() if k != "bands"}
    with pytest.raises(
        InputError, match=r"takes 6 bands, not 0: name them all in its order with --bands"
    ):
        convert_checkpoint(GOLDEN / "prithvi/checkpoint.pt", **options)
    with pytest.raises(InputError, match=r"--bands a a b c d e: a is there twice"):
        convert_checkpoint(GOLDEN / "prithvi/checkpoint.pt", **options, bands=tuple("aabcde"))
    options = {k: v for k, v in options_of("prithvi").items() if k not in ("mean", "std")}
    with pytest.raises(FileError, match="how its images were normalised"):
        convert_checkpoint(GOLDEN / "prithvi/checkpoint.pt", **options)
    with pytest.raises(InputError, match="--mean and --std together"):
        convert_checkpoint(timm, heads=3, mean=(1.0, 1.0, 1.0))


def test_the_normalisation_is_that_of_the_script_which_trained_the_model(tmp_path: Path) -> None:
    imagenet = convert_checkpoint(GOLDEN / MAE / "checkpoint.pth", **options_of(MAE)).config
    np.testing.assert_allclose(imagenet.mean, [123.675, 116.28, 103.53])
    options = options_of("satmae-rgb")
    fmow = convert_checkpoint(GOLDEN / "satmae-rgb/checkpoint.pth", **options).config
    np.testing.assert_allclose(fmow.mean, [106.641, 107.477, 101.778], rtol=1e-4)
    # Without the script's arguments nothing tells, though Facebook's own files look like this.
    with pytest.raises(FileError, match=r"normalised: pass --normalisation imagenet"):
        convert("satmae-rgb", tmp_path, lambda t: None)
    told = convert("satmae-rgb", tmp_path, lambda t: None, normalisation="fmow").config
    assert told.mean == fmow.mean


def test_the_normalisation_is_that_of_the_preprocessor(tmp_path: Path) -> None:
    folder = folder_with("transformers-vit", tmp_path)
    path = folder / "preprocessor_config.json"
    for facts, mean, std in [
        ({}, 127.5, 127.5),
        ({"rescale_factor": 1 / 127.5}, 63.75, 63.75),
        ({"do_rescale": False}, 0.5, 0.5),
        ({"do_normalize": False}, 0.0, 255.0),
    ]:
        path.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | facts))
        config = convert_checkpoint(folder).config
        np.testing.assert_allclose((config.mean, config.std), [[mean] * 3, [std] * 3])


def test_what_is_told_may_not_contradict_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--heads says 4, the checkpoint's number of heads is 3"):
        convert_checkpoint(GOLDEN / "transformers-mae", heads=4)
    with pytest.raises(InputError, match=r"--activation says gelu, .* is quick-gelu"):
        convert_checkpoint(GOLDEN / "transformers-clip", activation="gelu")


def test_what_config_json_omits_is_the_default_of_transformers(tmp_path: Path) -> None:
    folder = folder_with("transformers-clip", tmp_path, hidden_act=None, layer_norm_eps=None)
    config = convert_checkpoint(folder).config
    assert (config.activation, config.epsilon) == ("quick-gelu", 1e-5)
    omitted = {"hidden_act": None, "layer_norm_eps": None, "norm_pix_loss": None}
    (tmp_path / "mae").mkdir()
    config = convert_checkpoint(folder_with("transformers-mae", tmp_path / "mae", **omitted)).config
    assert (config.activation, config.epsilon) == ("gelu", 1e-12)
    assert config.decoder_target == "pixels"


def test_folders_of_transformers(tmp_path: Path) -> None:
    weights = GOLDEN / "transformers-mae/model.safetensors"
    with pytest.raises(FileError, match=r"model type None.*Give the folder with config.json"):
        convert_checkpoint(weights)
    for change, message in [
        ({"model_type": "beit"}, "model type 'beit'"),
        ({"hidden_act": "silu"}, "hidden_act is 'silu': known are gelu"),
    ]:
        with pytest.raises(FileError, match=message):
            convert_checkpoint(folder_with("transformers-mae", tmp_path, **change))
    folder = folder_with("transformers-mae", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(FileError, match="how its images were normalised"):
        convert_checkpoint(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FileError, match="not JSON"):
        convert_checkpoint(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(FileError, match="sharded weights: save them as one"):
        convert_checkpoint(folder)


def test_the_configuration_may_not_contradict_the_tensors(tmp_path: Path) -> None:
    def last_block_gone(tensors):
        for name in [n for n in tensors if ".layer.1." in n or ".layers.1." in n]:
            del tensors[name]

    for case in ("transformers-mae", "transformers-clip"):
        folder = folder_with(case, tmp_path)
        rewritten(case, tmp_path, last_block_gone).rename(folder / "model.safetensors")
        with pytest.raises(FileError, match=r"config.json says 2: missing .*layers?\.1\."):
            convert_checkpoint(folder)

    def no_biases(tensors):
        for name in [n for n in tensors if "query.bias" in n or "key.bias" in n or "value.b" in n]:
            del tensors[name]

    def no_decoder(tensors):
        for name in [n for n in tensors if n.startswith("decoder.")]:
            del tensors[name]

    for change, message in [(no_biases, "missing .*query.bias"), (no_decoder, "missing decoder")]:
        folder = folder_with("transformers-mae", tmp_path)
        rewritten("transformers-mae", tmp_path, change).rename(folder / "model.safetensors")
        with pytest.raises(FileError, match=message):
            convert_checkpoint(folder)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("transformers-mae", {"layer_norm_eps": "x"}),
        ("transformers-mae", {"hidden_act": ["gelu"]}),
        ("transformers-mae", {"norm_pix_loss": "no"}),
        ("transformers-clip", {"vision_config": "none"}),
        ("timm-clip", {"pretrained_cfg": ["mean"]}),
        ("timm-clip", {"architecture": 3}),
    ],
)
def test_a_config_of_nonsense_is_one_kind_of_error(case, change, tmp_path: Path) -> None:
    with pytest.raises(FileError):
        convert_checkpoint(folder_with(case, tmp_path, **change), heads=3)


def test_arguments_of_timm(tmp_path: Path) -> None:
    def config_of(**arguments):
        return convert_checkpoint(folder_with("timm-clip", tmp_path, model_args=arguments)).config

    assert config_of(num_heads=6, act_layer="gelu_tanh").heads == 6
    assert config_of(num_heads=6, act_layer="gelu_tanh").activation == "gelu-tanh"
    with pytest.raises(FileError, match="act_layer is 'relu': known are"):
        config_of(num_heads=3, act_layer="relu")
    with pytest.raises(FileError, match="model_args has qk_norm"):
        config_of(num_heads=3, qk_norm=True)
    with pytest.raises(FileError, match=r"config.json says 12: missing blocks\.2\."):
        config_of(num_heads=3, depth=12)
    for name, message in [
        ("vit_pe_core_small_patch16_384", "pe has rotary positions"),
        ("vit_small_patch8_reg4_dinov2", "missing reg_token"),
        ("vit_small_patch8_siglip_gap_32", "activation: pass --activation"),
    ]:
        with pytest.raises(FileError, match=message):
            convert_checkpoint(folder_with("timm-clip", tmp_path, architecture=name), heads=3)


def test_units_of_the_normalisation(tmp_path: Path) -> None:
    mae, prithvi = GOLDEN / "transformers-mae", GOLDEN / "prithvi/checkpoint.pt"
    for dtype in ("uint16", "float32"):
        with pytest.raises(InputError, match=f"is for uint8: pass --mean and --std for {dtype}"):
            convert_checkpoint(mae, dtype=dtype)
    options = options_of("prithvi") | {"dtype": "uint8"}
    with pytest.raises(InputError, match="lie outside of the range of uint8: pass --dtype"):
        convert_checkpoint(prithvi, **options)
    with pytest.raises(InputError, match="--normalisation clip is not the checkpoint's own"):
        convert_checkpoint(mae, normalisation="clip")
    deliberate = convert_checkpoint(mae, mean=(1.0, 2.0, 3.0), std=(1.0, 1.0, 1.0))
    assert deliberate.config.mean == (1.0, 2.0, 3.0)
    timm = GOLDEN / "timm/model.safetensors"
    told = {"heads": 3, "normalisation": "imagenet"}
    rgb = convert_checkpoint(timm, **told).config
    bgr = convert_checkpoint(timm, bands=("blue", "green", "red"), **told).config
    assert bgr.mean == rgb.mean[::-1]
    with pytest.raises(InputError, match="--normalisation x: choose from imagenet, inception, fm"):
        convert_checkpoint(timm, heads=3, normalisation="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is for red, green and blue, not nir, red, green"):
        convert_checkpoint(timm, bands=("nir", "red", "green"), **told)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", None])
def test_a_configuration_that_is_no_json_object_is_named(
    name: str, text: str | None, tmp_path: Path
) -> None:
    path = folder_with("transformers-mae", tmp_path) / name
    path.unlink(missing_ok=True)
    if text is None:
        os.mkfifo(path)  # which it would take for ever to read
    else:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FileError, match=rf"{name}: "):
        convert_checkpoint(tmp_path)
