"""Copy archives: at another quality, with fewer images, or several into one.

Embeddings are decoded and coded again. By the law of codecs this gives the same blobs if the codec
stays the same; at another quality, they are those of the decoded embeddings, which lost something
already.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from coder.archive import archived_images, contents
from coder.archive.archived_images import ArchivedImages
from coder.archive.writer import Writer
from coder.codecs import EmbeddingCodec
from coder.errors import InputError


class Copied(NamedTuple):
    """What `copy` did: the images of the copy, and how many of them have no embedding."""

    images: int
    not_valid: int


def copy(
    sources: Sequence[Any],
    out: Any,
    codec: EmbeddingCodec,
    *,
    quality: int | None = None,
    keep: Collection[str] | None = None,
    drop: Collection[str] | None = None,
    replace: bool = False,
    shard: int = contents.SHARD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Copied:
    """Copy the images of complete archives to a new one; called again, it goes on.

    Args:
      sources: archives of one codec, quality and grid, as `open_archive` takes them.
      out: path or store of the copy, as for `Writer`.
      codec: the codec that they were made with. (An archive holds only what decodes one quality.)
      quality: quality of the copy; None for that of the archives.
      keep: ids of the images to copy; None for all.
      drop: ids of images to leave out.
      replace: whether an image of a later archive replaces that of the same id of an earlier one,
        which is left out.
      shard: maximum number of images per shard.
      progress: called after each shard, with the images that are written and all images.

    The copy has the attributes that all archives share, labels by the names of classes (attribute
    `classes`), the columns of all archives, and the refiner of the codec, if it has one.

    Raises:
      FileError: an archive is damaged or not complete.
      InputError: archives of different codecs, qualities or grids, or of another codec than the
        one given; one id twice; labels or columns that cannot be joined; not one image to copy.
      OutputError: as `Writer`.
    """
    if not sources:
        raise InputError("no archive to copy")
    parts = [ArchivedImages(store) for store in sources]
    archived_images.choose(parts, keep, drop)
    if replace:
        archived_images.leave_replaced(parts)
    first = parts[0]
    archived_images.refuse_different(parts)
    own = codec.quality_of(first.codecs)
    if own is None:
        raise InputError(
            f"{first.store} was not coded by this codec: give the codec or the model that made it"
        )
    one = codec.at(own if quality is None else quality)
    if one.quality > own:
        raise InputError(
            f"quality {one.quality}, and the archive has quality {own}: a copy cannot be better: "
            f"give {own} or less, or encode the images again"
        )
    classes = archived_images.classes_of(parts)
    count = archived_images.count_unique(parts)
    if count == 0:
        raise InputError("no image to copy")
    attributes = _shared([part.attributes for part in parts])
    attributes.pop("files_left_out", None)  # of the images of one archive
    attributes |= {"classes": classes} if classes else {}
    if "quality" in attributes:
        attributes["quality"] = one.quality
    if one.quality != own:
        attributes.pop("for_refiner", None)  # of symbols that were chosen again
    attributes["copied_from"] = [part.name for part in parts]
    attributes["copied_from_quality"] = own
    attributes["copied_images"] = archived_images.digest(parts)
    columns = archived_images.columns_of(parts)
    writer = Writer(
        out, one, count, first.grid, shard=contents.even_shard(count, shard),
        attributes=attributes, columns=columns,
    )  # fmt: skip
    with writer:
        missing = writer.missing()
        done = count - sum(part.stop - part.start for part in missing)
        for part in missing:
            writer.write(part, *archived_images.rows(parts, part, classes, columns))
            done += part.stop - part.start
            progress(done, count)
        writer.finish()
        return Copied(count, contents.not_valid(writer.group, 0)[0])


def _shared(attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The attributes that all have, with one value."""
    first, *others = attributes
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }
