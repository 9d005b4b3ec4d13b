"""Read and write files and folders: whole or not at all, and never over what must stay.

Output has another name, in the same folder, until it is complete. Writing to a link writes to its
target. Pipes, devices and the inputs of a command are never replaced. Pipes and devices are not
read either: opening one may wait for ever.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from coder.errors import FileError, InputError, NoPermission, OutputError

ZARR_METADATA = ("zarr.json", ".zarray", ".zgroup")
"""File names, one of which is in every folder that is a Zarr array or group."""
_OF_ZARR = re.compile(r"zarr\.json|\.zarray|\.zattrs|c|[0-9]+([./][0-9]+)*")
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_LOCAL = ("file://", "local://")  # what URLs of local files begin with
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")
_WEB = re.compile("(^|::)https?://", re.IGNORECASE)
_MADE = "was made by another process meanwhile: choose another output"
PathLike = str | os.PathLike[str]


def is_url(name: object) -> bool:
    """Whether it is the URL of something that is no local file.

    Raises InputError for a scheme in capitals (S3://, FILE://), which no package knows.
    """
    if not isinstance(name, str) or "://" not in name:
        return False
    if (found := _SCHEME.match(name)) and not found[1].islower():
        text = f"write the beginning of this URL in lower case, {found[0].lower()}"
        raise InputError(text, without_query(name))
    return not name.startswith(_LOCAL)


def without_scheme(name: str) -> str:
    """A path that may begin as the URL of a local file, as a path."""
    for scheme in _LOCAL:
        name = name.removeprefix(scheme)
    return name


def without_query(url: str) -> str:
    """The URL of a web server without its query, which may be a signature; others as they are."""
    return url.partition("?")[0] if _WEB.search(url) else url


def check_input(path: PathLike, what: str = "file") -> Path:
    """Check that a path is a readable regular file; errors call it `what`.

    Raises FileError if it is missing, empty, a folder, a pipe or device, or has no permission.
    """
    try:
        found = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(f"no such {what}", path) from error
    except PermissionError as error:
        raise NoPermission(path=path) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError(f"cannot be read: {error}", path) from error
    if stat.S_ISDIR(found.st_mode):
        raise FileError(f"is a folder: give the path of a {what}", path)
    if not stat.S_ISREG(found.st_mode):
        raise FileError(f"is a pipe or a device: give the path of a {what}", path)
    if found.st_size == 0:
        raise FileError(f"is an empty file: give a whole {what}", path)
    if not os.access(path, os.R_OK):
        raise NoPermission(path=path)
    return Path(path)


def read_bytes(path: PathLike, what: str = "file") -> bytes:
    """Read a whole file. Raises FileError as `check_input`, or if reading fails."""
    try:
        return check_input(path, what).read_bytes()
    except OSError as error:
        raise FileError(f"cannot be read: {error.strerror}", path) from error


def real_path(path: PathLike) -> Path:
    """The target of a path through all links. Raises OutputError for a NUL in the name."""
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise OutputError(f"not the name of a file ({error}): give another", path) from error


def read_json(path: PathLike, what: str = "file") -> dict[str, Any]:
    """Read a file of one JSON object. Raises FileError as `read_bytes`, or if it is not one."""
    content = read_bytes(path, what)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FileError(f"damaged, or no {what}: not JSON ({error})", path) from error
    if not isinstance(value, dict):
        raise FileError(f"damaged, or no {what}: not a JSON object", path)
    return value


def make_folder(path: PathLike) -> None:
    """Make a folder and its parents unless they exist. Raises OutputError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError("is a file, or lies below one, and a folder is needed", path) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"the folder cannot be made: {reason}", path) from error


