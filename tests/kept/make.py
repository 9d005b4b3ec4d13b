"""Wrote the files of tests/kept: `python tests/kept/make.py VERSION`, into a folder of that name.

Each folder holds one model, codec, head, archive and blob as that version of the package wrote
them, and `expected.npz`: what they decode to. Every later version reads all of them. A folder that
is there is never written again.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

import coder
import nec_jax
from coder import archive
from nec_jax import NecParams, calibrate, heads, model_config
from nec_jax.models.nec import init_weights

HERE = Path(__file__).parent
CLASSES = ("dark", "bright")


def images(count: int) -> np.ndarray:
    """uint8 [count, 16, 16, 3]: smooth, dark and bright in turn."""
    rng = np.random.default_rng(0)
    base = np.where(np.arange(count) % 2, 150, 40)[:, None, None, None]
    coarse = rng.integers(0, 80, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (base + coarse).astype(np.uint8)


def main() -> None:
    """Write one folder."""
    folder = HERE / sys.argv[1]
    folder.mkdir()
    config = model_config(
        "vit-ti",
        depth=1,
        width=24,
        heads=3,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
        image_size=16,
        patch=8,
    )
    x = images(40)
    params = calibrate(NecParams(init_weights(config, jax.random.key(0)), config), x)
    nec_jax.save(params, folder / "model.safetensors")
    y = nec_jax.latents(params, x)
    ladder = coder.fit(y[:, 1:].reshape(40, 2, 2, -1), y[:, 0])
    ladder.save(folder / "codec.safetensors")
    blob = ladder.encode(y[0], (2, 2), quality=ladder.num_qualities - 1)
    (folder / "image.blob").write_bytes(blob)
    labels = np.arange(40) % 2
    y_hat = nec_jax.embed(params, x)
    head = heads.fit(params, y_hat, labels, kind="class-linear", classes=CLASSES)
    heads.save(head, folder / "head.safetensors")
    codec = ladder.at(ladder.num_qualities - 1)
    ids = np.array([f"image {i}" for i in range(10)])
    errors = ["cannot read image 5" if i == 5 else None for i in range(10)]
    with archive.Writer(folder / "archive.zarr", codec, 10, (2, 2), shard=4) as writer:
        for part in writer.missing():
            good = [i for i in range(part.start, part.stop) if not errors[i]]
            writer.write(part, y[good], ids[part].tolist(), labels[part], errors[part])
        writer.finish()
    group: Any = writer.group
    np.savez_compressed(
        folder / "expected.npz",
        y_hat=y_hat[:10],
        classes=heads.predict(head, y_hat[:10]),
        blob_symbols=ladder.decode_symbols(blob)[0],
        blob_y_hat=ladder.decode(blob),
        embedding=group["embedding"][:],
        class_token=group["class_token"][:],
        id=ids,
        label=group["label"][:],
        model_blob=np.frombuffer(nec_jax.encode(params, x[:1])[0], np.uint8),
    )


if __name__ == "__main__":
    main()
