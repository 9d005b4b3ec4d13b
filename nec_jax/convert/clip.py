"""CLIP's image towers: OpenAI's names (and open_clip's) and transformers'.

The embedding is the tower's tokens after its last norm. CLIP itself uses that norm for the class
token alone, and then a projection into the space of texts, which is left out.
"""

import re

from nec_jax.convert import huggingface
from nec_jax.convert import options as opt
from nec_jax.convert.options import Imported, Options
from nec_jax.convert.positions import Resizing, grid_side
from nec_jax.convert.source import Checkpoint
from nec_jax.convert.tensors import (
    BlockNames,
    Tensors,
    block,
    count_blocks,
    norm,
    patch_kernel,
    under,
)
from nec_jax.models.weight_tree import Weights

_OPENAI = {
    "patches": "conv1",
    "class": "class_embedding",
    "positions": "positional_embedding",
    "pre_norm": "ln_pre",
    "norm": "ln_post",
    "blocks": "transformer.resblocks.",
}
_OPENAI_BLOCK = BlockNames(
    "ln_1", ("attn.in_proj_",), "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"
)
_TRANSFORMERS = {
    "patches": "embeddings.patch_embedding",
    "class": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "pre_norm": "pre_layrnorm",
    "norm": "post_layernorm",
    "blocks": "encoder.layers.",
}
_TRANSFORMERS_BLOCK = BlockNames(
    "layer_norm1",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.out_proj",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)
# The projection into the common space, and the index of positions.
_NOT_NEEDED = r"(visual_projection|visual\.proj|proj)(\.weight)?|.*position_ids"
# The text tower, present where the image tower has a prefix.
_TEXTS = (
    r"text_model\..*|text_projection(\.weight)?|logit_scale|logit_bias|token_embedding\.weight"
    r"|ln_final\..*|positional_embedding|transformer\..*|attn_mask"
    r"|input_resolution|context_length|vocab_size"
)
# What a config.json of transformers may omit.
_DEFAULTS = {"hidden_act": "quick_gelu", "num_attention_heads": 12, "num_hidden_layers": 12}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether there is an image tower of CLIP, by the norm before its blocks."""
    return _prefix(checkpoint, _OPENAI) is not None or (
        _prefix(checkpoint, _TRANSFORMERS) is not None
    )


def convert(checkpoint: Checkpoint, options: Options) -> Imported:
    """The image tower; texts' tower and projections are left out."""
    openai = _prefix(checkpoint, _OPENAI)
    names, block_names = (_OPENAI, _OPENAI_BLOCK)
    if openai is None:
        names, block_names = (_TRANSFORMERS, _TRANSFORMERS_BLOCK)
    prefix = _prefix(checkpoint, names) or ""
    facts = checkpoint.config.get("vision_config") or checkpoint.config
    if checkpoint.config:
        facts = {**_DEFAULTS, **facts}
    tensors = Tensors(checkpoint.tensors)
    kernel, patch, channels = patch_kernel(tensors, f"{prefix}{names['patches']}.weight")
    width = kernel.shape[1]
    blocks = f"{prefix}{names['blocks']}"
    depth = count_blocks(checkpoint.tensors, blocks, facts.get("num_hidden_layers"))
    hidden = tensors.shape(f"{under(f'{blocks}0.', block_names).fc1}.weight", 2)[0]
    count = tensors.shape(f"{prefix}{names['positions']}", 2)[0]
    grid_side(count - 1, f"{prefix}{names['positions']}")
    positions = tensors.take(f"{prefix}{names['positions']}", count, width)
    encoder: Weights = {
        "patch_embed": {"kernel": kernel},
        "class_token": tensors.take(f"{prefix}{names['class']}", width) + positions[0],
        "pre_norm": norm(tensors, f"{prefix}{names['pre_norm']}", width),
        "norm": norm(tensors, f"{prefix}{names['norm']}", width),
    }
    for i in range(depth):
        where = under(f"{blocks}{i}.", block_names)
        encoder[f"block_{i}"] = block(tensors, where, width, hidden)
    # OpenAI's own files say so by what they hold; others with its names have either activation.
    original = openai is not None and "context_length" in tensors and "vocab_size" in tensors
    found = {"hidden_act": "quick_gelu"} if original else facts
    tensors.leave_out(_NOT_NEEDED)
    if prefix or openai is None:
        tensors.leave_out(_TEXTS)
    tensors.finish()
    resizing: Resizing = "bicubic" if openai is None else "antialiased"
    return Imported(
        kind="CLIP image tower (transformers)" if openai is None else "CLIP image tower (OpenAI)",
        config={
            "patch": patch,
            "width": width,
            "depth": depth,
            "heads": opt.heads(
                options, facts.get("num_attention_heads", opt.HEADS.get((width, depth)))
            ),
            "mlp_ratio": opt.mlp_ratio(hidden, width, "its MLP"),
            "channels": channels,
            "activation": huggingface.activation(options, found),
            "epsilon": float(facts.get("layer_norm_eps", 1e-5)),
            "patch_bias": False,
            "pre_norm": True,
        },
        encoder=encoder,
        positions=positions[1:],
        resizing=resizing,
        left_out=tensors.left_out,
        # open_clip has trained some models with other values.
        normalisation="clip" if original else huggingface.normalisation(checkpoint),
    )


def _prefix(checkpoint: Checkpoint, names: dict[str, str]) -> str | None:
    """What stands before the tower's names; None where there is no such tower."""
    pattern = re.compile(rf"(.*){re.escape(names['pre_norm'])}\.weight")
    found = [m[1] for name in checkpoint.tensors if (m := pattern.fullmatch(name))]
    return found[0] if len(found) == 1 else None
