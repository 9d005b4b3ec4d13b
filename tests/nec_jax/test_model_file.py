"""NecParams as a pytree, and the model's file."""

import dataclasses
import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from coder_cases import small_codec
from model_cases import random_images, random_weights, tiny_config
from orbax.checkpoint import v1 as ocp

import coder
import nec_jax
from coder import FileError, ScalarCodec
from coder.format import container
from nec_jax import NecParams
from nec_jax.models.weight_tree import Weights, flatten_weights, unflatten_weights


@pytest.fixture(scope="module")
def model_path(model: NecParams, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "nec-tiny.safetensors"
    nec_jax.save(model, path)
    return path


def assert_same_weights(one: Weights, other: Weights) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_jitted_function_of_a_model_compiles_once(model_path: Path):
    traced = []

    @jax.jit
    def shifted(params: NecParams) -> NecParams:
        traced.append(params.codec)
        return jax.tree.map(lambda x: x + 1, params)

    # Two objects that hold equal arrays: static metadata is compared on the second call.
    one, other = nec_jax.load(model_path), nec_jax.load(model_path)
    assert one.codec is not other.codec
    first, second = shifted(one), shifted(other)
    assert len(traced) == 1
    assert_same_weights(first.weights, second.weights)
    assert first.codec == one.codec
    assert first.config == one.config
    assert first.provenance == second.provenance == "{}"
    # And once more for a model whose codec or configuration is another.
    assert isinstance(one.codec, ScalarCodec)
    shifted(dataclasses.replace(one, codec=dataclasses.replace(one.codec, quality=1)))
    shifted(nec_jax.with_coding(one, coding_batch=3))
    assert len(traced) == 3


def test_a_model_is_a_pytree_whose_leaves_are_its_weights(model: NecParams):
    leaves, structure = jax.tree.flatten(model)
    assert len(leaves) == len(jax.tree.leaves(model.weights))
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert_same_weights(rebuilt.weights, model.weights)
    assert (rebuilt.config, rebuilt.codec) == (model.config, model.codec)
    assert hash(structure) == hash(jax.tree.structure(rebuilt))

    doubled = jax.tree.map(lambda x: 2 * x, model)
    assert isinstance(doubled, NecParams)
    np.testing.assert_array_equal(
        doubled.weights["encoder"]["class_token"], 2 * model.weights["encoder"]["class_token"]
    )
    placed = jax.device_put(model, jax.devices()[0])
    assert_same_weights(placed.weights, model.weights)
    assert nec_jax.encode(placed, random_images(0, 1)) == nec_jax.encode(model, random_images(0, 1))


def test_models_of_one_codec_are_averaged_and_the_average_has_no_provenance(model: NecParams):
    other = dataclasses.replace(
        model, weights=jax.tree.map(lambda x: x + 2, model.weights), provenance='{"other":1}'
    )
    average = jax.tree.map(lambda a, b: (a + b) / 2, model, other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b + 1, atol=1e-5), average.weights, model.weights
    )
    assert (average.config, average.codec, average.provenance) == (model.config, model.codec, "{}")
    # One compiled program for both: what it returns must not tell of the first.
    twice = jax.jit(lambda params: jax.tree.map(lambda x: 2 * x, params))
    assert {twice(params).provenance for params in (model, other)} == {"{}"}


def test_models_of_other_codecs_are_not_averaged_and_the_error_names_both(model: NecParams):
    assert model.codec is not None
    codec = dataclasses.replace(model.codec, max_tokens=7)  # pyright: ignore[reportArgumentType]
    other = dataclasses.replace(model, codec=codec)
    with pytest.raises(ValueError, match=model.codec.fingerprint[:4].hex()) as caught:
        jax.tree.map(lambda a, b: a + b, model, other)
    assert f"<ScalarCodec {codec.fingerprint[:4].hex()}: " in str(caught.value)


def test_orbax_restores_the_weights_and_the_file_the_rest(
    model: NecParams, model_path: Path, tmp_path: Path
):
    ocp.save(str(tmp_path / "checkpoint"), model)
    static_half = nec_jax.load(model_path)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), static_half
    )
    restored = ocp.load(str(tmp_path / "checkpoint"), abstract)
    assert isinstance(restored, NecParams)
    assert_same_weights(restored.weights, model.weights)
    assert (restored.config, restored.codec) == (model.config, model.codec)
    images = random_images(1, 2)
    assert nec_jax.encode(restored, images) == nec_jax.encode(model, images)


