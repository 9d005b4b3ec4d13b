"""How the shipped model copes with images unlike those that it was trained on.

    python -m benchmarks.limits LABELLED [--model nec-vit-ti] [--limit 420] [--json]

The conditions are other sizes, no colour, another order of bands, coarser and darker images. A
linear probe on class token and mean token is fitted to four fifths of the training split under the
same condition and scored on val: once on the embedding as it is, once on the embedding decoded at
the default quality. "Decoded, head of plain" scores the decoded embedding with the probe of the
first row.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nec_jax
from nec_jax import heads
from nec_jax.heads.head import HeadParams
from nec_jax.images.size_rule import resize
from nec_jax.model_file import NecParams
from nec_jax.sources import open_source
from train.data import Split, read_all

SIZES = (64, 192, 256, 512)
Images = NDArray[np.uint8]


def grey(images: Images) -> Images:
    """Replace each band by the mean of all bands."""
    return np.repeat(images.mean(-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)


def coarser(images: Images) -> Images:
    """Halve the resolution at the same size."""
    side = images.shape[1]
    return np.stack([resize(resize(i, side // 2, side // 2), side, side) for i in images])


CONDITIONS: dict[str, Callable[[Images], Images]] = {
    "plain": lambda x: x,
    "grey": grey,
    "blue, green, red": lambda x: np.ascontiguousarray(x[..., ::-1]),
    "half the resolution": coarser,
    "half as bright": lambda x: x // 2,
    "turned by 90 degrees": lambda x: np.ascontiguousarray(np.rot90(x, axes=(1, 2))),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="labelled images, as for nec compress --data")
    parser.add_argument("--model", default="nec-vit-ti")
    parser.add_argument("--limit", type=int, help="maximum number of images per split")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    params = nec_jax.load(arguments.model)
    if params.codec is None:
        parser.error(f"{arguments.model} has no codec")
    side = params.config.image_size
    rows, plain = [], None
    for size in dict.fromkeys((side, *SIZES)):
        train, val = (
            read_all(open_source(arguments.data, split), size, limit=arguments.limit)
            for split in ("train", "val")
        )
        classes = open_source(arguments.data, "val").classes
        if train.labels is None or val.labels is None:
            parser.error(f"{arguments.data} has no label of each image")
        for name in CONDITIONS if size == side else ["plain"]:
            row, head = measure(params, train, val, classes, CONDITIONS[name], plain)
            plain = plain or head
            rows.append({"condition": name, "size": size} | row)
            if not arguments.json:
                print(json.dumps(rows[-1]), flush=True)
    if arguments.json:
        print(json.dumps(rows))


def measure(
    params: NecParams,
    train: Split,
    val: Split,
    classes: tuple[str, ...],
    change: Callable[[Images], Images],
    plain: HeadParams | None,
) -> tuple[dict[str, Any], HeadParams]:
    """Bytes per image and accuracies (%) of one condition; the probe of decoded embeddings."""
    assert params.codec is not None
    assert train.labels is not None
    codec = params.codec.at()
    y = [nec_jax.latents(params, change(split.images)) for split in (train, val)]
    grid = params.config.grid(*val.images.shape[1:3])
    decoded = [codec.dequantise(codec.quantise(part, grid), grid) for part in y]
    chosen = np.arange(len(train.labels)) % 5 == 0

    def probe(part: list[NDArray[np.float32]]) -> HeadParams:
        assert train.labels is not None
        return heads.fit(
            params,
            part[0][~chosen],
            train.labels[~chosen],
            kind="class-linear",
            classes=classes,
            grid=grid,
            val=(part[0][chosen], train.labels[chosen]),
        )

    def score(head: HeadParams, part: NDArray[np.float32]) -> float:
        return round(100 * float(np.mean(heads.predict(head, part) == val.labels)), 1)

    head = probe(decoded)
    size = np.mean([len(codec.encode(one, grid)) for one in y[1]])
    row: dict[str, Any] = {"bytes": round(float(size), 1)}
    row |= {"uncompressed": score(probe(y), y[1]), "decoded": score(head, decoded[1])}
    if plain is not None and plain.config.grid == grid:
        row["decoded, head of plain"] = score(plain, decoded[1])
    return row, head


if __name__ == "__main__":
    main()
