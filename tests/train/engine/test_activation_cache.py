"""Activations of frozen blocks: computed once, kept on disk, and the same as without."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import jax
import numpy as np
import pytest
from image_files import png
from model_cases import random_images, random_weights, tiny_config
from PIL import Image
from train_cases import SMALL

import nec_jax
from coder import OutputError
from nec_jax import NecParams, latents
from nec_jax.images.record import DataError
from nec_jax.models import nec
from nec_jax.models.freezing import frozen_blocks, trainable_rule
from nec_jax.sources import open_source
from train.configs.options import Compress, OptionsError
from train.data import Split, read_all
from train.engine import activation_cache
from train.engine.activation_cache import finish, open_prefix, start_of
from train.engine.inputs import Cache
from train.main import main
from train.studies.study import Study

CONFIG = tiny_config(depth=3, pre_norm=True, registers=2)
ROW = 2 * (1 + 2 + 16) * 48  # bytes


@pytest.fixture(scope="module")
def params() -> NecParams:
    return NecParams(random_weights(CONFIG), CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of other sizes than the model's."""
    for i, pixels in enumerate(random_images(0, 10, 80)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def tiny_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_cache, "_CHUNK_BYTES", 4 * ROW)


def test_an_encoder_cut_in_two_is_the_same_encoder(params: NecParams) -> None:
    images = random_images(0, 2)
    whole = latents(params, images)
    for cut in (1, 3):
        tokens = jax.jit(nec.prefix, static_argnums=(0, 3))(CONFIG, params.weights, images, cut)
        assert tokens.shape == (2, 1 + 2 + 16, 48)
        after = finish(params, np.asarray(tokens, np.float16), cut)
        np.testing.assert_allclose(after, whole, atol=2e-2)  # float16


@pytest.mark.parametrize(
    ("trainable", "blocks", "expected"),
    [
        ("late", (), 2),
        ("late", (1, 3), 1),
        ("density", (), 3),
        ("decoder", (2, 3), 2),
        ("paper", (), 0),
        ("all", (), 0),
    ],
)
def test_blocks_are_frozen_up_to_the_first_that_trains_or_is_embedded(
    trainable: str, blocks: tuple[int, ...], expected: int
) -> None:
    config = tiny_config(depth=3, embedding_blocks=blocks)
    shapes = jax.eval_shape(lambda key: nec.init_weights(config, key), jax.random.key(0))
    assert frozen_blocks(config, shapes, trainable_rule(trainable, config)) == expected


@pytest.mark.usefixtures("tiny_shards")
def test_a_row_is_what_the_blocks_make_of_an_image(params: NecParams, folder: Path) -> None:
    source = open_source(str(folder), "all")
    cached = open_prefix(folder / "cache", 1, params, 2, source)
    assert [len(chunk) for chunk in cached.views[0]] == [4, 4, 4]  # Zarr's are all of one size
    images = read_all(source, 64).images
    np.testing.assert_allclose(
        finish(params, cached.whole(), 2), latents(params, images), atol=2e-2
    )
    some = read_all(source, 64, limit=3).images
    np.testing.assert_allclose(finish(params, cached.whole(3), 2), latents(params, some), atol=2e-2)