def test_load_inverts_save_bit_for_bit(model: NecParams, model_path: Path):
    loaded = nec_jax.load(model_path)
    assert_same_weights(loaded.weights, model.weights)
    assert loaded.config == model.config
    assert loaded.codec == model.codec
    assert json.loads(loaded.provenance) == {"images": 64}
    images = random_images(2, 3)
    assert nec_jax.encode(loaded, images) == nec_jax.encode(model, images)


def test_a_model_without_a_codec_and_with_every_setting_changed_round_trips(tmp_path: Path):
    config = tiny_config(
        bands=("B02", "B8A"),
        mean=(0.1, 0.2),
        std=(0.3, 1 / 3),
        dtype="float32",
        value_range=(-1.0, 1e-7),
        size_rule="tile",
        coding_batch=5,
        precision="bfloat16",
        code_class_token=False,
        mlp_ratio=2,
    )
    params = NecParams(random_weights(config), config, None, '{"note":"ä"}')
    nec_jax.save(params, tmp_path / "m")
    loaded = nec_jax.load(tmp_path / "m")
    assert_same_weights(loaded.weights, params.weights)
    assert (loaded.config, loaded.codec, loaded.provenance) == (config, None, '{"note":"ä"}')


def test_a_models_file_has_one_text(model: NecParams, model_path: Path, tmp_path: Path):
    nec_jax.save(nec_jax.load(model_path), tmp_path / "again")
    # Whatever the order of the tree's dictionaries.
    turned = dict(reversed(model.weights.items()))
    nec_jax.save(dataclasses.replace(model, weights=turned), tmp_path / "turned")
    assert model_path.read_bytes() == (tmp_path / "again").read_bytes()
    assert model_path.read_bytes() == (tmp_path / "turned").read_bytes()


def test_any_flipped_bit_is_found(model_path: Path, tmp_path: Path):
    data = model_path.read_bytes()
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [0, 8, 20, *rng.integers(8, header, 10), *rng.integers(header, len(data), 10), -1]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(FileError, match="damaged"):
            nec_jax.load(tmp_path / "damaged")


@pytest.mark.parametrize("length", [0, 7, 1000, -1])
def test_a_truncated_file_is_found(model_path: Path, tmp_path: Path, length: int):
    (tmp_path / "short").write_bytes(model_path.read_bytes()[:length])
    with pytest.raises(FileError, match="short"):
        nec_jax.load(tmp_path / "short")


