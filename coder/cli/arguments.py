"""The arguments of the commands of `coder`: one dataclass each, whose fields are the options."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from coder import files
from coder.arrays import check_whole
from coder.errors import InputError
from coder.fitting import MAX_QUALITIES, MaxError
from coder.format.container import SHIPPED

MAX_TOKENS = 1 << 16
"""The default of --max-tokens."""


def _place(words: list[str]) -> Path | str:
    """A path, or the URL of something that is no local file."""
    if not words[0]:
        raise ValueError("an empty path: is a variable not set?")
    return words[0] if files.is_url(words[0]) else Path(files.without_scheme(words[0]))


def _path(words: list[str]) -> Path:
    place = _place(words)
    if isinstance(place, str):
        raise ValueError(f"{place} is a URL, and this must be a local path: `nec copy` copies")
    return place


_PATH = PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH",
    instance_from_str=_path,
    is_instance=lambda value: value is None or isinstance(value, Path),
    str_from_instance=lambda path: [str(path)],
)
_PLACE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="PATH|URL",
    instance_from_str=_place,
    is_instance=lambda value: isinstance(value, Path | str),
    str_from_instance=lambda place: [str(place)],
)


def _names(words: list[str]) -> tuple[str, ...]:
    if not words:
        raise ValueError("no input")
    return tuple(str(_place([word])) for word in words)


_NAMES = PrimitiveConstructorSpec(
    nargs="*",
    metavar="INPUT",
    instance_from_str=_names,
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=list,
)
_PATHS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="FILE",
    instance_from_str=lambda words: tuple(_path([word]) for word in words),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda paths: [str(path) for path in paths],
)


def _numbers(names: str) -> PrimitiveConstructorSpec:
    """As many numbers as there are names. tyro's own errors of this list the types of a union."""
    return PrimitiveConstructorSpec(
        nargs=len(names.split()),
        metavar=names,
        instance_from_str=lambda words: tuple(map(float, words)),
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda values: ["None"] if values is None else list(map(str, values)),
    )


AnyPath = Annotated[Path, _PATH]
OptionalPath = Annotated[Path | None, _PATH]
AnyPlace = Annotated[Path | str, _PLACE]
"""A path, or the URL of an archive or array in an object store."""
AnyFile = Annotated[Positional[Path | str], _PLACE, arg(metavar="FILE")]
Embeddings = Annotated[Positional[Path | str], _PLACE, arg(metavar="EMBEDDINGS")]
Flag = Annotated[bool, FlagCreatePairsOff]


def is_given(value: object) -> bool:
    """Whether an option was given; 0 is a value."""
    return value is not None and value is not False and value != ()


@dataclass(frozen=True, kw_only=True)
class Info:
    """Print what FILE holds.

    Example: nec info archive.zarr
    """

    file: AnyFile
    """Blob, file of a codec, model or refiner, name of a shipped model, or archive or scene (Zarr store)."""  # noqa: E501
    codec: OptionalPath = None
    """Codec file, model file or name of a shipped model that a blob was made with. `info` also takes it for an archive, to say whether it is its codec."""  # noqa: E501
    json: Flag = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class Verify(Info):
    """Decode everything in FILE without writing; exit with status 1 on damage.

    Example: nec verify archive.zarr
    """


