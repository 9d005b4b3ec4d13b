"""`python -m coder` on blobs, codec files and archives."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from coder_cases import fitted_codec, laplace_embeddings, own_lines
from folders import GOLDEN, ROOT
from zarr.core.sync import sync

import coder
from coder import CodecError, archive, codecs
from coder.archive.zarr_codec import NecCodec
from coder.cli import OTHERS, archive_commands, main
from coder.embedding_files import open_embeddings
from coder.format import blob as framing

CODEC, BLOB = GOLDEN / "woken.codec.safetensors", GOLDEN / "woken.blob"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def store(tmp_path):
    y = laplace_embeddings(1, 20, 13, np.array([0.1, 1, 30]))
    codec = fitted_codec(y, class_token=True)
    group: Any = archive.create(tmp_path / "a.zarr", codec, 20, (3, 4), shard=8)
    group["embedding"][:] = y[:, 1:].reshape(20, 3, 4, 3)
    group["class_token"][:] = y[:, 0]
    group["id"][:] = np.array([f"image {i}" for i in range(20)])
    group["valid"][:] = True
    archive.finish(group)
    return tmp_path / "a.zarr"


def test_info_says_what_a_blob_is(capsys):
    status, out, _ = run(capsys, "info", BLOB)
    assert status == 0
    assert f"blob, {BLOB.stat().st_size:,} bytes, format 1" in out
    assert "14 x 14 tokens and a class token" in out
    assert "payload 1,985 bytes" in out
    _, out, _ = run(capsys, "info", BLOB, "--codec", CODEC)
    assert "197 x 48 symbols" in out


def test_info_says_what_a_codec_is(capsys):
    status, out, _ = run(capsys, "info", CODEC)
    assert status == 0
    assert coder.load(CODEC).fingerprint.hex() in out
    assert "48 channels" in out
    assert "3 tables of 2 to 9 entries" in out


def test_info_says_what_an_archive_is(capsys, store):
    status, out, _ = run(capsys, "info", store)
    assert status == 0
    assert "embedding: float32 (image 20, y 3, x 4, channel 3)" in out
    assert "3 of 3 shards of [8, 3, 4, 3] written, read in chunks of [1, 3, 4, 3]" in out
    size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    own = (store / "zarr.json").stat().st_size
    assert f"{size - own:,} bytes in all arrays" in out


def test_decode_writes_npy(capsys, tmp_path, store):
    codec = coder.load(CODEC)
    assert run(capsys, "decode", BLOB, "--codec", CODEC, "--out", tmp_path / "y")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y"), codec.decode(BLOB.read_bytes()))
    assert run(capsys, "decode", store, "--out", tmp_path / "all")[0] == 0
    group: Any = zarr.open_group(store)
    for name in ("embedding", "class_token", "label"):
        np.testing.assert_array_equal(np.load(tmp_path / f"all/{name}.npy"), group[name][:])
    assert np.load(tmp_path / "all/id.npy")[7] == "image 7"
    assert run(capsys, "decode", store / "class_token", "--out", tmp_path / "one")[0] == 0
    assert (tmp_path / "one/class_token.npy").exists()


def test_verify_is_silent_about_good_files_and_names_bad_chunks(capsys, store):
    assert run(capsys, "verify", BLOB, "--codec", CODEC)[0] == 0
    assert run(capsys, "verify", CODEC)[0] == 0
    status, out, _ = run(capsys, "verify", store)
    assert status == 0
    assert "embedding: 20 chunks read" in out
    assert "good: no damage" in out
    shard = store / "embedding/c/1/0/0/0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 4
    shard.write_bytes(data)
    status, out, err = run(capsys, "verify", store)
    assert status == 1
    assert "1 damaged chunks" in out
    assert "embedding[9:10, 0:3, 0:4, 0:3]: the blob's checksum is wrong" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", BLOB], "add --codec"),
        (["verify", BLOB, "--codec", BLOB], "not a safetensors file"),
        (["verify", GOLDEN / "sizes.blob", "--codec", CODEC], "written with codec"),
        (["info", "nothing-here"], "no such file: give the path of a file, or"),
        (["info", GOLDEN], "without a Zarr array"),
        (["info", Path(__file__)], "not a blob, codec, model, refiner or archive"),
        (["decode", CODEC, "--out", "x"], "holds no embeddings"),
    ],
)
def test_errors_are_one_line_on_stderr(capsys, arguments, message):
    status, out, err = run(capsys, *arguments)
    assert status == 1
    assert not out
    assert message in err
    assert err.count("\n") == 1
    assert err.count(str(arguments[1])) == 1


def test_an_error_names_a_file_whose_name_is_part_of_a_word(capsys, tmp_path, monkeypatch):
    (tmp_path / "he").write_bytes(BLOB.read_bytes()[:-1])
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "info", "he")[2].startswith("he: the blob's checksum")


def test_the_module_runs_without_jax(tmp_path):
    shutil.copy(BLOB, tmp_path / "blob")
    program = (
        "import sys, runpy; sys.argv = ['coder', 'verify', sys.argv[1], '--codec', sys.argv[2]]\n"
        "try: runpy.run_module('coder', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'jax', 'flax', 'nec_jax', 'torch', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "blob", CODEC], check=True)


def test_every_blob_is_told_from_a_codec_file(capsys, tmp_path):
    """The ninth byte of a blob is the first of its payload: any byte, `{` too."""
    header, words = framing.unpack(BLOB.read_bytes())
    path, seen = tmp_path / "blob", set()
    for number in range(256):
        payload = words.copy()
        payload.view(np.uint8)[0] = number
        path.write_bytes(framing.pack(header, payload))
        seen.add(path.read_bytes()[8])
        status, out, _ = run(capsys, "info", path)
        assert (status, out.startswith("blob, ")) == (0, True)
    assert seen == set(range(256))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            b"\x89PNG\r\n\x1a\n",
            "a PNG picture, not a blob, codec, model, refiner or archive: a model makes",
        ),
        (b"\xff\xd8\xff\xe0", "a JPEG picture, not a blob"),
        (b"II*\0", "a TIFF, not a blob, codec, model, refiner or archive: read its bands"),
        (
            b"\x93NUMPY\1\0",
            "a .npy file, not a blob, codec, model, refiner or archive: `fit` and `encode`",
        ),
        (b"PAR1", "a damaged Parquet file"),
        (b"PK\3\4", "a .npz (or other zip) file"),
    ],
)
def test_a_file_of_another_kind_is_told_what_it_is(start, message, capsys, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(start + b"0123456789")
    for command in ("info", "verify"):
        status, out, err = run(capsys, command, path)
        assert (status, out) == (1, "")
        assert err.startswith(f"{path}: {message}")


def test_a_pipe_in_place_of_metadata_is_named(capsys, tmp_path, store):
    """zarr would open it, and wait for ever for somebody who writes to it."""
    for place in ("embedding/zarr.json", "zarr.json"):
        (store / place).unlink()
        os.mkfifo(store / place)
        for command in ("info", "verify"):
            status, _, err = run(capsys, command, store)
            assert status == 1
            assert f"{store / place}: is a pipe or a device" in err
        with pytest.raises(CodecError, match="is a pipe or a device"):
            archive.open_archive(store)
    with (
        pytest.raises(CodecError, match="is a pipe or a device"),
        archive.Writer(store, fitted_codec(np.zeros((2, 2, 3)), class_token=True), 20, (3, 4)),
    ):
        pass


@pytest.mark.parametrize("name", ["id/c/1", "valid/c/0", "embedding/c/1/0/0/0"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_pipe_in_place_of_a_chunk_is_named(name, whole, capsys, tmp_path, store):
    (store / name).unlink()
    os.mkfifo(store / name)
    array = name.split("/")[0]
    path, message = store if whole else store / array, f"{store / name}: is a pipe or a device"
    for command, *more in (["info"], ["verify"], ["decode", "--out", tmp_path / "out"]):
        status, out, err = run(capsys, command, path, *more)
        assert (status, out) == (1, "")
        assert err.startswith(message)
    for function, at in ((open_embeddings, store / array), (archive.open_archive, store)):
        with pytest.raises(CodecError, match=message):
            function(at)


def test_options_that_do_not_apply_are_refused(capsys, store):
    for file in (CODEC, store):
        status, _, err = run(capsys, "verify", file, "--codec", CODEC)
        assert status == 1
        assert "--codec is for a blob" in err


def test_decode_replaces_nothing(capsys, tmp_path, monkeypatch):
    blob = tmp_path / "blob"
    shutil.copy(BLOB, blob)
    out = tmp_path / "y.npy"
    out.write_bytes(b"old")
    status, _, err = run(capsys, "decode", blob, "--codec", CODEC, "--out", out)
    assert (status, out.read_bytes()) == (1, b"old")
    assert "y.npy: exists: choose another output, or replace it with --overwrite" in err
    assert run(capsys, "decode", blob, "--codec", CODEC, "--out", out, "--overwrite")[0] == 0
    assert np.load(out).shape == (197, 48)
    codec = tmp_path / "codec"
    shutil.copy(CODEC, codec)
    for path in (blob, codec):
        before = path.read_bytes()
        arguments = ("decode", blob, "--codec", codec, "--out", path, "--overwrite")
        status, _, err = run(capsys, *arguments)
        assert (status, path.read_bytes()) == (1, before)
        assert "is the input" in err


def test_many_blobs_are_decoded_at_once_or_none_is(capsys, tmp_path, store, monkeypatch):
    expected = coder.load(CODEC).decode(BLOB.read_bytes())
    blobs = [tmp_path / "a.blob", tmp_path / "b.nec", tmp_path / "sub" / "c"]
    blobs[2].parent.mkdir()
    for blob in blobs:
        shutil.copy(BLOB, blob)
    loads = []
    load = codecs.load
    monkeypatch.setattr(codecs, "load", lambda path: loads.append(path) or load(path))
    out, options = tmp_path / "x" / "out", ("--codec", CODEC, "--out", tmp_path / "x" / "out")
    status, text, _ = run(capsys, "decode", *blobs, *options, "--json")
    assert status == 0
    assert loads == [CODEC]
    files = [out / f"{name}.npy" for name in "abc"]
    assert list(json.loads(text)["files"]) == list(map(str, files))
    assert sorted(out.iterdir()) == files
    for file in files:
        np.testing.assert_array_equal(np.load(file), expected)
        file.write_bytes(b"old")
    damaged = tmp_path / "d"
    damaged.write_bytes(BLOB.read_bytes()[:-1] + b"x")
    for more, message in (
        ([], "a.npy: exists: choose another output, or replace it with --overwrite"),
        ([damaged, "--overwrite"], f"{damaged}: "),
        ([store, "--overwrite"], f"{store}: not a blob, and only blobs are decoded together"),
        ([CODEC, "--overwrite"], "not a blob, and only blobs are decoded together"),
        ([tmp_path / "no", "--overwrite"], f"{tmp_path / 'no'}: no such file"),
        ([tmp_path / "sub" / "A", "--overwrite"], f"A.npy would be that of {blobs[0]} too"),
    ):
        shutil.copy(BLOB, tmp_path / "sub" / "A")
        status, _, err = run(capsys, "decode", *blobs, *more, *options)
        assert status == 1
        assert message in err
        assert {file.read_bytes() for file in out.iterdir()} == {b"old"}
    assert run(capsys, "decode", *blobs, *options, "--overwrite")[0] == 0
    np.testing.assert_array_equal(np.load(files[2]), expected)
    status, _, err = run(capsys, "decode", *blobs[:2], "--codec", CODEC, "--out", blobs[2])
    assert status == 1
    assert "is a file" in err


def test_a_reader_that_goes_away_is_no_error(store):
    program = f"{sys.executable} -m coder info {store} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert own_lines(done.stderr) == []
    assert done.stdout.strip() in ("0", "1")  # as fast as the reader was


def test_without_a_standard_output_the_status_is_the_same(monkeypatch, store):
    monkeypatch.setattr("sys.stdout", None)  # as Python has it where it was closed before
    assert main(["verify", str(store)]) == 0


def test_a_command_that_is_stopped_says_so(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("coder.cli.file_commands.run", stop)
    status, out, err = run(capsys, "info", BLOB)
    assert (status, out, err) == (130, "", "stopped\n")


@pytest.fixture
def interruptible():
    """A shell that starts the tests in the background has them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_terminated_leaves_nothing(
    number, expected, capsys, monkeypatch, tmp_path, store
):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    write, calls = archive_commands._write_npy, []

    def write_and_stop(*arguments):
        write(*arguments)
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(archive_commands, "_write_npy", write_and_stop)
    status, out, err = run(capsys, "decode", store, "--out", tmp_path / "out")
    assert (status, out, err) == (expected, "", "stopped\n")
    assert list((tmp_path / "out").iterdir()) == []
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_array_whose_writing_is_terminated_leaves_nothing(capsys, monkeypatch, tmp_path):
    np.save(tmp_path / "y.npy", np.random.default_rng(0).normal(size=(64, 3, 4, 5)))
    names = sorted(path.name for path in tmp_path.iterdir())
    encode, calls = NecCodec._encode_single, []

    async def encode_and_stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:  # in zarr's thread
            os.kill(os.getpid(), signal.SIGTERM)
        return await encode(*arguments)

    monkeypatch.setattr(NecCodec, "_encode_single", encode_and_stop)
    status, _, err = run(capsys, "encode", tmp_path / "y.npy", "--out", tmp_path / "y.zarr")
    assert (status, err) == (143, "stopped\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == names

    async def tasks() -> int:
        return len(asyncio.all_tasks())

    assert sync(tasks()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is simulated by it")
@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_full_disk_behind_standard_output_is_not_the_inputs(command, store):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "coder", command, store],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert own_lines(done.stderr) == ["standard output cannot be written: No space left on device"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", ""],
        ["fit", "x", "--out", ""],
        ["encode", "", "--out", "x"],
        ["info", "x", "--codec", ""],
    ],
)
def test_an_empty_path_is_not_this_folder(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "an empty path: is a variable not set?" in capsys.readouterr().err


def test_help_lists_the_commands_of_all_packages_quickly_and_without_them():
    program = (
        "import sys; sys.modules['jax'] = None\n"
        "from coder.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'nec_jax', 'train', 'zarr', 'flax'} & set(sys.modules)"
    )
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    words = " ".join(done.stdout.replace("│", " ").split())
    for name, text in OTHERS.items():
        assert f"• {name} {text} Not installed: install nec-jax[train]" in words
    for name in ("info", "verify", "decode", "fit", "encode"):
        assert f"• {name} " in words


def test_a_command_that_there_is_not_has_one_message(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inof"])
    assert ended.value.code == 2
    assert "Available subcommands: info, verify" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is simulated by it")
@pytest.mark.parametrize("command", [["--help"], ["info", "--help"]])
def test_a_help_text_that_cannot_be_written_has_one_line(command):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "coder", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr == "standard output cannot be written: No space left on device\n"


def test_facts_are_json_for_scripts(capsys, tmp_path, store):
    def facts(*arguments, status=0):
        found, out, _ = run(capsys, *arguments, "--json")
        assert found == status
        return json.loads(out)

    codec = coder.load(CODEC)
    blob = facts("info", BLOB, "--codec", CODEC)
    assert (blob["kind"], blob["bytes"], blob["grid"]) == ("blob", BLOB.stat().st_size, [14, 14])
    assert blob["bits_per_element"] == 8 * blob["bytes"] / (197 * 48)
    assert facts("verify", BLOB, "--codec", CODEC)["good"] is True
    assert facts("info", CODEC)["fingerprint"] == codec.fingerprint.hex()
    assert facts("info", CODEC)["codec_bytes"] == codec.codec_bytes
    whole = facts("info", store)
    assert (whole["kind"], whole["images"], whole["valid"]) == ("archive", 20, 20)
    stored = [array["stored_bytes"] for array in whole["arrays"].values()]
    assert whole["stored_bytes"] == sum(stored) == 20 * whole["bytes_per_image"]
    assert (facts("verify", store)["good"], whole["problems"]) == (True, [])
    decoded = facts("decode", store, "--out", tmp_path / "out")["files"]
    assert decoded[str(tmp_path / "out/embedding.npy")]["shape"] == [20, 3, 4, 3]
    (store / "embedding/c/1/0/0/0").unlink()
    lost = facts("verify", store, status=1)
    assert lost["good"] is False
    assert "embedding/c/1" in lost["problems"][0]
    assert facts("decode", store, "--out", tmp_path / "no", status=1)["kind"] == "archive"
    embeddings = tmp_path / "y.npy"
    np.save(embeddings, np.random.default_rng(0).normal(size=(64, 3, 4, 5)).astype("f4"))
    fitted = facts("fit", embeddings, "--out", tmp_path / "codec")
    assert fitted["num_qualities"] == coder.load(tmp_path / "codec").num_qualities
    coded = facts("encode", embeddings, "--out", tmp_path / "y.zarr", "--quality", 2)
    assert facts("info", tmp_path / "y.zarr")["kind"] == "zarr"
    shutil.copytree(tmp_path / "y.zarr", tmp_path / "cut.zarr")
    next(path for path in (tmp_path / "cut.zarr/c").rglob("*") if path.is_file()).unlink()
    assert (
        facts("decode", tmp_path / "cut.zarr", "--out", tmp_path / "no", status=1)["kind"] == "zarr"
    )
    assert (coded["quality"], coded["bytes_in"]) == (2, 64 * 3 * 4 * 5 * 4)


def test_the_models_that_ship_are_listed(capsys):
    assert main(["models"]) == 0
    assert "nec-vit-ti: images of 128 px (red, green, blue; uint8)" in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    [model] = json.loads(capsys.readouterr().out)["models"]
    path = ROOT / "nec_jax/weights/nec-vit-ti.safetensors"
    assert model["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model["codec"] == coder.load("nec-vit-ti").fingerprint.hex()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chip", "8"], "--chip is for images: give --model, too"),
        (["--strict"], "--strict is for images: give --model, too"),
        (["--json", "y.npy"], "several inputs: give one file of embeddings, or --model"),
        (["--model", "m", "--column", "y"], "--column is for embeddings: leave it, or --model"),
        (["--model", "m", "--overwrite"], "--overwrite is for embeddings: leave it, or --model"),
        (["--model", "m", "--shard", "0"], "--shard is 0"),
        (["--max-bytes", "9", "--quality", "1"], "give one of --quality, --max-bytes, --max-mse"),
        (["--model", "m", "--for-refiner", "--no-refiner"], "leave --no-refiner out"),
    ],
)
def test_options_of_images_and_of_embeddings_do_not_mix(words, message, capsys):
    assert main(["encode", *words, "x.npy", "--out", "x.zarr"]) == 1
    assert message in capsys.readouterr().err
