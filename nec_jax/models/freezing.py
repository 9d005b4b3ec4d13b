"""The freezing rule: which parameters train, by their paths in the weight tree."""

import re
from collections.abc import Callable, Iterable

import jax

from coder import InputError
from nec_jax.models.architecture import ModelConfig
from nec_jax.models.nec import init_weights
from nec_jax.models.weight_tree import Weights, path_name

# The paper's trainable set, as patterns of paths. `log_gain` is an addition and not in it.
_PAPER = (
    "encoder/(patch_embed|class_token|norm|block_{last})(/.*)?",
    "decoder/(stem|block_0|norm|pred)(/.*)?",
    "bottleneck/density/.*",
)
TRAINABLE = {
    "paper": _PAPER,
    "paper+gain": (*_PAPER, "bottleneck/log_gain"),
    "late": ("encoder/(norm|block_{last})(/.*)?", "decoder/.*", "bottleneck/.*"),
    "density": ("bottleneck/density/.*",),
    "decoder": ("decoder/.*",),
    "all": ("encoder/.*", "decoder/.*", "bottleneck/.*"),
    "mae": ("encoder/.*", "decoder/.*"),
}

_FIXED = "bottleneck/transform/"  # never trains


def trainable_rule(name: str, config: ModelConfig) -> Callable[[str], bool]:
    """A function from the path of a weight to whether it trains.

    Args:
      name: a preset of `TRAINABLE`; or regular expressions of paths, separated by commas, in which
        {last} is the number of the last encoder block:
        `encoder/block_{last}/.*,encoder/norm/.*,bottleneck/.*`.

    Raises:
      InputError: no preset and no patterns, or a pattern that matches no path of this model.
    """
    if name in TRAINABLE:
        return _matcher(TRAINABLE[name], config)
    if "/" not in name:
        raise InputError(
            f"unknown trainable set {name!r}: choose from {', '.join(TRAINABLE)}, or give patterns "
            "of paths between commas, such as 'encoder/block_{last}/.*,bottleneck/.*'"
        )
    shapes = jax.eval_shape(lambda key: init_weights(config, key), jax.random.key(0))
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    patterns = [pattern.strip() for pattern in name.split(",")]
    for pattern in patterns:
        try:
            matches = _matcher((pattern,), config)
        except re.error as error:
            raise InputError(f"trainable set: {pattern!r} is not a pattern: {error}") from error
        if not any(map(matches, paths)):
            raise InputError(
                f"trainable set: no weight's path is {pattern!r}; there are "
                "encoder/patch_embed/kernel, encoder/block_0/attn/qkv/kernel, ..."
            )
    return _matcher(patterns, config)


def _matcher(patterns: Iterable[str], config: ModelConfig) -> Callable[[str], bool]:
    last = str(config.depth - 1)
    compiled = [re.compile(pattern.replace("{last}", last)) for pattern in patterns]
    return lambda path: (
        not path.startswith(_FIXED) and any(pattern.fullmatch(path) for pattern in compiled)
    )


def frozen_blocks(config: ModelConfig, weights: Weights, train: Callable[[str], bool]) -> int:
    """The number of first blocks of the encoder that stay frozen, with everything before them.

    0 if something before the blocks trains. Blocks after the first of `embedding_blocks` do not
    count: the rest of the model needs more than their output.
    """
    lowest = min(config.embedding_blocks or (config.depth,))
    for path, _ in jax.tree_util.tree_leaves_with_path({"encoder": weights["encoder"]}):
        name = path_name(path)
        if train(name) and not name.startswith("encoder/norm/"):
            block = re.match(r"encoder/block_(\d+)/", name)
            lowest = min(lowest, int(block[1]) if block else 0)
    return lowest
