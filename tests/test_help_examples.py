"""The examples in the helps of the commands run, one after another, in one folder."""

import re
import shlex
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from convert_cases import GOLDEN
from image_files import encoded, noise, put
from object_store import impatient, objects, server
from scene_rasters import earth, put_scene

import coder
from coder.cli import _OWN, main
from nec_jax.cli.convert_command import Convert

__all__ = ["impatient", "objects", "server"]
# Those that make what others take come first.
ORDER = ("models", "convert", "encode", "fit", "info", "verify", "decode", "export")
ORDER += ("add-refiner", "append", "copy")


def examples(command: str) -> list[str]:
    """The command lines of a help that are examples."""
    text = {**_OWN, "convert": Convert}[command].__doc__ or ""
    return re.findall(r"^ *(?:Examples?: )? *(nec .*)$", text, re.MULTILINE)


def test_they_run_as_written(tmp_path, monkeypatch, objects, capsys):
    assert set(ORDER) == {*_OWN, "convert"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IMAGES").mkdir()
    for i in range(3):
        put(tmp_path / "IMAGES" / f"{i}.png", encoded(noise(60, 50, 3, seed=i), "png"))
    shutil.copytree(GOLDEN / "transformers-dinov2", tmp_path / "dinov2-small")
    y = np.random.default_rng(0).normal(size=(70, 65, 192)).astype(np.float32)
    np.save("embeddings.npy", y[:, 1:].reshape(70, 8, 8, 192))
    table = pa.table({"id": range(70), "embedding": [*y[:, 0]]})
    pq.write_table(table, tmp_path / "TABLE.parquet")
    for i, name in enumerate("ab"):
        (tmp_path / f"{name}.nec").write_bytes(coder.load("nec-vit-ti").encode(y[i], (8, 8)))
    put_scene(tmp_path / "SCENE.tif", earth(1040, 48))  # one whose side makes it a scene
    command_line = "nec encode more --model nec-vit-ti --out more.zarr"  # for append
    (tmp_path / "more").mkdir()
    put(tmp_path / "more" / "4.png", encoded(noise(60, 50, 3, seed=4), "png"))
    assert not main(shlex.split(command_line)[1:])
    for command in ORDER:
        lines = examples(command)
        assert lines, command
        for line in lines:
            capsys.readouterr()
            assert not main(shlex.split(line)[1:]), (line, capsys.readouterr().err)
