"""`nec refine`: what it writes, that only the steps are JAX's, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import coder
import nec_jax
from coder.fitting import Coded
from coder.fitting.fit_refiner import NumPyNetwork
from nec_jax.calibration import fit_latents
from nec_jax.sources import open_source
from nec_jax.sources.splits import Concatenated
from train.configs.options import Refine
from train.data import read_all
from train.main import main
from train.tasks import refine

QUICK = ["--chip", "32", "--limit", "64", "--hidden", "32", "--steps", "200"]


@pytest.fixture(scope="module")
def plain(encoder_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a codec of many qualities."""
    params = nec_jax.load(encoder_only)
    images = read_all(open_source("blue-marble", "train", chip=32), 32, limit=64).images
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    nec_jax.save(fit_latents(params, nec_jax.latents(params, images), step=0.5), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images whose split train has 10 of them."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = ["path,label,split"]
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append(f"{i}.png,x,{'train' if i < 10 else 'val'}")
    (folder / "split.csv").write_text("\n".join(rows))
    return folder


# The codec was fitted to few images, and some others are unlike all of them.
@pytest.mark.filterwarnings("ignore::coder.UnusualEmbedding")
def test_the_model_gets_a_refiner_and_its_codec_stays(
    plain: Path, pictures: Path, tmp_path: Path
) -> None:
    before = plain.read_bytes()
    out, alone = tmp_path / "refined.safetensors", tmp_path / "refiner.safetensors"
    command = ["refine", str(plain), "--data", "blue-marble", str(pictures), *QUICK]
    main([*command, "--out", str(out), "--refiner", str(alone)])
    assert plain.read_bytes() == before
    was, now = nec_jax.load(plain), nec_jax.load(out)
    assert was.codec is not None
    assert now.codec is not None
    assert now.codec.refiner == coder.load_refiner(alone)
    assert now.codec.refiner is not None
    assert now.codec.fingerprint == was.codec.fingerprint
    facts = json.loads(now.provenance)["refine"]
    assert facts["images"] == 64 + 10
    assert facts["data"] == ["blue-marble", open_source(pictures, "train").name]

    images = read_all(open_source("blue-marble", "val", chip=32), 32, limit=32).images
    ratios = []
    for quality in range(now.codec.num_qualities):
        y, blobs = nec_jax.latents(now, images), nec_jax.encode(now, images, quality=quality)
        assert blobs == nec_jax.encode(was, images, quality=quality)
        kept, refined = (
            sum(
                float(np.square(now.codec.decode(blob, refine=on) - one).sum())
                for blob, one in zip(blobs, y, strict=True)
            )
            for on in (False, True)
        )
        ratios.append(refined / kept)
    assert max(ratios) < 1.02
    assert min(ratios) < 0.97

    with pytest.raises(SystemExit, match=r"refined\.safetensors: exists: .* --overwrite"):
        main([*command, "--out", str(out)])
    again = tmp_path / "again.safetensors"
    main([*command, "--refiner", str(again)])
    assert again.read_bytes() == alone.read_bytes()


def test_a_step_in_jax_is_the_step_of_coder() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    initial = {"token": normal(8, 16), "context": normal(4, 16), "bias": normal(3, 16)}
    initial |= {"out": normal(16, 8), "offset": normal(8)}
    unit = np.array([0.5, 1, 2], np.float32)
    # A step changes the arrays of NumPyNetwork in place.
    networks = NumPyNetwork({k: v.copy() for k, v in initial.items()}), refine.Network(initial, 5)
    for step in range(5):
        part = Coded(normal(64, 8), normal(64, 4), normal(64, 8), rng.integers(0, 3, 64))
        for network in networks:
            network.step(part, unit, 1e-2 / (1 + step))
    ours, theirs = (network.weights for network in networks)
    for name, start in initial.items():
        np.testing.assert_allclose(ours[name] - start, theirs[name] - start, rtol=1e-3, atol=1e-5)


def test_data_sets_share_the_tokens_as_evenly_as_their_sizes_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = {name: Concatenated([]) for name in ("large", "small", "huge")}
    for source, size in zip(found.values(), (500, 10, 5000), strict=True):
        monkeypatch.setattr(source, "_places", [(0, i) for i in range(size)])
    monkeypatch.setattr(refine, "open_one", lambda name, *_, **__: found[name])

    def sizes(limit: int, most: int | None = None) -> list[int]:
        options = Refine(model="x", data=tuple(found), limit=most)
        return [len(source) for source in refine.opened(options, limit)]

    assert sizes(100) == [45, 10, 45]
    assert sizes(15) == [5, 5, 5]
    assert sizes(100, most=20) == [20, 10, 20]
    assert sizes(10_000) == [500, 10, 5000]


def test_a_run_that_is_stopped_writes_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refine.Network, "step", stop)
    command = ["refine", str(plain), "--data", "blue-marble", *QUICK]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(tmp_path / "x"), "--refiner", str(tmp_path / "y")])
    assert stopped.value.code == 75
    assert "stopped: the same command starts it again" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_refined_ends_with_a_message(
    plain: Path, encoder_only: Path, pictures: Path, tmp_path: Path
) -> None:
    data, out = ["--data", "blue-marble"], ["--out", str(tmp_path / "x")]
    for words, message in (
        ([*data, *out], "no model: give its file"),
        ([str(plain), *out], "no data: pass --data"),
        ([str(plain), *data], "no output: pass --out"),
        ([str(plain), *data, *out, "--refiner", str(tmp_path / "x")], "are one file: name two"),
        ([str(tmp_path / "none"), *data, *out], "none: no such model"),
        ([str(encoder_only), *data, *out], "has no codec with a transform"),
        ([str(plain), *data, "--out", str(plain), "--overwrite"], "input"),
        ([str(plain), "--data", str(pictures), "--refiner", str(pictures / "r")], "input"),
        ([str(plain), *data, *out, "--limit", "7"], "at least 8"),
    ):
        with pytest.raises(SystemExit, match=message):
            main(["refine", *words])
    assert not list(tmp_path.iterdir())
