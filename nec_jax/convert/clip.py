"""CLIP's image towers: OpenAI's names (and open_clip's) and transformers'.

The embedding is the tower's tokens after its last norm. CLIP itself uses that norm for the class
token alone, and then a projection into the space of texts, which is left out.
"""

from nec_jax.convert import huggingface
from nec_jax.convert.build import HEADS
from nec_jax.convert.source import Checkpoint, activation
from nec_jax.convert.tensors import BlockNames, Imported, Names, Tensors, prefix_of, take_encoder

_OPENAI = Names(
    patches="conv1",
    class_token="class_embedding",
    positions="positional_embedding",
    norm="ln_post",
    blocks="transformer.resblocks.",
    block=BlockNames("ln_1", ("attn.in_proj_",), "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    pre_norm="ln_pre",
)
_TRANSFORMERS = Names(
    patches="embeddings.patch_embedding",
    class_token="embeddings.class_embedding",
    positions="embeddings.position_embedding.weight",
    norm="post_layernorm",
    blocks="encoder.layers.",
    block=BlockNames(
        "layer_norm1",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.out_proj",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    ),
    pre_norm="pre_layrnorm",
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


def convert(checkpoint: Checkpoint) -> Imported | None:
    """Import an image tower, known by the norm before its blocks; texts are left out."""
    for names in (_OPENAI, _TRANSFORMERS):
        prefix = prefix_of(checkpoint.tensors, f"{names.pre_norm}.weight")
        if prefix is not None:
            break
    else:
        return None
    openai = names is _OPENAI
    facts = checkpoint.config.get("vision_config") or checkpoint.config
    if checkpoint.config:
        facts = {**_DEFAULTS, **facts}
    tensors = Tensors(checkpoint.tensors)
    imported = take_encoder(tensors, prefix, names, depth=facts.get("num_hidden_layers"))
    # OpenAI's own files show it by what they hold; others with its names have either activation,
    # and open_clip has trained some models with another normalisation.
    original = openai and "context_length" in tensors and "vocab_size" in tensors
    tensors.leave_out(_NOT_NEEDED)
    if prefix or not openai:
        tensors.leave_out(_TEXTS)
    tensors.finish()
    size = imported.config["width"], imported.config["depth"]
    imported.kind = f"CLIP image tower ({'OpenAI' if openai else 'transformers'})"
    imported.resizing = "antialiased" if openai else "bicubic"
    imported.epsilon = float(facts.get("layer_norm_eps", 1e-5))
    imported.heads = facts.get("num_attention_heads", HEADS.get(size))
    imported.activation = "quick-gelu" if original else activation(facts, "hidden_act")
    imported.normalisation = "clip" if original else huggingface.normalisation(checkpoint)
    return imported
