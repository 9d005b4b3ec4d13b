"""`nec info` gives a codec one name: of its model, file, blobs and archives."""

import json

import numpy as np
import pytest
import zarr
from archive_cases import CODEC, COUNT, GRID, written
from transform_cases import embeddings, ladder

import coder
from coder import archive
from coder.archive.zarr_codec import NecCodec
from coder.cli import main

NAME = "nec-vit-ti"
QUALITY = 4


@pytest.fixture
def info(capsys):
    def run(*args, status=0):
        assert main(["info", *map(str, args)]) == status
        text = capsys.readouterr()
        if status:
            return text.err
        assert main(["info", *map(str, args), "--json"]) == 0
        return text.out, json.loads(capsys.readouterr().out)

    return run


def saved(folder, codec):
    """A codec file, a blob, an archive and a Zarr array of one codec, at one quality."""
    channels = codec.channels
    y = np.random.default_rng(0).normal(size=(3, 65, channels)).astype(np.float32)
    one = codec.at(QUALITY).with_refiner(None)
    codec.save(folder / "codec.safetensors")
    (folder / "blob.nec").write_bytes(one.encode(y[0], (8, 8)))
    with archive.Writer(folder / "archive.zarr", one, 3, (8, 8)) as writer:
        writer.write(slice(0, 3), y, list("abc"))
        writer.finish()
    grids, _ = one.split()
    array = zarr.create_array(
        folder / "array.zarr", shape=(3, 8, 8, channels), chunks=(1, 8, 8, channels),
        dtype="float32", fill_value=np.nan, compressors=None, serializer=NecCodec(grids),
    )  # fmt: skip
    array[:] = y[:, 1:].reshape(3, 8, 8, channels)


def test_one_name_for_the_codec_of_a_model_that_ships(tmp_path, info):
    codec = coder.load(NAME)
    saved(tmp_path, codec)
    name, own = codec.fingerprint[:4].hex(), codec.fingerprint.hex()
    for file in (NAME, tmp_path / "codec.safetensors"):
        text, facts = info(file)
        assert f"codec {name}" in text
        assert facts["codec"] == own
    for file in ("blob.nec", "archive.zarr"):
        text, facts = info(tmp_path / file)
        assert f"codec {name} of {NAME}, quality {QUALITY}\n" in text
        assert facts["codec"] == own
        assert facts["quality"] == QUALITY
        text, _ = info(tmp_path / file, "--codec", tmp_path / "codec.safetensors")
        assert f"codec {name} of codec, quality {QUALITY}\n" in text


def test_a_codec_that_nobody_knows_is_named_when_it_is_given(tmp_path, info):
    codec = ladder(True)
    codec.save(tmp_path / "own.safetensors")
    one = codec.at(QUALITY)
    (tmp_path / "blob.nec").write_bytes(one.encode(embeddings(True, 1)[0], (6, 6)))
    text, facts = info(tmp_path / "blob.nec")
    part = one.fingerprint[:4].hex()
    assert f"quality {QUALITY} (fingerprint {part}) of a codec of no model that ships" in text
    assert facts["codec"] is None
    text, facts = info(tmp_path / "blob.nec", "--codec", tmp_path / "own.safetensors")
    assert facts["codec"] == codec.fingerprint.hex()


def test_an_archive_of_another_codec_is_not_named_after_the_given_one(tmp_path, info):
    written(tmp_path / "a.zarr")
    text, facts = info(tmp_path / "a.zarr")
    assert f"quality {CODEC.quality} of a codec of no model that ships" in text
    assert facts["codec"] is None
    text = info(tmp_path / "a.zarr", "--codec", NAME, status=1)
    assert f"{NAME}: was not coded by this codec" in text


def test_what_an_archive_records_is_shown(tmp_path, info):
    attributes = {"codec": "ab" * 32}
    with archive.Writer(tmp_path / "a", CODEC, COUNT, GRID, attributes=attributes):
        pass
    text, facts = info(tmp_path / "a")
    assert f"codec abababab, quality {CODEC.quality}\n" in text
    assert facts["codec"] == "ab" * 32


def test_a_model_is_named_by_the_digest_of_its_file(info):
    text, facts = info(NAME)
    assert text.startswith(f"{NAME}: images of 128 px")
    assert facts["model"]["sha256"] in text