def check_output(
    path: PathLike,
    *,
    overwrite: bool = False,
    inputs: Iterable[PathLike] = (),
    folder: bool = False,
) -> Path:
    """Check, before any work, that a file or a folder can be written at `path`.

    Args:
      path: the file or folder to write.
      overwrite: whether an existing file or Zarr store may be replaced.
      inputs: files and folders that are read, which are never replaced.
      folder: whether a folder will be written.

    Returns:
      The path to write: `path`, or its target if it is a link.

    Raises:
      OutputError: the path cannot be written; says why and what to do.
    """
    target = real_path(path)
    if os.fspath(path) == "" or target.name == "":
        raise OutputError("not the name of a file: give one", path)
    if os.fspath(path) == "-":
        raise OutputError("standard output cannot be written to: give the name of a file", path)
    _refuse_inputs(path, target, inputs)
    try:
        # `path`, not `target`: if /dev/stdout is a pipe, its target is not the name of a file.
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        mode = None
    except NotADirectoryError as error:
        raise OutputError("a part of this path is a file: give another path", path) from error
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", path) from error
    if mode is not None:
        is_folder = stat.S_ISDIR(mode)
        if not is_folder and not stat.S_ISREG(mode):
            raise OutputError("is a pipe or a device, not a file: choose another output", path)
        if is_folder and not folder:
            raise OutputError("is a folder: give the name of a file", path)
        if folder and not is_folder:
            text = "is a file, and a folder is to be written: choose another output"
            raise OutputError(text, path)
        if not overwrite:
            raise OutputError("exists: choose another output, or replace it with --overwrite", path)
        if folder and any(target.iterdir()) and not _is_zarr_array(target):
            text = (
                "is not a folder of one Zarr array alone (scenes and archives are more), so it is "
                "never replaced: choose another, or delete it first"
            )
            raise OutputError(text, path)
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}: make it first", path)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {target.parent}: change it", path)
    return target


def check_outputs(
    folder: PathLike,
    names: Iterable[str],
    *,
    overwrite: bool = False,
    inputs: Iterable[PathLike] = (),
) -> None:
    """Check, before any work, that files of these names can be written in a folder.

    The folder need not exist: `make_folder` makes it. Raises OutputError as `check_output`.
    """
    place, inputs = real_path(folder), list(inputs)
    if place.is_dir():
        for name in names:
            check_output(Path(folder) / name, overwrite=overwrite, inputs=inputs)
        return
    there = next(parent for parent in (place, *place.parents) if os.path.lexists(parent))
    if not there.is_dir():
        raise OutputError(f"cannot be made, because {there} is a file: choose another", folder)
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write in {there}: change it", folder)
    for name in names:
        _refuse_inputs(folder, place / name, inputs)


@contextmanager
def writing(
    path: PathLike, *, overwrite: bool = False, inputs: Iterable[PathLike] = ()
) -> Iterator[BinaryIO]:
    """A file to write to; it gets its name at the end of the block, if there was no error.

    Raises OutputError as `check_output`.
    """
    with writing_all(overwrite=overwrite, inputs=inputs) as opened, opened(path) as file:
        yield file


@contextmanager
def writing_all(
    *, overwrite: bool = False, inputs: Iterable[PathLike] = ()
) -> Iterator[Callable[[PathLike], AbstractContextManager[BinaryIO]]]:
    """As `writing`, for many files: they get their names together, if there was no error.

    The block gets a function from the path of a file to its context. Raises OutputError as
    `check_output`.
    """
    inputs = list(inputs)
    parts: list[tuple[PathLike, Path, Path]] = []

    @contextmanager
    def opened(path: PathLike) -> Iterator[BinaryIO]:
        target = check_output(path, overwrite=overwrite, inputs=inputs)
        part = _unused(target)
        parts.append((path, target, part))
        # Opened plainly, so that the umask applies.
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    try:
        yield opened
        for path, target, part in parts:
            if target.exists():
                shutil.copymode(target, part)
            if not overwrite and os.path.lexists(target):
                raise OutputError(_MADE, path)
        for _, target, part in parts:
            part.replace(target)
    except OSError as error:
        _say_full(error, parts[-1][0] if parts else "")
        raise
    finally:
        for _, _, part in parts:
            part.unlink(missing_ok=True)