@dataclass(frozen=True, kw_only=True)
class Decode(Info):
    """Write embeddings as .npy: OUT for a blob, OUT/NAME.npy for each array or of many blobs. A table becomes a table, or the CSV of NeuCo-Bench.

    Examples: nec decode archive.zarr --out embeddings
              nec decode a.nec b.nec --codec nec-vit-ti --out embeddings
              nec decode coded.parquet --out decoded.parquet
    """  # noqa: E501

    file: AnyFile
    """Blob, archive, scene, Zarr array, or Parquet table of `nec encode`."""
    more: Annotated[Positional[tuple[Path, ...]], _PATHS] = ()
    """Further blobs of the same codec."""
    out: AnyPath
    """File for a blob, or folder for arrays or several blobs, to write. Of a table: NAME.parquet, with all of its columns, or NAME.csv for NeuCo-Bench."""  # noqa: E501
    id: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of ids in a table, for NAME.csv; `id` if not given."""
    overwrite: Flag = False
    """Replace existing output; an input, a pipe or a device is never replaced."""
    refine: Flag = False
    """Refine embeddings: bring them closer to those that were encoded, with the refiner of the archive, or of the model given as --codec."""  # noqa: E501
    refiner: OptionalPath = None
    """Refiner file, model file, or name of a shipped model: refine embeddings with its refiner."""


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """options for scenes: which cells, and what of them, to write."""

    bbox: Annotated[tuple[float, float, float, float] | None, _numbers("WEST SOUTH EAST NORTH")] = (
        None
    )
    """Write the cells of which these bounds contain a part, in the units of the scene's map; all if not given."""  # noqa: E501
    level: Annotated[int | None, arg(metavar="INT")] = None
    """Factor of an overview, such as 4: cells of 4 x 4 of the scene's."""
    time: Annotated[str | None, arg(metavar="TIME")] = None
    """One of the scene's times, such as 2026-05-01T10:30, in UTC. For a STAC Item of a scene without times: when its pictures were taken."""  # noqa: E501
    channels: Annotated[tuple[int, ...], arg(metavar="INT")] = ()
    """GeoTIFF: write these channels of the embeddings, by number from 0; all if neither this nor another content is given."""  # noqa: E501
    components: Annotated[int | None, arg(metavar="INT")] = None
    """GeoTIFF: write so many principal components of the cells."""
    preview: Flag = False
    """GeoTIFF: write three principal components as red, green and blue, 8 bits each, with an alpha band."""  # noqa: E501
    head: OptionalPath = None
    """GeoTIFF: write the classes that this head (its file) predicts for each pixel of its masks."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write an archive as Parquet, CSV or plain Zarr; a scene as GeoTIFF, GeoParquet or STAC Item.

    Examples: nec export archive.zarr --pool mean --out embeddings.parquet
              nec export archive.zarr --pool mean --out embeddings.csv
              nec export scene.zarr --preview --out preview.tif
    """

    file: Annotated[Positional[Path | str], _PLACE, arg(metavar="ARCHIVE")]
    """Archive or scene (Zarr store)."""
    out: AnyPath
    """File to write. Of an archive: NAME.parquet; NAME.csv, as NeuCo-Bench reads it, with --pool; or NAME.zarr, a folder. Of a scene: NAME.tif (cloud-optimised), NAME.parquet (a row for each cell) or NAME.json (STAC Item)."""  # noqa: E501
    pool: Annotated[Literal["mean", "class-token"] | None, arg(metavar="mean|class-token")] = None
    """One vector for each image: the mean of its tokens, or its class token; all tokens if not given."""  # noqa: E501
    part: Annotated[PartOptions, OmitArgPrefixes] = PartOptions()
    refine: Flag = False
    """Refine embeddings, with the refiner of the archive or scene."""
    overwrite: Flag = False
    """Replace an existing file or Zarr array; an input, a pipe or a device is never replaced."""
    json: Flag = False
    """Print one JSON object instead of text."""

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        for name in ("level", "components"):
            if (value := getattr(self.part, name)) is not None:
                check_whole(_flag(name), value)
        given = [name for name in _CONTENTS if is_given(getattr(self.part, name))]
        if len(given) > 1:
            raise InputError(f"a GeoTIFF has one content: give one of {_flags(given)}")
        if given and self.out.suffix != ".tif":
            raise InputError(f"{_flag(given[0])} makes a GeoTIFF: name it NAME.tif", self.out)
        if self.part.head is not None and self.refine:
            raise InputError("a head refines embeddings itself: leave --refine out")
        if self.part.head is not None and self.part.level is not None:
            raise InputError("a head reads the cells themselves: leave --level out")
        if self.out.suffix == ".json":
            for name, value in (*vars(self.part).items(), ("refine", self.refine)):
                if name != "time" and is_given(value):
                    raise InputError(
                        f"a STAC Item describes the whole scene: leave {_flag(name)} out"
                    )


