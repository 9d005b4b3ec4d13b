"""transformers' folders of plain ViTs: ViTMAE (with or without decoder), ViT, DINOv2.

Their files keep the names of transformers' first releases, whatever the modules are called today. A
config.json may omit what equals the class's default: those defaults are repeated here.
"""

from coder import FileError
from nec_jax.convert.source import Checkpoint, activation
from nec_jax.convert.tensors import (
    BlockNames,
    Imported,
    Names,
    Scale,
    Tensors,
    add_decoder,
    count_blocks,
    prefix_of,
    take_encoder,
)

_QKV = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
_PROJ = "attention.output.dense"
_DINO_SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
_DINO = BlockNames("norm1", _QKV, _PROJ, "norm2", "mlp.fc1", "mlp.fc2", _DINO_SCALES)
_VIT = BlockNames(
    "layernorm_before", _QKV, _PROJ, "layernorm_after", "intermediate.dense", "output.dense"
)
_NAMES = Names(
    patches="embeddings.patch_embeddings.projection",
    class_token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    norm="layernorm",
    blocks="encoder.layer.",
    block=_VIT,
    registers="embeddings.register_tokens",
)
_KINDS = {  # by model type; the epsilon of the norms where config.json omits it
    "vit_mae": ("ViTMAE", 1e-12),
    "vit": ("ViT", 1e-12),
    "dinov2": ("DINOv2", 1e-6),
    "dinov2_with_registers": ("DINOv2 with registers", 1e-6),
}
_DEFAULTS = {
    "hidden_act": "gelu",
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "qkv_bias": True,
    "decoder_num_hidden_layers": 8,
    "decoder_num_attention_heads": 16,
    "norm_pix_loss": False,
}
# As the releases before the fifth write them, and as the fifth does.
_DECODER_LAYERS = ("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")


def convert(checkpoint: Checkpoint) -> Imported | None:
    """Import an encoder, and its decoder if there is one; `config.json` has to be in the folder."""
    prefix = prefix_of(checkpoint.tensors, f"{_NAMES.patches}.weight")
    if prefix is None:
        return None
    facts = {**_DEFAULTS, **checkpoint.config}
    model_type = facts.get("model_type")
    if model_type not in _KINDS:
        raise FileError(
            f"model type {model_type!r} in config.json: known are {', '.join(_KINDS)}, clip. Give "
            "the folder with config.json, not the weights alone"
        )
    tensors = Tensors(checkpoint.tensors)
    registers = int(facts.get("num_register_tokens", 4)) if "registers" in model_type else 0
    imported = take_encoder(
        tensors,
        prefix,
        _NAMES._replace(block=_DINO) if model_type.startswith("dinov2") else _NAMES,
        depth=facts["num_hidden_layers"],
        biased=facts["qkv_bias"],
        registers=registers,
    )
    kind, epsilon = _KINDS[model_type]
    imported.kind = f"{kind} (transformers)"
    imported.resizing = "antialiased" if registers else "bicubic"
    imported.epsilon = float(facts.get("layer_norm_eps", epsilon))
    imported.heads = facts["num_attention_heads"]
    imported.activation = activation(facts, "hidden_act")
    imported.normalisation = normalisation(checkpoint)
    has_decoder = "ViTMAEForPreTraining" in (facts.get("architectures") or ())
    if has_decoder or "decoder.decoder_embed.weight" in tensors:
        layers = next((x for x in _DECODER_LAYERS if count_blocks(tensors, x)), _DECODER_LAYERS[0])
        depth = facts["decoder_num_hidden_layers"]
        add_decoder(imported, tensors, "decoder.", layers, _VIT, depth)
        imported.decoder_resizing = "sequence"
        imported.decoder_heads = facts["decoder_num_attention_heads"]
        imported.normalised_pixels = facts["norm_pix_loss"]
    tensors.leave_out(r".*embeddings\.mask_token|.*pooler\..*|classifier\..*")
    tensors.finish()
    return imported


def normalisation(checkpoint: Checkpoint) -> Scale | None:
    """Mean and deviation of a preprocessor_config.json, for uint8 pixels."""
    facts = checkpoint.preprocessor
    if "image_mean" not in facts or "image_std" not in facts:
        return None
    factor = 1 / facts.get("rescale_factor", 1 / 255) if facts.get("do_rescale", True) else 1.0
    whole = facts.get("do_normalize", True)
    mean = tuple(float(v) * factor if whole else 0.0 for v in facts["image_mean"])
    std = tuple((float(v) if whole else 1.0) * factor for v in facts["image_std"])
    return Scale(mean, std, "uint8")
