"""The training data of `distil`: images, and a teacher's tokens of each of their views."""

import logging
from collections.abc import Iterator
from typing import TypeVar

import grain
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from nec_jax.images.record import CorruptImageError, DataError, Source
from nec_jax.images.windows import WindowSource
from nec_jax.model_file import NecParams
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.nec import latents
from nec_jax.models.weight_tree import Weights
from nec_jax.sources import at_most, open_source, spread
from nec_jax.sources.blue_marble import BlueMarble
from nec_jax.sources.splits import Concatenated
from train.configs.options import Distil, OptionsError
from train.data.views import view_of
from train.engine import processes
from train.engine.activation_cache import Prefix, open_prefix

T = TypeVar("T")
log = logging.getLogger(__name__)

SYMMETRIES = 8  # the symmetries of the square


def pooling(student: ModelConfig, teacher: ModelConfig) -> int:
    """The number of teacher tokens, in each direction, per student token."""
    mine, theirs = (c.grid(c.image_size, c.image_size)[0] for c in (student, teacher))
    if theirs % mine:
        fit = [n for n in range(1, theirs + 1) if theirs % n == 0]
        raise OptionsError(
            f"the teacher has {theirs} x {theirs} tokens, which do not make the student's {mine} x "
            f"{mine}: choose an --image-size of " + ", ".join(str(n * student.patch) for n in fit)
        )
    return theirs // mine


def passed_blocks(config: ModelConfig) -> int:
    """The number of blocks that the cached tokens have passed: all that the embedding shares."""
    return min(config.embedding_blocks or (config.depth,))


def pooled(
    config: ModelConfig, rest: Weights, tokens: jax.Array | NDArray, ratio: int
) -> jax.Array:
    """The teacher's embedding [B, (1 +) T, D] from cached tokens, its grid averaged by `ratio`."""
    y = latents(config, {"encoder": rest}, jnp.asarray(tokens), start=passed_blocks(config))
    side = config.grid(config.image_size, config.image_size)[0] // ratio
    first = y.shape[1] - (side * ratio) ** 2
    cells = y[:, first:].reshape(len(y), side, ratio, side, ratio, -1).mean((2, 4))
    return jnp.concatenate([y[:, :first], cells.reshape(len(y), side * side, -1)], axis=1)


def turned(grid: NDArray, symmetry: int) -> NDArray:
    """Apply one of the eight symmetries of the square to [side, side, ...]."""
    grid = np.rot90(grid, symmetry % 4)
    return grid[:, ::-1] if symmetry >= 4 else grid


def open_one(name: str, split: str, chip: int | None, *, alone: bool) -> Source:
    """Open one of the data sets; which are cut into windows is said at `Distil.chip`."""
    if chip is not None and name.startswith("tfds:"):  # TFDS cannot be cut into windows
        if alone:
            log.warning(f"{name}: its images stay whole, --chip {chip} is not for TFDS")
        return open_source(name, split)
    if chip is None or alone:
        return open_source(name, split, chip=chip)
    source = open_source(name, split)
    cut = isinstance(source, BlueMarble | WindowSource)
    return open_source(name, split, chip=chip) if cut else source