_CONTENTS = ("channels", "components", "preview", "head")
"""The options of `PartOptions` of which each makes another GeoTIFF."""


@dataclass(frozen=True, kw_only=True)
class AddRefiner:
    """Add a refiner to a complete archive; nothing else in it changes.

    Example: nec add-refiner archive.zarr --refiner nec-vit-ti
    """

    file: Annotated[Positional[Path | str], _PLACE, arg(metavar="ARCHIVE")]
    """Archive (Zarr store)."""
    refiner: AnyPath
    """Refiner of the archive's codec: its file, a model file, or the name of a shipped model."""
    json: Flag = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models that ship.

    Example: nec models
    """

    json: Flag = False
    """Print one JSON object instead of text."""

    @property
    def file(self) -> Path:
        """Where they are, by which errors are named."""
        return SHIPPED


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Copy an archive or scene exactly; or make one of others (--codec): at another quality, with fewer images, or several joined.

    Examples: nec copy archive.zarr --out s3://bucket/archive.zarr
              nec copy archive.zarr --codec nec-vit-ti --quality 5 --out smaller.zarr
    """  # noqa: E501

    inputs: Annotated[Positional[tuple[str, ...]], _NAMES]
    """Archive or scene; or, with --codec, archives of one codec, quality and grid, whose images follow one another."""  # noqa: E501
    out: AnyPlace
    """Archive to write; run the command again to go on."""
    codec: OptionalPath = None
    """Codec file, model file, or name of a shipped model, which made the archives. If it is not given, the copy has the same bytes as the archive."""  # noqa: E501
    quality: Annotated[int | None, arg(metavar="INT")] = None
    """Quality of the copy; that of the archives if not given."""
    keep: OptionalPath = None
    """Text file with the ids of the images to copy, one per line; all if not given."""
    drop: OptionalPath = None
    """Text file with the ids of images to leave out, one per line."""
    replace: Flag = False
    """Where two archives have one id, take the image of the later archive; without it, stop."""
    shard: Annotated[int | None, arg(metavar="INT")] = None
    """Maximum number of images per shard; 256 if not given."""
    json: Flag = False
    """Print one JSON object instead of text."""

    @property
    def file(self) -> Path | str:
        """The first input, by which errors are named."""
        return _place([self.inputs[0]])

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        if self.codec is None:
            for name in ("quality", "keep", "drop", "replace", "shard"):
                if is_given(getattr(self, name)):
                    raise InputError(f"{_flag(name)} makes another archive: give --codec, too")
            if len(self.inputs) > 1:
                raise InputError("several archives are joined with the codec: give --codec, too")
        if self.keep is not None and self.drop is not None:
            raise InputError("--keep says what to leave out: leave --drop out")
        if self.shard is not None:
            check_whole("--shard", self.shard)


@dataclass(frozen=True, kw_only=True)
class Append:
    """Add the images of other archives to an archive, in place; run the command again to go on.

    Example: nec append archive.zarr more.zarr
    """

    file: Annotated[Positional[Path | str], _PLACE, arg(metavar="ARCHIVE")]
    """Archive to add to. Only its last shard is written again."""
    more: Annotated[Positional[tuple[str, ...]], _NAMES] = ()
    """Archives of its codec, quality, grid and encoder, whose images follow its own."""
    undo: Flag = False
    """Take back an addition that was interrupted."""
    json: Flag = False
    """Print one JSON object instead of text."""

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        if bool(self.more) == self.undo:
            raise InputError("give archives to add, or --undo")


