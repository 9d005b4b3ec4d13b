"""The one way to write files and folders, and to read them."""

import errno
import os
import pickle
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import zarr

from coder import CodecError, FileError, OutputError, files
from coder.errors import about


def written(path, data=b"new", **settings):
    with files.writing(path, **settings) as file:
        file.write(data)


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "x"
    with files.writing(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_many_files_take_their_names_together(tmp_path):
    names = [tmp_path / name for name in "abc"]
    with files.writing_all() as writing:
        for path in names:
            with writing(path) as file:
                file.write(b"new")
        assert not any(path.exists() for path in names)
    assert all(path.read_bytes() == b"new" for path in names)
    others = [tmp_path / name for name in "xyz"]

    def write_with_one_made_late():
        with files.writing_all() as writing:
            for path in others:
                with writing(path) as file:
                    file.write(b"new")
            others[-1].write_bytes(b"theirs")

    with pytest.raises(OutputError, match="z: was made by another process meanwhile"):
        write_with_one_made_late()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c", "z"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path, folder = tmp_path / "x", tmp_path / "y"
    path.write_bytes(b"old")

    def write_half():
        with files.writing(path, overwrite=True) as file:
            file.write(b"half")
            raise error

    def write_half_a_folder():
        with files.writing_folder(folder) as part:
            (part / "a").write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    with pytest.raises(type(error)):
        write_half_a_folder()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_exists_is_refused_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with pytest.raises(OutputError, match=r"x: exists: choose .* --overwrite"):
        written(path)
    assert path.read_bytes() == b"old"
    written(path, overwrite=True)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_appears_in_the_meantime_is_kept(tmp_path):
    path, folder = tmp_path / "x", tmp_path / "y"

    def write_late():
        with files.writing(path):
            path.write_bytes(b"theirs")

    def write_a_folder_late():
        with files.writing_folder(folder):
            folder.mkdir()
            (folder / "a").write_bytes(b"theirs")

    with pytest.raises(OutputError, match="meanwhile"):
        write_late()
    assert path.read_bytes() == b"theirs"
    with pytest.raises(OutputError, match="meanwhile"):
        write_a_folder_late()
    assert (folder / "a").read_bytes() == b"theirs"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "y"]


def test_a_name_that_no_file_has_is_refused(tmp_path):
    path = f"{tmp_path}/a\0b"
    with pytest.raises(OutputError, match="not the name of a file"):
        files.check_output(path)
    with pytest.raises(OutputError, match="not the name of a file"):
        files.check_outputs(path, ["x"])
    with pytest.raises(OutputError, match="not the name of a file"):
        files.check_output(tmp_path / "x", inputs=[path])
    with pytest.raises(OutputError, match="cannot be made"):
        files.make_folder(path)
    with pytest.raises(FileError, match="cannot be read"):
        files.check_input(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_replaced(tmp_path, overwrite, monkeypatch):
    source, other = tmp_path / "in", tmp_path / "hard"
    source.write_bytes(b"input")
    os.link(source, other)
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    for path in (source, "in", "./in", other, tmp_path / "link", tmp_path / "." / "in"):
        with pytest.raises(OutputError, match="is the input"):
            written(path, inputs=[source], overwrite=overwrite)
    assert source.read_bytes() == b"input"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_read_is_neither_replaced_nor_written_into(tmp_path, overwrite):
    store = tmp_path / "out" / "in.zarr"
    store.mkdir(parents=True)
    (store / "zarr.json").write_text("{}")
    for path, message in (
        (store, "is the input"),
        (store / "new", "lies inside the input"),
        (tmp_path / "out", "holds the input"),
    ):
        with (
            pytest.raises(OutputError, match=message),
            files.writing_folder(path, inputs=[store], overwrite=overwrite),
        ):
            pass
    assert [p.name for p in store.iterdir()] == ["zarr.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_pipes_devices_and_folders_are_refused(tmp_path, overwrite):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "fifo", "a pipe or a device"),
        (tmp_path / "link", "a pipe or a device"),
        ("/dev/null", "a pipe or a device"),
        ("-", "standard output cannot"),
        (tmp_path / "folder", "is a folder"),
        (tmp_path / "none" / "x", "make it first"),
        (tmp_path / "folder" / ".." / "none" / "x", "make it first"),
        ("", "not the name of a file"),
    ):
        with pytest.raises(OutputError, match=message):
            written(path, overwrite=overwrite)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "folder", "link"]


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="it has the names of open files")
def test_a_pipe_that_has_no_name_of_its_own_is_refused():
    """As /dev/stdout is, before `| program`."""
    ends = os.pipe()
    try:
        with pytest.raises(OutputError, match="is a pipe or a device"):
            written(f"/dev/fd/{ends[1]}")
    finally:
        for end in ends:
            os.close(end)