class Images:
    """The images of a split of all data sets, and the teacher's tokens of each of their views."""

    def __init__(self, options: Distil, teacher: NecParams, split: str):
        if not options.data:
            raise OptionsError("no data: pass --data (folders, tfds:NAME ..., between commas)")
        names = [name.strip() for name in options.data.split(",")]
        if not all(names):
            raise OptionsError(f"--data {options.data}: a name is missing before or after a comma")
        if len(options.views) not in (1, len(names)):
            raise OptionsError(
                f"--views has {len(options.views)} numbers, --data {len(names)} data sets: give "
                "one number for all of them, or one for each"
            )
        limit = options.images if split == options.split else options.val_images
        self._parts = [
            at_most(open_one(name, split, options.chip, alone=len(names) == 1), limit)
            for name in names
        ]
        self._options, self._teacher = options, teacher
        self._prefixes: list[Prefix] = []
        self._views: list[tuple[int, int, int]] = []  # data set, view, image
        self._left_out: set[str] = set()  # what was logged
        self.source = Concatenated(self._parts)

    def open(self, views: tuple[int, ...]) -> None:
        """Read the teacher's tokens of this many views, and compute those that are missing."""
        options = self._options
        views = views * (len(self._parts) if len(views) == 1 else 1)
        self._prefixes = [
            open_prefix(
                options.cache,
                options.cache_gb,
                self._teacher,
                passed_blocks(self._teacher.config),
                part,
                views=count,
                seed=options.seed,
                mixed=True,
            )
            for part, count in zip(self._parts, views, strict=True)
        ]
        self._views = [
            (part, view, place)
            for part, source in enumerate(self._parts)
            for view in range(views[part])
            for place in range(len(source))
        ]

    def __len__(self) -> int:
        """The number of views of all images."""
        return len(self._views)

    def pair(self, part: int, view: int, place: int, size: int) -> dict[str, NDArray] | None:
        """One view of an image of a data set: {"image": [size, size, C], "tokens": [n, width]}.

        None for an image that cannot be read, which is logged once.
        """
        tokens = self._prefixes[part].row(view, place)
        if np.isnan(tokens[0, 0]):
            return None
        try:
            image = view_of(self._parts[part], place, size, view, self._options.seed, mixed=True)
        except CorruptImageError as error:
            if str(error) not in self._left_out:
                self._left_out.add(str(error))
                log.warning("skipped: %s", error)
            return None
        config = self._teacher.config  # the tokens may be older than the image
        if image.shape[-1] != config.channels or image.dtype != config.dtype:
            raise DataError(
                f"{self._parts[part][place]['id']} has {image.shape[-1]} bands of {image.dtype}; "
                f"the teacher takes {config.channels} of {config.dtype}"
            )
        return {"image": image, "tokens": np.asarray(tokens)}

    def whole_tokens(self, limit: int) -> NDArray[np.float16]:
        """The teacher's tokens of at most `limit` whole images, evenly spread."""
        places = map(self.source.place, spread(len(self.source), limit))
        rows = [self._prefixes[part].row(0, place) for part, place in places]
        there = [row for row in rows if not np.isnan(row[0, 0])]
        return np.stack(self._some(there))

    def whole(self, size: int, limit: int) -> dict[str, NDArray]:
        """At most `limit` whole images and their tokens, evenly spread.

        Raises:
          DataError: none of them can be read.
        """
        places = map(self.source.place, spread(len(self.source), limit))
        pairs = (self.pair(part, 0, place, size) for part, place in places)
        there = self._some([pair for pair in pairs if pair is not None])
        return {name: np.stack([pair[name] for pair in there]) for name in there[0]}

    def _some(self, found: list[T]) -> list[T]:
        if not found:
            raise DataError(f"none of the images of {self.source.name} can be read")
        return found

    def batches(self, size: int, batch: int) -> Iterator[dict[str, NDArray]]:
        """Endless shuffled batches, each pair turned at random; resumable."""
        own, index, count = processes.own_share(batch)
        total = len(self)
        order, turns = np.random.SeedSequence([self._options.seed, 1]).generate_state(2)

        def readable(number: int) -> dict[str, NDArray]:
            pairs = (self.pair(*self._views[(number + i) % total], size) for i in range(total))
            found = next((pair for pair in pairs if pair is not None), None)
            return self._some([found] if found else [])[0]

        def turn(pair: dict[str, NDArray], rng: np.random.Generator) -> dict[str, NDArray]:
            symmetry = int(rng.integers(SYMMETRIES))
            tokens = pair["tokens"]
            side = self._teacher.config.image_size // self._teacher.config.patch
            first = len(tokens) - side * side
            grid = turned(tokens[first:].reshape(side, side, -1), symmetry)
            return {
                "image": np.ascontiguousarray(turned(pair["image"], symmetry)),
                "tokens": np.concatenate([tokens[:first], grid.reshape(side * side, -1)]),
            }

        pairs = grain.MapDataset.range(total).shuffle(seed=int(order)).repeat().map(readable)
        pairs = pairs.random_map(turn, seed=int(turns))
        batches = pairs.batch(own, drop_remainder=True)[index::count]
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(batches.to_iter_dataset(ahead))
