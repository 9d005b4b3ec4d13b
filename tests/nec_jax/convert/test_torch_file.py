"""PyTorch's files without PyTorch: tensors come out, code does not run, damage is loud."""

import copy
import pickle
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_cases import GOLDEN, bomb, torch_file

from coder import FileError
from nec_jax import convert_checkpoint
from nec_jax.convert.torch_file import read_torch_file

MAE = GOLDEN / "facebook-mae/checkpoint.pth"


def describe(offset: int, shape: tuple, strides: tuple, storage: str = "FloatStorage") -> bytes:
    """The pickle of {"x": a tensor} over storage "0", written by hand, opcode by opcode."""

    def whole(values: tuple) -> bytes:
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    return b"".join(
        [
            b"\x80\x02}(X\x01\x00\x00\x00x",
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            b"X\x07\x00\x00\x00storagectorch\n%s\n" % storage.encode(),
            b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuI4\ntQ",
            b"I%d\n" % offset,
            whole(shape),
            whole(strides),
            b"I00\nNtRu.",
        ]
    )


def test_tensors_arguments_and_inert_records() -> None:
    tensors, arguments = read_torch_file(MAE)
    assert tensors["cls_token"].shape == (1, 1, 24)
    assert arguments["norm_pix_loss"] is False


@pytest.mark.parametrize(
    ("storage", "data", "expected"),
    [
        ("FloatStorage", np.array([1, 2, 3, 4], np.float32).tobytes(), [1, 2, 3, 4]),
        ("HalfStorage", np.array([1, 2, 3, 4], np.float16).tobytes(), [1, 2, 3, 4]),
        ("BFloat16Storage", bytes.fromhex("803f004040408040"), [1, 2, 3, 4]),
        ("LongStorage", np.array([1, 2, 3, -4], np.int64).tobytes(), [1, 2, 3, -4]),
    ],
)
def test_number_types_and_strides(tmp_path: Path, storage: str, data: bytes, expected: Any):
    path = tmp_path / "x.pth"
    torch_file(path, describe(0, (2, 2), (2, 1), storage), {"0": data})
    np.testing.assert_array_equal(read_torch_file(path)[0]["x"].reshape(-1), expected)
    torch_file(path, describe(0, (2, 2), (1, 2), storage), {"0": data})
    transposed = np.reshape(expected, (2, 2)).T
    np.testing.assert_array_equal(read_torch_file(path)[0]["x"], transposed)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "gone-off"
    path = torch_file(tmp_path / "bomb.pth", bomb(target, protocol))
    with pytest.raises(FileError, match=r"asks for (posix|nt).system.*refused.*state_dict alone"):
        convert_checkpoint(path)
    assert not target.exists()
    # It is one: an ordinary reader sets it off.
    pickle.loads(bomb(target, protocol))
    assert target.exists()


@pytest.mark.parametrize(
    "name",
    [
        b"builtins\neval",
        b"builtins\ngetattr",
        b"os\nsystem",
        b"subprocess\nPopen",
        b"torch.hub\nload",
        b"torch\nload",
        b"nec_jax.convert.torch_file\nread_torch_file",
        b"numpy\nload",
        b"collections\nnamedtuple",
    ],
)
def test_only_names_of_tensors_are_resolved(tmp_path: Path, name: bytes) -> None:
    path = torch_file(tmp_path / "x.pth", b"\x80\x02c" + name + b"\n.")
    with pytest.raises(FileError, match="refused"):
        read_torch_file(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (-1, 1)),
        (0, (2, 2), (3, 1)),
        (0, (100000, 100000), (0, 0)),
        (0, (-1,), (1,)),
        (0, (2, 2), (1,)),
    ],
)
def test_tensors_stay_inside_their_storage(tmp_path, offset, shape, strides) -> None:
    path = torch_file(tmp_path / "x.pth", describe(offset, shape, strides), {"0": bytes(16)})
    with pytest.raises(FileError, match=r"damaged"):
        read_torch_file(path)


def test_damaged_pickles_end_in_one_kind_of_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(MAE) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
        whole = archive.read(name)
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(300):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), rng.integers(1, 4)):
            changed[at] = rng.integers(256)
        try:
            read_torch_file(torch_file(tmp_path / "x.pth", bytes(changed)))
        except FileError:
            errors += 1
    assert errors > 250


TWICE = b"q\x00h\x00\x86"  # the top of the stack becomes a pair of itself
WORD = b"X\x01\x00\x00\x00"
RECORD = b"c__torch__.a\nB\n)R"


@pytest.mark.parametrize(
    "content",
    [
        b"})" + 60 * TWICE + b"K\x01s.",
        b"})" + 60 * TWICE + b"\x85K\x01s.",
        b"}(" + WORD + b"xctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\n"
        b"FloatStorage\n)" + 60 * TWICE + b"tQI0\n(I1\nt(I1\ntNNtRu.",
        b"c_codecs\nencode\n)" + 60 * TWICE + b"\x85R.",
        RECORD
        + b"q\x00"
        + 60 * (RECORD + b"}" + WORD + b"ah\x00s" + WORD + b"bh\x00sbq\x00")
        + b".",
        RECORD + b"q\x00}" + WORD + b"ah\x00sb.",
    ],
    ids=["key", "key-in-tuple", "storage", "encode", "modules", "module-in-itself"],
)
def test_small_files_cannot_ask_for_much_time(tmp_path: Path, content: bytes) -> None:
    # Without a guard, none of these ends.
    path = torch_file(tmp_path / "x.pth", b"\x80\x02" + content)
    with pytest.raises(FileError):
        read_torch_file(path)