def test_a_link_is_written_to_where_it_leads(tmp_path):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "x"
    target.write_bytes(b"old")
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "broken").symlink_to(tmp_path / "far" / "y")
    with pytest.raises(OutputError, match="link: exists"):
        written(tmp_path / "link")
    written(tmp_path / "link", overwrite=True)
    written(tmp_path / "broken")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == (tmp_path / "far" / "y").read_bytes() == b"new"


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path):
    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    written(tmp_path / ("x" * longest))
    with files.writing_folder(tmp_path / ("y" * longest)):
        pass
    with pytest.raises(OutputError, match="too long"):
        written(tmp_path / ("x" * (longest + 1)))
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["x" * longest, "y" * longest]


def test_names_need_not_be_utf8(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xe4.bin")
    written(path)
    assert path.read_bytes() == files.read_bytes(path) == b"new"


def test_only_an_empty_folder_or_a_zarr_array_is_replaced(tmp_path):
    path, unfinished = tmp_path / "x", tmp_path / "x.unfinished"
    path.mkdir()
    unfinished.mkdir()
    with pytest.raises(OutputError, match="exists"), files.writing_folder(path):
        pass
    with files.writing_folder(path, overwrite=True) as part:
        zarr.create_array(part / "new", data=np.ones(3))
        (part / "new" / "zarr.json").rename(part / "zarr.json")
    with pytest.raises(OutputError, match="exists"), files.writing_folder(path):
        pass
    shutil.rmtree(path / "new")
    with files.writing_folder(path, overwrite=True) as part:
        (part / "zarr.json").write_text("{} ")
    assert (path / "zarr.json").read_text() == "{} "
    theirs = tmp_path / "mine"
    zarr.create_array(theirs / "array", data=np.ones(3))
    zarr.open_group(theirs / "group").create_array("embedding", data=np.ones(3))
    (theirs / "notes").mkdir()
    (theirs / "notes" / "thesis").write_text("x")
    (theirs / "hidden").mkdir()
    (theirs / "hidden" / ".zgroup").write_text("{}")
    (theirs / "hidden" / "thesis").write_text("x")
    (theirs / "array" / "notes.txt").write_text("x")
    for name in ("notes", "hidden", "array", "group"):
        with (
            pytest.raises(OutputError, match="never replaced"),
            files.writing_folder(theirs / name, overwrite=True),
        ):
            pass
    (theirs / "array" / "notes.txt").unlink()
    with files.writing_folder(theirs / "array", overwrite=True):
        pass
    assert not any((theirs / "array").iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "x", "x.unfinished"]


def test_what_cannot_be_read_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for path, message in (
        (tmp_path / "none", "none: no such codec"),
        (tmp_path / "empty" / "x", "x: no such codec"),
        (tmp_path, "is a folder: give the path of a codec"),
        (tmp_path / "fifo", "a pipe or a device"),
        ("/dev/zero", "a pipe or a device"),
        (tmp_path / "empty", "an empty file"),
        ("a\0b", "cannot be read"),
    ):
        with pytest.raises(FileError, match=message):
            files.read_bytes(path, "codec")


def test_an_error_knows_the_file_that_it_is_about():
    error = FileError("damaged", "a/b")
    assert (str(error), error.path) == ("a/b: damaged", "a/b")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path, type(again)) == ("a/b: damaged", "a/b", FileError)
    with pytest.raises(CodecError, match=r"^inner: x$"), about("outer"), about("inner"):
        raise CodecError("x")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff", b"[" * 100_000, None])
def test_a_file_that_is_no_json_object_is_one_kind_of_error(tmp_path, text):
    path = tmp_path / "x.json"
    if text is None:
        os.mkfifo(path)
    else:
        path.write_bytes(text)
    with pytest.raises(FileError, match=r"x\.json: "):
        files.read_json(path, "record")
    with pytest.raises(FileError, match="no such record"):
        files.read_json(tmp_path / "y.json", "record")
    path.unlink()
    path.write_bytes(b'{"a": 1}')
    assert files.read_json(path) == {"a": 1}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_a_full_disk_names_the_output_and_leaves_nothing(tmp_path, number):
    def write(path, folder):
        if folder:
            with files.writing_folder(path):
                raise OSError(number, "full")
        with files.writing(path):
            raise OSError(number, "full")

    for folder in (False, True):
        with pytest.raises(OutputError, match=r"x: cannot be written \(full\): make space"):
            write(tmp_path / "x", folder)
    assert not list(tmp_path.iterdir())
