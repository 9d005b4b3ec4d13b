"""Pictures for TensorBoard: some validation images, as a model in training reconstructs them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from coder.scenes.principal_components import principal_components, stretched
from nec_jax.models import density, nec
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.bottleneck import bottleneck
from nec_jax.models.vit import patchify, unpatchify
from nec_jax.models.weight_tree import Weights
from nec_jax.sources import spread

Pictures = Callable[[Weights], dict[str, NDArray[np.uint8]]]
"""Whole weights on one device -> pictures by name, uint8 [H, W, 3]."""

_SAMPLE = 32  # images whose symbols are counted
_WIDTH = 1024  # maximum width of a picture of more than two images, pixels
_GAP = 2  # pixels between images
_HIDDEN = 128  # grey value of a hidden patch


def pictures_of(
    config: ModelConfig,
    inputs: dict[str, NDArray],
    mask_ratio: float,
    *,
    coded: bool,
    start: int = 0,
) -> Pictures:
    """A function that draws a model: the same images and masks each time.

    Args:
      config: the model's configuration.
      inputs: validation data for the objective: {"image": [N, H, W, C]}, or
        {"tokens": [N, n, width]} after `start` blocks. Some of them are drawn.
      mask_ratio: as in training.
      coded: whether embeddings pass the bottleneck before the decoder; draws their symbols too.
      start: number of blocks that the inputs have passed.

    Returns:
      A function from weights to pictures. `reconstruction`: the image, the part that the encoder
      sees, and the decoder's result, with the visible patches from the image. For a decoder of
      features instead `features`: the image, if it is given, its embedding by the model that
      training started from, and the decoded embedding in the principal colours of the former. If
      coded, also `symbols`.
    """
    sample = evenly_spread(inputs["tokens" if start else "image"], _SAMPLE)
    count = min(len(sample), max(2, min(8, _WIDTH // config.image_size)))
    shown = spread(len(sample), count)
    images = None if start else sample[shown]

    def draw(weights: Weights) -> dict[str, NDArray[np.uint8]]:
        views = _look(config, weights, sample, mask_ratio, coded, start)
        masked, goal, decoded = (np.asarray(view)[shown] for view in views[:3])
        if config.decoder_target == "features":
            pictures = {"features": _features(config, images, masked, goal, decoded)}
        else:
            assert images is not None
            pictures = {"reconstruction": _reconstruction(config, images, masked, decoded)}
        if coded:
            held = weights["bottleneck"]["density"]
            symbols, bits, medians = map(np.asarray, views[3:])
            pictures["symbols"] = symbol_figure(symbols, bits, medians, held)
        return pictures

    return draw


def evenly_spread(rows: NDArray, count: int) -> NDArray:
    """At most `count` of the rows, evenly spread."""
    return rows[spread(len(rows), count)]


@functools.partial(jax.jit, static_argnames=("config", "mask_ratio", "coded", "start"))
def _look(
    config: ModelConfig,
    weights: Weights,
    inputs: jax.Array,
    mask_ratio: float,
    coded: bool,
    start: int,
) -> tuple[jax.Array, ...]:
    """Masks [N, T], target and prediction of the decoder; if coded, arguments of `symbol_figure`.

    A prediction of pixels is an image [N, H, W, C] in input units.
    """
    keys = jax.random.split(jax.random.key(0), len(inputs))
    y, kept, masked = nec.masked_latents(config, weights, inputs, keys, mask_ratio, start)
    extra = ()
    if coded:
        held = weights["bottleneck"]
        y_hat, bits = bottleneck(held, y, "hard")
        z = y * jnp.exp(held["log_gain"])
        medians = density.quantile(held["density"], 0.5)
        extra = jnp.round(z - medians), bits, medians
        y = y_hat
    grid = nec.grid_of(config, inputs, start)
    goal = nec.targets(config, weights, inputs, start)
    decoded = nec.reconstruct(config, weights, y, grid, kept)
    if config.decoder_target == "features":
        first = int(config.code_class_token)
        return masked, goal[:, first:], decoded[:, first:], *extra
    if config.decoder_target == "normalised-pixels":
        # As MAE's own demo does, each patch gets back the mean and deviation of the original's.
        patches = patchify(nec.normalise(config, inputs), config.patch)
        variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
        decoded = decoded * jnp.sqrt(variance + 1e-6) + jnp.mean(patches, axis=-1, keepdims=True)
    painted = unpatchify(decoded, grid, config.patch)
    painted = painted * jnp.asarray(config.std, jnp.float32) + jnp.asarray(config.mean, jnp.float32)
    return masked, goal, painted, *extra


def _reconstruction(
    config: ModelConfig, images: NDArray, masked: NDArray, painted: NDArray
) -> NDArray[np.uint8]:
    hidden = _pixels(config, masked) > 0
    original, painted = _in_colour(config, images, painted)
    if not hidden.any():
        return _rows(original, painted)
    seen = np.where(hidden, np.uint8(_HIDDEN), original)
    return _rows(original, seen, np.where(hidden, painted, original))


def _features(
    config: ModelConfig, images: NDArray | None, masked: NDArray, goal: NDArray, decoded: NDArray
) -> NDArray[np.uint8]:
    rows = []
    if images is not None:
        rows = _in_colour(config, images)
        hidden = _pixels(config, masked) > 0
        if hidden.any():
            rows.append(np.where(hidden, np.uint8(_HIDDEN), rows[0]))
    for tokens in (goal, decoded):
        colours = principal_colours(tokens, goal)
        colours = _pixels(config, colours.reshape(len(colours), -1, 3))
        rows.append(np.round(255 * colours).astype(np.uint8))
    return _rows(*rows)


def _pixels(config: ModelConfig, values: NDArray) -> NDArray:
    """A value or colour per token [N, T(, 3)] -> the same for each pixel [N, S, S, 1 or 3]."""
    side = config.image_size // config.patch
    grid = values.reshape(len(values), side, side, -1)
    return grid.repeat(config.patch, axis=1).repeat(config.patch, axis=2)


def _in_colour(config: ModelConfig, *images: NDArray) -> list[NDArray[np.uint8]]:
    """Images [N, H, W, C] in input units -> uint8 [N, H, W, 3], all scaled like the first ones.

    Three bands are shown: those named red, green and blue, or the first ones; a single one is
    grey. Other dtypes than uint8 are stretched from the 2nd to the 98th percentile of each band.
    """
    names = [band.lower() for band in config.bands]
    if {"red", "green", "blue"} <= set(names):
        bands = [names.index(name) for name in ("red", "green", "blue")]
    else:
        bands = [0, 1, 2] if config.channels > 2 else [0, 0, 0]
    chosen = [x[..., bands].astype(np.float32) for x in images]
    low, high = np.zeros(3, np.float32), np.full(3, 255, np.float32)
    if config.dtype != "uint8":
        low, high = np.percentile(chosen[0], [2, 98], axis=(0, 1, 2))
    span = np.maximum(high - low, 1e-6)
    return [np.round(255 * np.clip((x - low) / span, 0, 1)).astype(np.uint8) for x in chosen]


def _rows(*rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Sets of images [N, S, S, 3], one row each, on white."""
    gaps = [(0, 0), (0, _GAP), (0, _GAP), (0, 0)]
    lines = [np.concatenate([*np.pad(row, gaps, constant_values=255)], axis=1) for row in rows]
    return np.concatenate(lines)[:-_GAP, :-_GAP]


