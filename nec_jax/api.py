"""Images -> bytes -> embeddings.

`encode` and `embed` call one compiled function for the latents, and the NumPy codec quantises and
dequantises for both: `decode(encode(x)) == embed(x)`, bit for bit, on one machine. Images run in
batches padded to one static size, so that the bytes of an image depend only on that image. One
batch is coded while the device computes the next. JAX's settings change nothing (`jax_defaults`):
the precision of products is the model's, whatever `jax_default_matmul_precision` says.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpy.typing import ArrayLike, NDArray

from coder import EmbeddingCodec, InputError, Pool, ScalarCodec, TransformCodec
from coder.arrays import as_array, as_blobs, refuse
from coder.errors import named
from coder.refiner import AIM, AIMS
from nec_jax.jax_defaults import jax_defaults
from nec_jax.model_file import NecParams
from nec_jax.models import nec, transform_bottleneck
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.refiner_network import aim, arrays_of, refined


@jax_defaults()
def encode(
    params: NecParams,
    images: ArrayLike,
    *,
    quality: int | None = None,
    coding_batch: int | None = None,
    precision: str | None = None,
    pool: Pool | None = None,
    for_refiner: bool = False,
) -> list[bytes]:
    """Compress images to one blob each.

    Args:
      params: a model with a codec.
      images: [B, H, W, C] in the dtype and range of `params.config`.
      quality: index of a quality of the model's codec. Quality 0 is the lowest; a higher quality
        costs more bytes. None uses the codec's default.
      coding_batch, precision: override those of `params.config`. Either may move values across a
        rounding boundary: use the same for a whole archive, and record them (`with_coding` stores
        them in the model).
      pool: `coder.Pool(params.codec.at(quality))`, to code each batch on all cores. Use it where
        one core cannot keep up with the device, such as a GPU. The bytes are the same.
      for_refiner: choose the symbols that are best for readers that refine, with the model's
        refiner. They need fewer bytes for the same error. Others can read the blobs too, and their
        error is a little larger. Coding takes several times as long.

    Returns:
      B byte strings.

    Raises:
      InputError: images that the model does not take, a call under `jax.jit`, the pool of another
        codec; or for_refiner, and the model has no refiner.
    """
    params = with_coding(params, coding_batch=coding_batch, precision=precision)
    codec = _codec(params, for_refiner).at(quality)
    if pool is not None and not isinstance(pool, Pool):
        raise InputError(
            f"pool is a {type(pool).__name__}: give a coder.Pool(params.codec.at(quality))"
        )
    if pool is not None and pool.codec.fingerprint != codec.fingerprint:
        raise InputError(
            "the pool codes for another codec: make it of this model's, params.codec.at(quality)"
        )
    if pool is not None and for_refiner and pool.codec.refiner != codec.refiner:
        raise InputError(
            "the codec of the pool has another refiner than the model's, or none: make the pool of "
            "params.codec.at(quality)"
        )
    batches, grid = _latent_batches(params, images, "encode")
    if pool is not None:
        return [blob for y in batches for blob in pool.encode(y, grid, for_refiner=for_refiner)]
    return [codec.encode(one, grid, for_refiner=for_refiner) for y in batches for one in y]


def decode(
    params: NecParams,
    blobs: Iterable[bytes | bytearray | memoryview | NDArray],
    *,
    refine: bool = False,
) -> NDArray[np.float32]:
    """Blobs of images of one size -> embeddings float32 [B, (1 +) T, D], class token first.

    Args:
      params: the model that encoded them, or one with the same codec.
      blobs: any iterable of byte strings, or of other objects that hold bytes, such as memoryview.
      refine: bring the embeddings closer to those that were encoded, by the model's refiner. Do
        not encode refined embeddings again, and do not pass them to `heads`, which refine.

    Raises:
      BlobError: a blob is damaged or was made by another model; names its index, from 0.
      InputError: no blobs, blobs of different grids, or `refine` and the model has no refiner.
    """
    codec = _codec(params, refine)
    sent = as_blobs(blobs)
    grids = {named("blob", i, codec.grid_of, blob) for i, blob in enumerate(sent)}
    if len(grids) > 1:
        raise InputError(f"blobs of different token grids {sorted(grids)}: decode each size apart")
    one = functools.partial(codec.decode, refine=refine)
    return np.stack([named("blob", i, one, blob) for i, blob in enumerate(sent)])


@jax_defaults()
def embed(
    params: NecParams,
    images: ArrayLike,
    *,
    quality: int | None = None,
    coding_batch: int | None = None,
    precision: str | None = None,
    refine: bool = False,
    for_refiner: bool = False,
) -> NDArray[np.float32]:
    """What `decode` returns for the blobs of `encode`, without making the blobs.

    `embed(params, images, quality=q, refine=refine, for_refiner=for_refiner)` equals
    `decode(params, encode(params, images, quality=q, for_refiner=for_refiner), refine=refine)`,
    bit for bit.
    """
    params = with_coding(params, coding_batch=coding_batch, precision=precision)
    codec = _codec(params, refine or for_refiner).at(quality)
    batches, grid = _latent_batches(params, images, "embed")

    def decoded(y: NDArray[np.float32]) -> NDArray[np.float32]:
        aimed = codec.aim(y, grid) if for_refiner else y
        y_hat = codec.dequantise(codec.quantise(aimed, grid), grid)
        if not refine or codec.refiner is None:
            return y_hat
        return np.stack([codec.refiner.refine(one, grid, codec.fingerprint) for one in y_hat])

    return np.concatenate([decoded(y) for y in batches])


@jax_defaults()
def embed_traced(
    params: NecParams,
    images: jax.Array,
    *,
    quality: int | None = None,
    refine: bool = False,
    for_refiner: bool = False,
) -> jax.Array:
    """`embed` in JAX operations, for use inside a user's own `jit`; images are not checked.

    Equal to `embed` except near ties: compiled into a larger program, floats may differ slightly
    and move a few values across a rounding boundary.

    Its gradient is zero: rounding has none.
    """
    codec = _codec(params, refine or for_refiner).at(quality)
    y = _latents(params.config, params.weights, images)
    if isinstance(codec, TransformCodec):
        grid = params.config.grid(*images.shape[1:3])
        y_hat = transform_bottleneck.rounded(codec, y, grid)
        best, least = y_hat, jnp.inf
        for _ in range(AIMS + 1 if for_refiner else 0):
            moved, error = aim(arrays_of(codec), y, y_hat, grid)
            best = jnp.where(error < least, y_hat, best)
            least = jnp.minimum(error, least)
            y_hat = transform_bottleneck.rounded(codec, y + AIM * (moved - y), grid)
        y_hat = best
        return refined(arrays_of(codec), y_hat, grid) if refine else y_hat
    assert isinstance(codec, ScalarCodec)
    offsets, steps = jnp.asarray(codec.offsets), jnp.asarray(codec.steps)
    return jnp.round((y - offsets) / steps) * steps + offsets


@jax_defaults()
def latents(params: NecParams, images: ArrayLike) -> NDArray[np.float32]:
    """The embeddings before quantisation, float32 [B, (1 +) T, D], computed as in `encode`."""
    return np.concatenate(list(_latent_batches(params, images, "latents")[0]))


def with_coding(
    params: NecParams, *, coding_batch: int | None = None, precision: str | None = None
) -> NecParams:
    """The model with another coding batch or precision in its config; None keeps the old one."""
    given = {"coding_batch": coding_batch, "precision": precision}
    changes = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return params
    return dataclasses.replace(params, config=dataclasses.replace(params.config, **changes))


_latents = jax.jit(nec.latents, static_argnames="config")


def _codec(params: NecParams, refine: bool = False) -> EmbeddingCodec:
    if params.codec is None:
        raise InputError("this model has no codec: adapt it with `nec compress`")
    if refine and params.codec.refiner is None:
        raise InputError(
            "this model has no refiner: train one with `nec refine`, or leave refine=True and "
            "for_refiner=True out"
        )
    return params.codec


def _latent_batches(
    params: NecParams, images: ArrayLike, caller: str
) -> tuple[Iterator[NDArray[np.float32]], tuple[int, int]]:
    """Check the images; return an iterator over batches of latents, and the token grid."""
    # The zeros: under a transformation, even values computed from constants are traced.
    inputs = (images, *jax.tree.leaves(params.weights), jnp.zeros((), jnp.float32))
    if any(isinstance(x, Tracer) for x in inputs):
        raise InputError(
            f"{caller} runs on the host and cannot be traced: use nec_jax.embed_traced under jit"
        )
    x, grid = check_images(params.config, images)
    size = params.config.coding_batch
    return latents_of(params, (x[start : start + size] for start in range(0, len(x), size))), grid


def latents_of(params: NecParams, batches: Iterable[NDArray]) -> Iterator[NDArray[np.float32]]:
    """The latents float32 [b, (1 +) T, D] of batches of checked images, one batch computed ahead.

    Args:
      params: the model.
      batches: images [b, H, W, C], at most `coding_batch` at a time.

    Raises InputError: the device has not enough memory for images of this size.
    """
    size = params.config.coding_batch
    before, count, height, width = None, 0, 0, 0
    try:
        for batch in batches:
            padding = [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)]
            height, width = batch.shape[1:3]
            # Returns at once: the device computes this batch while the caller codes the one before.
            y = _latents(params.config, params.weights, np.pad(batch, padding))
            if before is not None:
                yield np.asarray(before)[:count]
            before, count = y, len(batch)
        if before is not None:
            yield np.asarray(before)[:count]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"not enough memory to encode {size} images of {height} x {width} px at once: "
            "give smaller images or windows (nec encode --image-size)"
        ) from error


def check_images(config: ModelConfig, images: ArrayLike) -> tuple[NDArray, tuple[int, int]]:
    """Images as an array [B, H, W, C] that a model takes, and their token grid.

    Raises:
      InputError: another shape, dtype, number of bands or range of values, NaN or infinity, or a
        size that gives no whole grid.
    """
    x = as_array(images, "images")
    if x.ndim != 4:
        raise InputError(f"images have shape {x.shape}: pass a batch [B, H, W, C]")
    if len(x) == 0:
        raise InputError("an empty batch: pass at least one image")
    if x.shape[3] != config.channels:
        raise InputError(
            f"images have {x.shape[3]} channels, the model takes {config.channels}: "
            f"{', '.join(config.bands)}"
        )
    lowest, highest = config.value_range
    taken = f"the model takes {config.dtype} from {lowest:g} to {highest:g}"
    if x.dtype != np.dtype(config.dtype):
        raise InputError(f"images are {x.dtype}, {taken}: rescale and cast them")
    grid = config.grid(*x.shape[1:3])
    low, high = x.min(), x.max()
    if not np.isfinite(low) or not np.isfinite(high):
        refuse(~np.isfinite(x), "values of images", "NaN or infinity", x)
    if low < lowest or high > highest:
        raise InputError(f"images range from {low:g} to {high:g}, {taken}: rescale or clip them")
    return x, grid