@contextmanager
def writing_folder(
    path: PathLike, *, overwrite: bool = False, inputs: Iterable[PathLike] = ()
) -> Iterator[Path]:
    """An empty folder to write to; it gets its name at the end of the block, as in `writing`.

    Raises OutputError as `check_output`.
    """
    target = check_output(path, overwrite=overwrite, inputs=inputs, folder=True)
    part = _unused(target)
    try:
        part.mkdir()
        yield part
        before = _unused(target, "old")
        if overwrite and target.exists():
            target.rename(before)
        part.rename(target)
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        _say_full(error, path)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise OutputError(_MADE, path) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def mark(target: Path) -> str:
    """The prefix of the names of a target's parts; short, as its own may be of maximum length."""
    return hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]


def remove_parts(path: PathLike) -> None:
    """Remove what killed processes left of writing or deleting this file or folder.

    Call it only when nobody else is writing it, as under a lock.
    """
    target = real_path(path)
    for part in target.parent.glob(f".{mark(target)}-*.part"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)
    for before in target.parent.glob(f".{mark(target)}-*.old"):
        if target.exists():  # it was replaced
            shutil.rmtree(before)
        elif not any(before.iterdir()):
            before.rmdir()


def delete_folder(path: PathLike) -> None:
    """Delete a folder: it loses its name first, so that a killed process leaves no part of it."""
    target = real_path(path)
    shutil.rmtree(target.rename(_unused(target)))


@contextmanager
def scratch_folder(path: PathLike) -> Iterator[Path]:
    """A folder beside a file, for what it is made of; deleted at the end of the block.

    What a killed process left of it, `remove_parts` removes.
    """
    folder = _unused(real_path(path))
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_bytes(path: PathLike, data: bytes, *, overwrite: bool = False) -> None:
    """Write a whole file. Raises OutputError as `check_output`."""
    with writing(path, overwrite=overwrite) as file:
        file.write(data)


def write_text(path: PathLike, text: str, *, overwrite: bool = False) -> None:
    """Write a whole text file in UTF-8. Raises OutputError as `check_output`."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def is_zarr(path: PathLike) -> bool:
    """Whether a folder is a Zarr array or group, of any version."""
    return any((Path(path) / name).is_file() for name in ZARR_METADATA)


def _say_full(error: OSError, path: PathLike) -> None:
    """Raise OutputError if an error means that the disk is full."""
    if error.errno in _FULL:
        text = f"cannot be written ({error.strerror}): make space, nothing was changed"
        raise OutputError(text, path) from error


def _unused(target: Path, ending: str = "part") -> Path:
    return target.with_name(f".{mark(target)}-{secrets.token_hex(6)}.{ending}")


def _refuse_inputs(path: PathLike, target: Path, inputs: Iterable[PathLike]) -> None:
    for name in inputs:
        source = real_path(name)
        # Two names may be hard links to one file, or spellings of one name.
        if source == target or (source.exists() and target.exists() and source.samefile(target)):
            raise OutputError("is the input, which would be lost: choose another output", path)
        if source in target.parents and source.is_dir():
            raise OutputError(f"lies inside the input {os.fspath(name)}: choose another", path)
        if target in source.parents:
            raise OutputError(f"holds the input {os.fspath(name)}: choose another output", path)


def _is_zarr_array(folder: Path) -> bool:
    """Whether a folder holds a Zarr array and nothing else: no group and no other files."""
    try:
        is_array = (folder / ".zarray").is_file() or (
            read_json(folder / "zarr.json").get("node_type") == "array"
        )
    except FileError:
        is_array = False
    return is_array and all(_OF_ZARR.fullmatch(entry.name) for entry in folder.iterdir())