HUGE = (1 << 36).to_bytes(8, "little")


@pytest.mark.parametrize(
    "content",
    [
        b"}r" + (1 << 31).to_bytes(4, "little") + b".",
        b"}p%d\n." % (1 << 40),
        b"\x8e" + HUGE + b".",
        b"\x8d" + HUGE + b".",
        b"\x96" + HUGE + b".",
        b"\x95" + HUGE + b"}.",
        b"B" + (1 << 31).to_bytes(4, "little") + b".",
        b"\x8b" + ((1 << 31) - 1).to_bytes(4, "little") + b".",
    ],
    ids=["memo", "put", "bytes8", "text8", "bytearray8", "frame", "bytes", "integer"],
)
def test_memory_that_a_pickle_claims_is_not_allocated(tmp_path: Path, content: bytes) -> None:
    path = torch_file(tmp_path / "x.pth", b"\x80\x02" + content)
    tracemalloc.start()
    try:
        with pytest.raises(FileError):
            read_torch_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_pickle_cannot_change_what_builds_its_tensors(tmp_path: Path) -> None:
    # An ordinary reader sets any attribute of whatever a name stands for.
    changed = b"}X\x0c\x00\x00\x00__defaults__Ns\x86b."
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"argparse\nNamespace", b"__torch__.a\nB"):
        path = torch_file(tmp_path / "x.pth", b"\x80\x02c" + name + b"\nN" + changed)
        with pytest.raises(FileError, match="sets the state of what has none"):
            read_torch_file(path)
    described = describe(0, (2,), (1,))
    tensor = described[described.index(b"ctorch._utils") : -2]
    path = torch_file(tmp_path / "x.pth", b"\x80\x02" + tensor + b"}b.", {"0": bytes(8)})
    with pytest.raises(FileError, match="sets the state of what has none"):
        read_torch_file(path)


def test_errors_name_the_file_once(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pth", b"\x80\x02cos\nsystem\n.")
    for read in (read_torch_file, convert_checkpoint):
        with pytest.raises(FileError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: asks for os.system")


def test_what_no_state_needs_is_refused(tmp_path: Path) -> None:
    for content, message in [
        (b"\x8f.", "EMPTY_SET"),
        (b"K\x012.", "DUP"),
        (b"(c__torch__.a\nB\no.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"]}\x85e.", "no list|damaged"),
        (b"c__torch__.a\nB\n(" + 40 * b"N" + b"tR.", "a call that no tensor needs"),
    ]:
        path = torch_file(tmp_path / "x.pth", b"\x80\x02" + content)
        with pytest.raises(FileError, match=message):
            read_torch_file(path)


def test_the_typed_lists_of_torchscript(tmp_path: Path) -> None:
    # An attribute that every scripted convolution has, beside a tensor.
    content = describe(0, (2,), (1,))
    tensor = content[content.index(b"ctorch._utils") : -2]
    listed = WORD + b"lctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R"
    module = b"\x80\x02c__torch__.a\nB\n)\x81}(" + listed + WORD + b"x" + tensor + b"ub."
    path = torch_file(tmp_path / "x.pt", module, {"0": np.ones(2, np.float32).tobytes()})
    np.testing.assert_array_equal(read_torch_file(path)[0]["x"], [1, 1])


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    start = b"\x80\x02" + b"(c__torch__.a\nB\n)R}X\x01\x00\x00\x00x" * 5000
    content = start + b"I1\n" + b"sbt" * 5000 + b"."
    with pytest.raises(FileError):
        read_torch_file(torch_file(tmp_path / "deep.pth", content))


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    content = describe(0, (2,), (1,))
    path = torch_file(tmp_path / "x.pth", content, {"0": bytes(1 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileError, match="compressed entries"):
        read_torch_file(path)


def test_entries_that_lie_in_one_another_are_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pth", describe(0, (2,), (1,)), {"0": bytes(8)})
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(100):  # a second entry in the directory for the same bytes
            again = copy.copy(archive.getinfo("archive/data/0"))
            again.filename = f"archive/data/{i + 1}"
            again.file_size = again.compress_size = 4096
            archive.filelist.append(again)
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(FileError, match="entries are larger than the file"):
        read_torch_file(path)


def test_damage_is_loud(tmp_path: Path) -> None:
    whole = MAE.read_bytes()
    path = tmp_path / "damaged.pth"
    for cut in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError):
            read_torch_file(path)
    rng = np.random.default_rng(0)
    tensors = read_torch_file(MAE)[0]
    for at in rng.integers(0, len(whole), 40):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:  # a flip in padding or in an unused field changes nothing
            found = read_torch_file(path)[0]
        except FileError:
            continue
        assert found.keys() == tensors.keys()
        assert all(np.array_equal(found[k], tensors[k]) for k in found)


def test_other_formats_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    path.write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(FileError, match=r"no zip archive.*weights_only=True"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(FileError, match=r"not one that torch.save wrote"):
        read_torch_file(path)
    for content, message in [([1], "holds a list"), ({"model": {"a": 1}}, "no tensors")]:
        torch_file(path, pickle.dumps(content, protocol=2))
        with pytest.raises(FileError, match=message):
            read_torch_file(path)
