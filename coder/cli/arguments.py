"""The arguments of the commands of `coder`: one dataclass each, whose fields are the options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from coder.arrays import check_whole
from coder.errors import InputError
from coder.fitting import MAX_QUALITIES

MAX_TOKENS = 1 << 16
"""The default of --max-tokens."""


def _path(words: list[str]) -> Path:
    if not words[0]:
        raise ValueError("an empty path: is a variable not set?")
    return Path(words[0])


_PATH = PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH",
    instance_from_str=_path,
    is_instance=lambda value: value is None or isinstance(value, Path),
    str_from_instance=lambda path: [str(path)],
)
AnyPath = Annotated[Path, _PATH]
OptionalPath = Annotated[Path | None, _PATH]
AnyFile = Annotated[Positional[Path], _PATH, arg(metavar="FILE")]
Embeddings = Annotated[Positional[Path], _PATH, arg(metavar="EMBEDDINGS")]
Flag = Annotated[bool, FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what FILE holds.

    Example: nec info archive.zarr
    """

    file: AnyFile
    """Blob, file of a codec, model or refiner, name of a shipped model, or archive (Zarr store)."""
    codec: OptionalPath = None
    """Codec or model file that the blob was made with."""
    json: Flag = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class Verify(Info):
    """Decode everything in FILE without writing; exit with status 1 on damage.

    Example: nec verify archive.zarr
    """


@dataclass(frozen=True, kw_only=True)
class Decode(Info):
    """Write embeddings as .npy: OUT for a blob, OUT/NAME.npy for each array of an archive.

    Example: nec decode archive.zarr --out embeddings
    """

    file: AnyFile
    """Blob, archive, or Zarr array."""
    out: AnyPath
    """File for a blob, or folder for arrays, to write."""
    overwrite: Flag = False
    """Replace existing output; an input, a pipe or a device is never replaced."""
    refine: Flag = False
    """Refine embeddings: bring them closer to those that were encoded, with the refiner of the archive, or of the model given as --codec."""  # noqa: E501
    refiner: OptionalPath = None
    """Refiner file, model file, or name of a shipped model: refine embeddings with its refiner."""


@dataclass(frozen=True, kw_only=True)
class AddRefiner:
    """Add a refiner to a complete archive; nothing else in it changes.

    Example: nec add-refiner archive.zarr --refiner refiner.safetensors
    """

    file: Annotated[Positional[Path], _PATH, arg(metavar="ARCHIVE")]
    """Archive (Zarr store)."""
    refiner: AnyPath
    """Refiner of the archive's codec: its file, a model file, or the name of a shipped model."""
    json: Flag = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """The options that `Fit` and `Encode` share."""

    file: Embeddings
    """.npy file, Zarr array or Parquet file: grids [N, H, W, D], a raster [H, W, D], or vectors [N, D]."""  # noqa: E501
    overwrite: Flag = False
    """Replace existing output; an input, a pipe or a device is never replaced."""
    column: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of a Parquet file to read."""
    nodata: Annotated[float | None, arg(metavar="NUMBER")] = None
    """Value that marks missing data, such as -9999."""
    codec: OptionalPath = None
    """Codec file, instead of one that is fitted."""
    max_tokens: Annotated[int | None, arg(metavar="INT")] = None
    """Maximum number of tokens in a grid or chunk of the fitted codec; 65536 if not given."""
    json: Flag = False
    """Print one JSON object instead of text."""

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        if self.max_tokens is not None:
            check_whole("--max-tokens", self.max_tokens)
            if self.codec is not None:
                raise InputError(
                    "--max-tokens is for a codec that is fitted: leave it, or --codec, out"
                )


@dataclass(frozen=True, kw_only=True)
class Fit(EmbeddingOptions):
    """Fit a codec of many qualities to EMBEDDINGS, and write its file.

    Example: nec fit embeddings.npy --out codec.safetensors
    """

    out: OptionalPath = None
    """Codec file to write."""
    codec: OptionalPath = None
    """Codec file: fit no codec, and train the refiner for this one."""
    refiner: OptionalPath = None
    """Refiner file to write. If it is given, also train a refiner, which brings decoded embeddings closer to those that were encoded; this takes minutes."""  # noqa: E501
    refiner_steps: Annotated[int | None, arg(metavar="INT")] = None
    """Training steps of the refiner; 4000 if not given. Fewer take less time, and refine less."""

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        super().check()
        if (self.out is None) == (self.codec is None):
            raise InputError("give one of --out, a codec to write, and --codec, one that exists")
        if self.codec is not None and self.refiner is None:
            raise InputError("--codec is for a refiner: name the file to write, --refiner")
        if self.refiner_steps is not None:
            check_whole("--refiner-steps", self.refiner_steps)
            if self.refiner is None:
                raise InputError("--refiner-steps is for a refiner: name its file, --refiner")


@dataclass(frozen=True, kw_only=True)
class Encode(EmbeddingOptions):
    """Encode EMBEDDINGS to a Zarr array, with --codec or a codec fitted to them.

    Example: nec encode embeddings.npy --out embeddings.zarr --quality 7
    """

    out: AnyPath
    """Zarr array to write, which is a folder."""
    codec: OptionalPath = None
    """Codec file that `nec fit` wrote."""
    quality: Annotated[int | None, arg(metavar="INT")] = None
    """Quality to code at: 0 is the lowest, a higher one costs more bytes; the codec's default if not given."""  # noqa: E501
    refiner: OptionalPath = None
    """Refiner file of --codec: choose the symbols that are best for readers that refine with it. Others can read the array too; for the same error they need a few percent more bytes."""  # noqa: E501

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        super().check()
        if self.refiner is not None and self.codec is None:
            raise InputError("--refiner is that of a codec: give its file, --codec")
        if self.quality is not None:
            check_whole(
                "--quality", self.quality, 0, 2**31 - 1 if self.codec else MAX_QUALITIES - 1
            )