def test_a_shipped_model_is_loaded_by_its_name_and_others_are_unknown(
    model: NecParams, model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("coder.format.container.SHIPPED", model_path.parent)
    assert nec_jax.load("nec-tiny").codec == model.codec
    for path in ("elsewhere/nec-tiny", f"../{model_path.parent.name}/nec-tiny"):
        with pytest.raises(FileError, match="no such model"):
            nec_jax.load(path)  # no name, but a path where nothing is
    with pytest.raises(FileError, match=r"nec-huge: no such model: .* \(nec-tiny\)"):
        nec_jax.load("nec-huge")
    monkeypatch.setattr("coder.format.container.SHIPPED", model_path.parent / "nowhere")
    with pytest.raises(FileError, match=r"nec-huge: no such model: give the path of a file$"):
        nec_jax.load("nec-huge")


def test_a_consumer_reads_the_codec_of_a_models_file(
    model: NecParams,
    bare_model: NecParams,
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    assert coder.load(model_path) == model.codec
    monkeypatch.setattr("coder.format.container.SHIPPED", model_path.parent)
    assert coder.load("nec-tiny") == model.codec
    with pytest.raises(FileError, match=r"nec-huge: no such codec: .* \(nec-tiny\)"):
        coder.load("nec-huge")
    nec_jax.save(bare_model, tmp_path / "bare")
    with pytest.raises(FileError, match="bare: a model without a codec"):
        coder.load(tmp_path / "bare")


def test_weights_that_float16_holds_take_half_of_the_bytes(model: NecParams, tmp_path: Path):
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(np.float32), model.weights)
    odd = half["encoder"]["class_token"].at[0].set(1e-9)  # which float16 does not hold
    rounded = dataclasses.replace(
        model, weights=half | {"encoder": half["encoder"] | {"class_token": odd}}
    )
    nec_jax.save(rounded, tmp_path / "half")
    tensors, _ = container.read(tmp_path / "half", "model")
    halves = {name for name, array in tensors.items() if array.dtype == np.float16}
    assert {name for name in tensors if name.startswith("weights/")} - halves == {
        "weights/encoder/class_token"
    }
    assert_same_weights(nec_jax.load(tmp_path / "half").weights, rounded.weights)


def test_a_codec_is_not_a_model(model: NecParams, tmp_path: Path):
    assert model.codec is not None
    model.codec.save(tmp_path / "codec")
    with pytest.raises(FileError, match="a codec file where a model file is needed"):
        nec_jax.load(tmp_path / "codec")


def test_weights_that_do_not_fit_are_named(model_path: Path, tmp_path: Path):
    tensors, content = container.read(model_path, "model")
    del tensors["weights/encoder/class_token"]
    tensors["weights/encoder/surplus"] = np.zeros(3, np.float32)
    tensors["weights/decoder/norm/bias"] = np.zeros(31, np.float32)
    container.write(tmp_path / "m", "model", tensors, content)
    with pytest.raises(FileError, match="do not fit the configuration") as caught:
        nec_jax.load(tmp_path / "m")
    for problem in (
        "missing encoder/class_token",
        "unexpected encoder/surplus",
        "decoder/norm/bias is float32 (31,), not float32 (32,)",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"arch": "vit-ti"}),
        ("config", "DEFAULT + unknown"),
        ("config", None),
        ("codec", {}),
        ("codec", 3),
        ("codec", "absent"),
        ("provenance", 3),
        ("provenance", "absent"),
        ("surplus", 1),
    ],
)
def test_content_of_another_form_is_a_file_error(model_path: Path, tmp_path: Path, key, value):
    tensors, content = container.read(model_path, "model")
    if value == "DEFAULT + unknown":
        value = content["config"] | {"unknown": 1}
    content = {k: v for k, v in content.items() if k != key}
    if value != "absent":
        content[key] = value
    container.write(tmp_path / "m", "model", tensors, content)
    with pytest.raises(FileError):
        nec_jax.load(tmp_path / "m")
    if key == "codec" and value != "absent":  # a consumer reads no more than this
        with pytest.raises(FileError):
            coder.load(tmp_path / "m")


def test_a_codec_of_another_architecture_is_refused(model: NecParams, tmp_path: Path):
    assert isinstance(model.codec, ScalarCodec)
    for codec in (small_codec(), dataclasses.replace(model.codec, class_layout=None)):
        nec_jax.save(dataclasses.replace(model, codec=codec), tmp_path / "m")
        with pytest.raises(FileError, match="codec is not one of its architecture"):
            nec_jax.load(tmp_path / "m")


def test_flatten_names_weights_by_path_and_unflatten_inverts_it(model: NecParams):
    flat = flatten_weights(model.weights)
    assert flat["encoder/block_1/mlp/fc1/kernel"].shape == (48, 192)
    assert len(flat) == len(jax.tree.leaves(model.weights))
    assert_same_weights(unflatten_weights(flat, model.weights), model.weights)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_no_file_is_unpickled(tmp_path: Path):
    bomb = Bomb(tmp_path / "exploded")
    (tmp_path / "pickle").write_bytes(pickle.dumps(bomb))
    np.savez(tmp_path / "archive.npz", weights=np.array([bomb], object), allow_pickle=True)
    for name in ("pickle", "archive.npz"):
        with pytest.raises(FileError, match="not a safetensors file"):
            nec_jax.load(tmp_path / name)
    assert not bomb.target.exists()
    pickle.loads((tmp_path / "pickle").read_bytes())  # it would have
    assert bomb.target.exists()


def test_weights_may_be_any_arrays(model: NecParams, tmp_path: Path, model_path: Path):
    on_host = jax.tree.map(np.asarray, model)
    nec_jax.save(dataclasses.replace(on_host, provenance=model.provenance), tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == model_path.read_bytes()
    assert isinstance(nec_jax.load(tmp_path / "m").weights["encoder"]["class_token"], jnp.ndarray)
