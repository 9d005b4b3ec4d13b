"""What users of xarray and pandas do with an archive (docs/consumer.md), without any warning."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from archive_cases import BAD, CODEC, COUNT, EMBEDDING_HAT, GRID, SHARD, Y, change, written
from folders import KEPT

import coder
from coder import FileError, archive
from coder.archive import zarr_nodes
from coder.cli import main

GOOD = [i for i in range(COUNT) if i not in BAD]
USER = """
import numpy as np
import xarray as xr

for chunks in ({}, {"chunks": {}}, {"chunks": {"image": 16}}, {"chunks": None}):
    data = xr.open_zarr("a.zarr", **chunks)
    assert set(data.coords) == {"id", "label", "valid", "error"}
    assert list(data.data_vars) == ["class_token", "embedding"]
    water = data.embedding[(data.valid & (data.label > 30)).values]
    assert water.mean(("y", "x")).values.shape == (5, 3)
    ids = data.id.values.astype(object).astype(str)
    assert ids[3] == "image 3"
    assert (data.id == "image 3").values.sum() == 1
    one = data.set_index(image="id").sel(image="image 5")
    assert int(one.label) == 5
    assert one.embedding.values.shape == (3, 4, 3)
    table = data.drop_dims(["y", "x", "channel"]).to_dataframe()
    assert table[table.valid].id.str.startswith("image ").all()
    assert data.id.to_index()[4] == "image 4"
data = xr.open_dataset("a.zarr", engine="zarr")
assert np.isnan(data.embedding.values[0]).all()
xr.open_datatree("a.zarr", engine="zarr").close()
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("archives") / "a.zarr"
    written(folder, BAD)
    return folder


def test_a_plain_program_gets_no_warning(path):
    subprocess.run(
        [sys.executable, "-W", "error", "-c", USER],
        check=True,
        cwd=path.parent,
    )


def test_text_is_of_python(path):
    """NumPy cannot convert its StringDType by `astype(str)`."""
    embeddings = coder.open(path)
    for ids in (embeddings.ids, archive.read_array(embeddings.group, "id")):
        assert ids.astype(str)[3] == "image 3"
    assert archive.read_array(embeddings.group, "error", [10]).tolist() == ["no image: 10.png"]


def test_a_copy_with_xarray_keeps_codec_bytes_and_missing_images(path, tmp_path):
    data = xr.open_zarr(path, chunks=None)
    data.isel(image=slice(0, 2 * SHARD)).to_zarr(tmp_path / "b.zarr", consolidated=False)
    with pytest.raises(FileError, match=r"must call coder\.archive\.finish"):
        coder.open(tmp_path / "b.zarr")
    archive.finish(zarr.open_group(tmp_path / "b.zarr", mode="r+"))
    assert main(["verify", str(tmp_path / "b.zarr")]) == 0
    copy, original = coder.open(tmp_path / "b.zarr"), coder.open(path)[: 2 * SHARD]
    assert not copy.valid.all()
    np.testing.assert_array_equal(np.ma.getmaskarray(copy[:]), np.ma.getmaskarray(original))
    np.testing.assert_array_equal(copy[copy.valid], original[copy.valid].data)
    np.testing.assert_array_equal(copy.labels, coder.open(path).labels[: 2 * SHARD])
    assert copy.ids.tolist() == coder.open(path).ids[: 2 * SHARD].tolist()
    for place in ("embedding/c/0/0/0/0", "embedding/c/1/0/0/0", "class_token/c/0/0"):
        assert (path / place).read_bytes() == (tmp_path / "b.zarr" / place).read_bytes()
    xr.open_zarr(tmp_path / "b.zarr").close()  # warnings are errors


def test_a_shard_without_a_valid_image_is_not_copied(path, tmp_path):
    """xarray stores nothing of it; then `valid` does not say that it was written."""
    xr.open_zarr(path, chunks=None).to_zarr(tmp_path / "b.zarr", consolidated=False)
    group = zarr.open_group(tmp_path / "b.zarr", mode="r+")
    with pytest.raises(FileError, match="images 16 to 23 are not written: `valid` has no shard 2"):
        archive.finish(group)
    with pytest.raises(FileError, match="valid/c/2 is lost"):
        coder.open(tmp_path / "b.zarr")


def test_a_copy_with_dask_needs_whole_shards(path, tmp_path):
    data = xr.open_zarr(path).isel(image=GOOD)
    with pytest.raises(ValueError, match="overlap multiple Dask chunks"):
        data.to_zarr(tmp_path / "b.zarr", consolidated=False)
    data.chunk(image=SHARD).to_zarr(tmp_path / "c.zarr", consolidated=False)
    archive.finish(zarr.open_group(tmp_path / "c.zarr", mode="r+"))
    np.testing.assert_array_equal(coder.open(tmp_path / "c.zarr")[:], EMBEDDING_HAT[GOOD])