@pytest.mark.usefixtures("tiny_shards")
def test_what_is_there_is_read_and_what_is_damaged_is_made_again(
    params: NecParams,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = open_source(str(folder), "all")
    first = open_prefix(folder / "cache", 1, params, 2, source).whole()
    made: list[list[int]] = []
    compute = activation_cache._compute

    def counted(*arguments: object) -> np.ndarray:
        made.append(list(arguments[3]))  # type: ignore[arg-type]
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(activation_cache, "_compute", counted)
    open_prefix(folder / "cache", 1, params, 2, source)
    assert not made
    [home] = (folder / "cache").iterdir()
    for damage in (lambda b: b[:9] + bytes([b[9] ^ 1]) + b[10:], lambda b: b[:-1], lambda b: b""):
        made.clear()
        caplog.clear()
        chunk = home / "c/1/0/0"
        chunk.write_bytes(damage(chunk.read_bytes()))
        (home / "c/2/0/0").unlink()  # a run that was cut off
        again = open_prefix(folder / "cache", 1, params, 2, source).whole()
        assert made == [[4, 5, 6, 7], [8, 9]]
        assert f"{chunk} is damaged: it is made again" in caplog.text
        assert np.array_equal(again, first)
    for damage in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        damage(home / "zarr.json")
        assert np.array_equal(open_prefix(folder / "cache", 1, params, 2, source).whole(), first)


def test_other_frozen_weights_other_data_or_other_crops_are_other_caches(
    params: NecParams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, home = open_source(str(folder), "all"), folder / "cache"

    def keys() -> set[str]:
        return {path.name for path in home.glob("prefix-*")}

    open_prefix(home, 1, params, 2, source)
    one = keys()
    encoder = dict(params.weights["encoder"])
    encoder["block_2"] = jax.tree.map(lambda x: x + 1, encoder["block_2"])
    late = NecParams({**params.weights, "encoder": encoder}, CONFIG)
    open_prefix(home, 1, late, 2, source)
    assert keys() == one  # what comes later does not matter
    encoder["block_1"] = jax.tree.map(lambda x: x + 1, encoder["block_1"])
    open_prefix(home, 1, NecParams({**params.weights, "encoder": encoder}, CONFIG), 2, source)
    assert len(keys()) == 2
    open_prefix(home, 1, params, 1, source)
    assert len(keys()) == 3
    open_prefix(home, 1, params, 2, source, views=2)
    assert len(keys()) == 4  # the whole images are shared
    open_prefix(home, 1, params, 2, source, views=2, mixed=True)
    assert len(keys()) == 5
    with monkeypatch.context() as other:
        other.setattr(activation_cache, "MIXED", [(0.0, 1.0)])
        open_prefix(home, 1, params, 2, source, views=2, mixed=True)
    assert len(keys()) == 6
    Image.fromarray(random_images(9, 1, 80)[0]).save(folder / "0.png")
    open_prefix(home, 1, params, 2, open_source(str(folder), "all"))
    assert len(keys()) == 7
    about = json.loads((home / min(one) / "zarr.json").read_text())["attributes"]
    assert about["crop"] == "whole"


def test_windows_of_another_size_are_other_data(params: NecParams, tmp_path: Path) -> None:
    # One window an image, at the same corner.
    for i, pixels in enumerate(random_images(0, 2, 96)):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        Image.fromarray(pixels[..., 0] // 128).save(tmp_path / f"{i}-mask.png")
    rows = "".join(f"{i}.png,{i}-mask.png,train\n" for i in range(2))
    (tmp_path / "split.csv").write_text("image,mask,split\n" + rows)
    small, large = (
        open_prefix(
            tmp_path / "cache", 1, params, 1, open_source(str(tmp_path), "train", chip=chip)
        )
        for chip in (64, 96)
    )
    assert len(small.whole()) == len(large.whole()) == 2
    assert not np.array_equal(small.whole(), large.whole())


def test_tokens_are_finished_by_models_that_start_alike_alone(params: NecParams) -> None:
    tokens = np.zeros((2, 19, 48), np.float16)
    split = Split(random_images(0, 2), None, None, ["0", "1"], [], tokens)
    study = Study(split, split, split, (), "none", 2, start_of(params, 2))
    assert study.latents(params, split).shape == (2, 17, 48)
    moved = dataclasses.replace(CONFIG, mean=(1.0, 2.0, 3.0))
    with pytest.raises(OptionsError, match="give the --base that"):
        study.latents(NecParams(params.weights, moved), split)


def test_patterns_may_name_the_decoder_that_the_run_makes(tmp_path: Path) -> None:
    Image.fromarray(random_images(0, 1)[0]).save(tmp_path / "0.png")
    bare = tiny_config(depth=3, decoder_target="none")
    trainable = "encoder/(norm|block_{last})/.*,decoder/.*,bottleneck/.*"
    options = Compress(trainable=trainable, proxy="features", cache=tmp_path / "cache")
    cache = Cache(options, open_source(str(tmp_path), "all"))
    assert cache.train(NecParams(random_weights(bare), bare)).blocks == 2


def test_the_size_is_bounded(params: NecParams, folder: Path) -> None:
    source = open_source(str(folder), "all")
    with pytest.raises(OptionsError, match="--cache-gb allows 1e-05"):
        open_prefix(folder / "cache", 1e-5, params, 2, source)
    assert not (folder / "cache").exists()
    open_prefix(folder / "cache", 15 * ROW / 1e9, params, 2, source)
    with pytest.raises(OptionsError, match=r"besides 0\.00 GB that are in"):
        open_prefix(folder / "cache", 15 * ROW / 1e9, params, 1, source)
    # What is there is read, whatever the bound.
    assert open_prefix(folder / "cache", 1e-5, params, 2, source).images == 10


@pytest.mark.usefixtures("tiny_shards")
def test_an_epoch_has_each_view_of_each_readable_image_once(
    params: NecParams, folder: Path
) -> None:
    (folder / "3.png").write_bytes(b"no image")
    source = open_source(str(folder), "all")
    cached = open_prefix(folder / "cache", 1, params, 1, source, views=2)
    assert len(cached.whole()) == 9
    batches = cached.batches(4, seed=1)
    seen = [next(batches)["tokens"] for _ in range(5)]
    rows = [cached.row(view, i) for view in range(2) for i in range(10) if i != 3]
    assert {x.tobytes() for x in np.concatenate(seen)} == {x.tobytes() for x in rows}
    again = cached.batches(4, seed=1)
    next(again)
    position = again.get_state()
    # Two processes read halves of the batches of one, and go on where it was.
    halves = [cached.batches(2, 1, index, 2) for index in range(2)]
    assert np.array_equal(np.concatenate([next(half)["tokens"] for half in halves]), seen[0])
    resumed = cached.batches(4, seed=1)
    resumed.set_state(position)
    for expected in seen[1:]:
        assert np.array_equal(next(resumed)["tokens"], expected)


def test_what_the_model_does_not_take_is_named(params: NecParams, folder: Path) -> None:
    (folder / "4.png").write_bytes(png(np.zeros((80, 80, 3), np.uint16)))
    source = open_source(folder, "all")
    with pytest.raises(DataError, match=r"4\.png of .*: images are uint16, the model takes uint8"):
        open_prefix(folder / "cache", 1, params, 2, source)


def test_activations_of_no_image_are_an_error(params: NecParams, folder: Path) -> None:
    (folder / "0.png").write_bytes(b"no image")
    cached = open_prefix(folder / "cache", 1, params, 1, open_source(folder, "all"))
    assert cached.readable() == list(range(1, 10))
    with pytest.raises(
        DataError, match="none of the images whose activations are needed can be read"
    ):
        cached.whole(1)


@pytest.mark.slow
def test_compression_from_the_cache_starts_where_it_does_without(
    encoder_only: Path, tmp_path: Path
) -> None:
    late = ["compress", *SMALL, "--init", str(encoder_only), "--proxy", "features"]
    late += ["--trainable", "late", "--steps", "4", "--calibration-images", "32"]
    main([*late, "--workdir", str(tmp_path / "images")])
    cache = ["--cache", str(tmp_path / "cache")]
    main([*late, *cache, "--views", "2", "--workdir", str(tmp_path / "tokens")])
    starts = []
    for name in ("images", "tokens"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        starts.append(json.loads(lines[0]))
    assert starts[0]["split"] == "val"
    for metric in ("mse", "bits_per_element"):
        assert starts[1][metric] == pytest.approx(starts[0][metric], rel=0.02)
    assert nec_jax.load(tmp_path / "tokens/model.safetensors").codec is not None


def test_a_cache_that_cannot_serve_is_refused(smoke_mae: Path, tmp_path: Path) -> None:
    cache = ["--cache", str(tmp_path / "cache"), "--workdir", str(tmp_path / "run")]
    run = ["compress", *SMALL, "--init", str(smoke_mae), *cache]
    with pytest.raises(SystemExit, match="--cache needs inputs that are the same in every epoch"):
        main([*run, "--trainable", "late"])
    with pytest.raises(SystemExit, match="no first block stays as it is"):
        main([*run, "--trainable", "paper", "--proxy", "features"])
    with pytest.raises(OptionsError, match="--views goes with --cache"):
        Compress(views=2)


def test_other_users_may_read_a_cache_and_a_file_is_none(
    params: NecParams, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, before = open_source(str(folder)), os.umask(0o022)
    cache = tmp_path_factory.mktemp("shared") / "cache"
    try:
        open_prefix(cache, 1.0, params, 1, source)
    finally:
        os.umask(before)
    found = [path for path in cache.rglob("*") if path.is_file()]
    assert {path.name for path in found} == {"zarr.json", "0"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o644}
    with pytest.raises(OutputError, match=r"zarr\.json.* and a folder is needed"):
        open_prefix(next(iter(cache.rglob("zarr.json"))), 1.0, params, 1, source)
