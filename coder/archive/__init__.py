"""Archives: embeddings of many images as an ordinary Zarr v3 group.

| array | dimensions | stored as |
| --- | --- | --- |
| `embedding` | image, y, x, channel | one blob per image, in shards of many (`sharding_indexed`) |
| `class_token` | image, channel | one blob per shard; only if the codec codes a class token |
| `id` | image | text, a coordinate |
| `label` | image | int32, a coordinate; -1 where there is none |
| `valid` | image | bool, a coordinate; false where there is no embedding |
| `error` | image | text, a coordinate; why an image is not valid |
| columns | image | text, bools, numbers or times (`Writer(columns=)`), coordinates |
| `refiner/file` | refiner_byte | uint8, a refiner's file (`coder.Refiner`); if there is one |

Floats that were not written, or were lost, read as NaN in any reader. The group's attribute
`nec_archive` lists the shards that must exist, with a digest of each (docs/format.md, section 9),
so that a shard that is lost or in another's place is named. A complete archive also has a copy of
the metadata of its arrays, for xarray. `Writer` writes an archive shard by shard and resumes after
an interruption. Or write the arrays of `create` by assignment, in one process or several, and end
with `finish`; call it too after writing to a complete archive.

A blob's framing is 12 bytes, and a shard's index takes 16 bytes for each image that it has room
for. If shards are full (`even_shard`), that makes 28 bytes per image. Class tokens add one blob per
shard.

All arrays hold plain decoded embeddings. `read_array(group, "embedding", refine=True)` refines what
it returns, by the refiner of the archive (`add_refiner`, or that of the codec of `create`).

`contents` makes, opens and reads archives; `manifest` is the record of what one must hold;
`refiner_array` is their refiner. `writer` has `Writer`, with `lock`, `shards`, `image_ids` and
`image_columns`. `appending` adds the images of other archives to one; `copying` makes a new archive
of others; `archived_images` is what both take. `exact_copy` copies an archive byte by byte.
`zarr_codec` is the Zarr codec `nec`, for arrays of embeddings in any store. `zarr_nodes` opens and
reads Zarr groups and arrays with errors that name the cause.
"""

from coder.archive.appending import append, undo_append
from coder.archive.contents import (
    SHARD,
    add_refiner,
    appended,
    columns_of,
    create,
    even_shard,
    finish,
    labelled,
    not_valid,
    open_archive,
    read_array,
    valid_images,
)
from coder.archive.lock import is_held
from coder.archive.manifest import written_shards
from coder.archive.refiner_array import read_refiner
from coder.archive.writer import Writer

__all__ = [
    "SHARD",
    "Writer",
    "add_refiner",
    "append",
    "appended",
    "columns_of",
    "create",
    "even_shard",
    "finish",
    "is_held",
    "labelled",
    "not_valid",
    "open_archive",
    "read_array",
    "read_refiner",
    "undo_append",
    "valid_images",
    "written_shards",
]