@dataclass(frozen=True, kw_only=True)
class EmbeddingOptions:
    """The options that `Fit` and `Encode` share."""

    overwrite: Flag = False
    """Replace existing output; an input, a pipe or a device is never replaced."""
    column: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of a Parquet file to read."""
    scale: Annotated[str | None, arg(metavar="FILE|COLUMN")] = None
    """Embeddings are integers with a scale (TESSERA): a file with one for each token or for each channel, as its shape says, or a column of the Parquet file with one for each row. A scale of NaN marks missing data."""  # noqa: E501
    companded: Flag = False
    """Embeddings are int8, companded by a signed square root (AlphaEarth): the value of q is sign(q) (|q| / 127.5)^2, and -128 marks missing data, beside any nodata."""  # noqa: E501
    channel_first: Flag = False
    """The channels of an array come first: a raster [D, H, W], or grids [N, D, H, W]."""
    nodata: Annotated[float | None, arg(metavar="NUMBER")] = None
    """Value that marks missing data, such as -9999, in place of what the file says; of integers with a scale, the integer."""  # noqa: E501
    codec: OptionalPath = None
    """Codec file, instead of one that is fitted."""
    metric: Annotated[
        Literal["euclidean", "standardised"] | None, arg(metavar="euclidean|standardised")
    ] = None
    """What the fitted codec counts as error: the squared error as it is, for search by cosine or distance (euclidean, the default); or that of each channel in its standard deviations."""  # noqa: E501
    max_error: Annotated[str | None, arg(metavar="BOUND")] = None
    """Choose the lowest quality whose error is at most this: 5% of relative rms error, or variance=1%, worst=20%, cosine=0.999 or recall=0.95. It is measured on embeddings that the fit did not see; with --codec, on some of those that are encoded."""  # noqa: E501
    max_tokens: Annotated[int | None, arg(metavar="INT")] = None
    """Maximum number of tokens in a grid or chunk of the fitted codec; 65536 if not given."""
    json: Flag = False
    """Print one JSON object instead of text."""

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        if self.scale is not None and self.companded:
            raise InputError("embeddings have a scale or are companded: give one of these options")
        if self.max_tokens is not None:
            check_whole("--max-tokens", self.max_tokens)
            if self.codec is not None:
                raise InputError(
                    "--max-tokens is for a codec that is fitted: leave it, or --codec, out"
                )
        if self.metric is not None and self.codec is not None:
            raise InputError("--metric is for a codec that is fitted: leave it, or --codec, out")
        if self.max_error is not None:
            MaxError.of(self.max_error, "--max-error")


@dataclass(frozen=True, kw_only=True)
class Fit(EmbeddingOptions):
    """Fit a codec of many qualities to EMBEDDINGS, and write its file.

    Examples: nec fit embeddings.npy --out codec.safetensors
              nec fit embeddings.npy --max-error 15% --out finer.safetensors
    """

    file: Embeddings
    """.npy file, Zarr array or group, GeoTIFF (bands are channels) or Parquet file, whatever its name: grids [N, H, W, D], a raster [H, W, D], or vectors [N, D]."""  # noqa: E501
    out: OptionalPath = None
    """Codec file to write."""
    codec: OptionalPath = None
    """Codec file: fit no codec, and train the refiner for this one."""
    count: Annotated[int | None, arg(metavar="INT")] = None
    """How many vectors, grids or tokens of a raster the codec is for; those of EMBEDDINGS if not given. If they are few, the codec is smaller."""  # noqa: E501
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
        if self.count is not None:
            check_whole("--count", self.count, 1, 1 << 60)
        for name in ("count", "max_error"):
            if self.codec is not None and getattr(self, name) is not None:
                raise InputError(
                    f"{_flag(name)} is for a codec that is fitted: leave it, or --codec, out"
                )
        if self.refiner_steps is not None:
            check_whole("--refiner-steps", self.refiner_steps)
            if self.refiner is None:
                raise InputError("--refiner-steps is for a refiner: name its file, --refiner")


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """options for images: INPUT is images, and the output an archive; run it again to go on."""

    model: Annotated[str | None, arg(metavar="MODEL")] = None
    """Model file, or name of a shipped model (nec-vit-ti): encode images with it."""
    for_refiner: Flag = False
    """Choose the symbols that are best for readers that refine, with the refiner of the model."""
    no_refiner: Flag = False
    """Write no refiner into the archive, which then takes fewer bytes whatever the number of images."""  # noqa: E501
    image_size: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Side of the square that images are brought to; the model's if not given. Of a scene: side of the encoder's windows."""  # noqa: E501
    chip: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Cut images into windows of this side. They begin at the upper left; the remainder at the right and the bottom is dropped."""  # noqa: E501
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Split of a data set to encode; all of it if not given."""
    shard: Annotated[int | None, arg(metavar="INT")] = None
    """Maximum number of images per shard; 256 if not given."""
    workers: Annotated[int | None, arg(metavar="INT")] = None
    """Number of threads that read images, in each process; one per core if not given."""
    scheduler: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Address of a dask scheduler, such as tcp://host:8786: its workers encode the images. local:N starts N worker processes on this machine."""  # noqa: E501
    strict: Flag = False
    """Stop at the first image that cannot be used, instead of marking it as not valid."""
    retry: Flag = False
    """Read images that are marked as not valid again."""


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """options for scenes: INPUT is georeferenced rasters, and the output a grid on the map."""

    scene: Flag = False
    """Encode the rasters as one georeferenced scene, without resizing. This is the default for files of which the first is georeferenced and has a side above 1024 pixels."""  # noqa: E501
    bands: Annotated[tuple[str, ...], arg(metavar="BAND")] = ()
    """Bands of the rasters, by number (from 1) or description: one for each band of the model, in its order, such as --bands 4 3 2."""  # noqa: E501
    value_range: Annotated[tuple[float, float] | None, _numbers("LOW HIGH")] = None
    """Values of the rasters that become the lowest and the highest value that the model takes; others are clipped."""  # noqa: E501
    resolution: Annotated[float | None, arg(metavar="NUMBER")] = None
    """Resample to pixels of this size, in map units; if not given, pixels stay as they are."""
    halo: Annotated[int | None, arg(metavar="CELLS")] = None
    """Half of the cells by which the encoder's windows overlap; a quarter of a window if not given, which encodes each cell 4 times. 0: no overlap, the fastest, with visible seams."""  # noqa: E501
    time: Annotated[str | None, arg(metavar="TIME")] = None
    """Time of the scene in UTC, such as 2026-05-01 or 2026-05-01T10:30, or auto for the time that the files state: the output has a dimension `time`, and one that is there gets one more."""  # noqa: E501