def test_a_copy_without_the_codec_is_plain_zarr(path, tmp_path):
    data = xr.open_zarr(path)
    plain = data.drop_encoding().drop_attrs(deep=False)
    plain.to_zarr(tmp_path / "b.zarr", consolidated=False)
    assert '"nec' not in (tmp_path / "b.zarr/embedding/zarr.json").read_text()
    copy = xr.open_zarr(tmp_path / "b.zarr", consolidated=False)
    for name in ("embedding", "class_token", "label", "valid"):
        np.testing.assert_array_equal(copy[name].values, data[name].values)
    assert copy.id.values.tolist() == data.id.values.tolist()
    assert np.isnan(copy.embedding.values[[*BAD]]).all()
    group: Any = zarr.open_group(tmp_path / "b.zarr", mode="r")
    assert np.isnan(group["embedding"].fill_value)
    assert group["label"].fill_value == 0  # nothing of it is missing
    with pytest.raises(FileError, match="its attribute nec_archive is lost"):
        coder.open(tmp_path / "b.zarr")
    data.drop_encoding().to_zarr(tmp_path / "c.zarr", consolidated=False)  # with the attribute
    with pytest.raises(FileError, match="embedding/c/0/0/0/0 is lost"):
        coder.open(tmp_path / "c.zarr")


def test_a_refiner_is_added_to_a_copy_again(tmp_path):
    codec: Any = coder.load("nec-vit-ti").at(3)
    y = np.zeros((3, 65, 192), np.float32) + codec.transform.mean
    with archive.Writer(tmp_path / "a.zarr", codec, 3, (8, 8)) as writer:
        writer.write(writer.missing()[0], y, ["a", "b", "c"])
        writer.finish()
    data = xr.open_zarr(tmp_path / "a.zarr", chunks=None)
    data.isel(image=[0, 2]).to_zarr(tmp_path / "b.zarr", consolidated=False)
    group = zarr.open_group(tmp_path / "b.zarr", mode="r+")
    archive.finish(group)
    with pytest.raises(FileError, match="refiner/file is lost or damaged"):
        coder.open(tmp_path / "b.zarr", refine=True)
    archive.add_refiner(group, archive.read_refiner(archive.open_archive(tmp_path / "a.zarr")))
    refined = [coder.open(tmp_path / f"{name}.zarr", refine=True) for name in "ab"]
    np.testing.assert_array_equal(refined[0][[0, 2]], refined[1][:])
    assert main(["verify", str(tmp_path / "b.zarr")]) == 0


def test_an_archive_of_earlier_is_finished_for_xarray(tmp_path):
    written(tmp_path / "a.zarr", BAD)
    change(tmp_path / "a.zarr/zarr.json", lambda data: data.pop("consolidated_metadata"))
    before = (tmp_path / "a.zarr/embedding/zarr.json").read_bytes()
    with pytest.warns(RuntimeWarning, match="consolidated"):
        xr.open_zarr(tmp_path / "a.zarr").close()
    assert main(["verify", str(tmp_path / "a.zarr")]) == 0
    archive.finish(zarr.open_group(tmp_path / "a.zarr", mode="r+"))
    xr.open_zarr(tmp_path / "a.zarr").close()
    assert (tmp_path / "a.zarr/embedding/zarr.json").read_bytes() == before
    kept = sorted(KEPT.glob("*/archive.zarr"))
    assert kept
    for old in kept:  # without a warning, if it is told
        xr.open_zarr(old, consolidated=False).close()


def test_the_copy_of_the_metadata_is_compared(tmp_path, capsys):
    """xarray, and zarr by default, believe the copy."""
    path = tmp_path / "a.zarr"
    written(path)

    def wrong(data: Any) -> None:
        data["consolidated_metadata"]["metadata"]["label"]["fill_value"] = 0

    change(path / "zarr.json", wrong)
    assert main(["verify", str(path)]) == 1
    err = capsys.readouterr().err
    assert f"{path}: label/zarr.json is not what zarr.json holds as a copy" in err
    assert len(err.splitlines()) == 1
    np.testing.assert_array_equal(coder.open(path)[:], EMBEDDING_HAT)  # reads no copy
    archive.finish(zarr.open_group(path, mode="r+"))
    assert main(["verify", str(path)]) == 0
    (path / "label/zarr.json").unlink()  # the copy must not hide what is lost
    with pytest.raises(FileError, match=r"label/zarr.json is lost"):
        coder.open(path)
    capsys.readouterr()
    assert main(["verify", str(path)]) == 1
    err = capsys.readouterr().err
    assert "label/zarr.json is lost" in err
    assert "copy (consolidated" not in err


def test_a_writer_that_goes_on_leaves_a_copy_at_the_end(tmp_path):
    path = tmp_path / "a.zarr"
    written(path, BAD)
    first = {file: file.read_bytes() for file in path.rglob("zarr.json")}
    with archive.Writer(path, CODEC, COUNT, GRID, shard=SHARD, retry=True) as writer:
        part = writer.missing()[0]
        writer.write(part, Y[part], [f"image {i}" for i in range(SHARD)], range(SHARD))
        assert "consolidated_metadata" not in json.loads((path / "zarr.json").read_text())
        writer.finish()
    assert zarr_nodes.outdated(writer.group, archive_arrays(path)) == []
    xr.open_zarr(path).close()
    for file, data in first.items():
        assert file.read_bytes() == data or file == path / "zarr.json"


def archive_arrays(path: Path) -> list[str]:
    return sorted(file.parent.name for file in path.glob("*/zarr.json"))