def principal_colours(
    tokens: NDArray[np.float32], like: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Grid tokens [N, T, D] -> colours [N, s, s, 3]: three principal components.

    The components and their range are those of the tokens `like` [M, T, D], by default the same.
    """
    like = tokens if like is None else like
    vectors = like.reshape(-1, like.shape[2])
    found = principal_components(vectors, 3)
    limits = np.percentile(found.scores(vectors), [2, 98], axis=0)
    side = int(tokens.shape[1] ** 0.5)
    return stretched(found.scores(tokens), limits).reshape(len(tokens), side, side, 3)


def symbol_figure(
    symbols: NDArray, bits: NDArray, medians: NDArray, params: density.Params
) -> NDArray[np.uint8]:
    """Symbols of three channels against the density's bins, and the bits of all channels.

    Args:
      symbols: whole numbers [N, n, D].
      bits: the bits of each under the density, [N, n, D].
      medians: medians of the densities, [D].
      params: parameters of the densities.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    per_token = bits.mean((0, 1))
    order = np.argsort(-per_token, kind="stable")
    chosen = {"busiest": order[0], "median": order[len(order) // 2], "quietest": order[-1]}
    figure = Figure(figsize=(14, 3.6), dpi=80)
    # Laid out by hand: matplotlib's layout would take most of the time.
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.15, top=0.8)
    axes = figure.subplots(1, 4)
    for axis, (name, d) in zip(axes, chosen.items(), strict=False):
        found, counts = np.unique(symbols[..., d].astype(int), return_counts=True)
        edges = np.arange(found[0] - 2, found[-1] + 4) - 0.5
        one = {key: np.asarray(value)[[d]] for key, value in params.items()}
        logits = density.logits_cdf(one, edges[:, None] + medians[d], np)[:, 0]
        prob = np.diff(0.5 + 0.5 * np.tanh(0.5 * logits))
        axis.bar(found, counts / counts.sum(), width=1.0, color="#56B4E9", label="symbols")
        axis.stairs(prob, edges, color="#D55E00", linewidth=2, label="density")
        # Half of one symbol's share: so the bar of a single symbol is visible.
        axis.set(yscale="log", ylim=(0.5 / counts.sum(), 1.5), xlim=(edges[0], edges[-1]))
        axis.set(title=f"{name} channel, {d}: {per_token[d]:.3g} bits", xlabel="symbol")
        axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axis.minorticks_off()
    axes[0].set_ylabel("share")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="upper left", ncols=2)
    axes[3].plot(per_token[order], color="black")
    axes[3].set(
        title=f"{per_token.sum():.4g} bits per token", xlabel="channel, by rank", ylabel="bits",
        ylim=(0, None),
    )  # fmt: skip
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