_FOR_EMBEDDINGS = (
    *("overwrite", "column", "codec", "max_tokens", "refiner", "metric", "max_error"),
    *("scale", "companded", "channel_first", "rows_per_blob"),
)
"""The options of `Encode` that are not for images."""
_NOT_FOR_SCENES = (
    "for_refiner",
    "chip",
    "split",
    "shard",
    "workers",
    "scheduler",
    "strict",
    "retry",
)
"""The options for images that are not for scenes."""


@dataclass(frozen=True, kw_only=True)
class Encode(EmbeddingOptions):
    """Encode images to an archive, or a scene to a map (--model); or embeddings to Zarr or Parquet.

    Examples: nec encode IMAGES --model nec-vit-ti --out archive.zarr
              nec encode SCENE.tif --model nec-vit-ti --out scene.zarr
              nec encode embeddings.npy --out embeddings.zarr --quality 7
              nec encode TABLE.parquet --out coded.parquet --quality 7
              nec encode embeddings.npy --out finer.zarr --max-error 15%
    """

    inputs: Annotated[Positional[tuple[str, ...]], _NAMES]
    """With --model: image files, folders of images, patterns such as 'tiles/*.tif', a table (CSV or Parquet) with a column `path`, URLs of these, or a data set as for nec compress --data; or the rasters of one scene. Otherwise embeddings: a .npy file, Zarr array or group, GeoTIFF or Parquet file of grids [N, H, W, D], a raster [H, W, D], or vectors [N, D]."""  # noqa: E501
    out: AnyPlace
    """Archive, scene or Zarr array to write, a folder; or, with --model, the URL of an archive. Of embeddings: a georeferenced raster becomes a scene, other embeddings a Zarr array; NAME.parquet makes a table of a table, with all of its columns."""  # noqa: E501
    images: Annotated[ImageOptions, OmitArgPrefixes] = ImageOptions()
    scenes: Annotated[SceneOptions, OmitArgPrefixes] = SceneOptions()
    codec: OptionalPath = None
    """Codec file that `nec fit` wrote; if not given, a codec is fitted."""
    quality: Annotated[int | None, arg(metavar="INT")] = None
    """Quality to code at: 0 is the lowest, a higher one costs more bytes; the codec's default if not given."""  # noqa: E501
    max_bytes: Annotated[float | None, arg(metavar="BYTES")] = None
    """Code at the highest quality whose blobs have at most so many bytes on average, in a sample of 64 images or chunks."""  # noqa: E501
    max_mse: Annotated[float | None, arg(metavar="NUMBER")] = None
    """Code at the lowest quality whose mean squared error is at most this, in the same sample."""
    rows_per_blob: Annotated[int | None, arg(metavar="INT")] = None
    """Rows of a table that share a blob; 256 if not given. With 1 each row has its own, which costs some 8 bytes more in each, and takes longer to encode."""  # noqa: E501
    refiner: OptionalPath = None
    """Refiner file of --codec: choose the symbols that are best for readers that refine with it. Others can read the array too; for the same error they need a few percent more bytes."""  # noqa: E501

    @property
    def file(self) -> Path | str:
        """The first input, by which errors are named."""
        return _place([self.inputs[0]])

    def check(self) -> None:
        """Raise InputError for options that are wrong whatever the files hold."""
        if self.images.model is None and isinstance(self.out, str):
            raise InputError("embeddings are coded to a local folder: give a path", self.out)
        if self.images.model is not None:
            for name in _FOR_EMBEDDINGS:
                if is_given(getattr(self, name)):
                    raise InputError(f"{_flag(name)} is for embeddings: leave it, or --model, out")
        else:
            for name, value in vars(self.images).items():
                if is_given(value):
                    raise InputError(f"{_flag(name)} is for images: give --model, too")
            for name, value in vars(self.scenes).items():
                if is_given(value):
                    raise InputError(f"{_flag(name)} is for scenes: give --model, too")
            if len(self.inputs) > 1:
                raise InputError("several inputs: give one file of embeddings, or --model")
        if self.asks_for_scene:
            self.check_scene()
        if self.images.no_refiner and self.images.for_refiner:
            raise InputError("--for-refiner is for readers of the refiner: leave --no-refiner out")
        for name in ("image_size", "chip", "shard", "workers"):
            if (value := getattr(self.images, name)) is not None:
                check_whole(_flag(name), value)
        if self.images.scheduler is not None and self.images.retry:
            raise InputError("--retry is for a process that writes alone: leave --scheduler out")
        super().check()
        if self.rows_per_blob is not None:
            check_whole("--rows-per-blob", self.rows_per_blob, 1, MAX_TOKENS)
        targets = (self.quality, self.max_bytes, self.max_mse, self.max_error)
        if sum(one is not None for one in targets) > 1:
            raise InputError("give one of --quality, --max-bytes, --max-mse and --max-error")
        if self.refiner is not None and self.codec is None:
            raise InputError("--refiner is that of a codec: give its file, --codec")
        if self.quality is not None:
            fitted = self.codec is None and self.images.model is None
            check_whole("--quality", self.quality, 0, MAX_QUALITIES - 1 if fitted else 2**31 - 1)

    @property
    def asks_for_scene(self) -> bool:
        """Whether --scene, or an option that only scenes have, is given."""
        return any(map(is_given, vars(self.scenes).values()))

    def check_scene(self) -> None:
        """Raise InputError for options that scenes do not have, or values that they do not take."""
        for name in _NOT_FOR_SCENES:
            if is_given(getattr(self.images, name)):
                raise InputError(
                    f"{_flag(name)} is for archives of images, and the input is a scene: leave it "
                    "out; or give --chip N to encode windows of the scene as images"
                )
        if isinstance(self.out, str):
            raise InputError(
                "a scene is encoded to a local folder: give a path; `nec copy` copies it", self.out
            )
        if self.scenes.halo is not None:
            check_whole("--halo", self.scenes.halo, 0)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flags(names: list[str]) -> str:
    return ", ".join(map(_flag, names))
