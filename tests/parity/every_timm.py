"""Every architecture of timm with the names of a ViT's layers, small and random, as timm's folders.

What `nec_jax.convert_checkpoint` does not refuse has to be the same function: among some hundred
there are rotary positions, pooled norms, other activations and other numbers of heads.
"""

import warnings
from pathlib import Path

import timm
import torch
from case import Case, images, normalised, randomise
from safetensors.torch import save_file

MODULES = ("vision_transformer", "deit", "eva", "beit", "vision_transformer_hybrid")
SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 3}
_MOST = 30_000_000


def every_timm(out: Path, g: torch.Generator) -> None:
    """A folder a model; those that cannot be made small are left out."""
    warnings.simplefilter("ignore")
    names = sorted({name for module in MODULES for name in timm.list_models(module=module)})
    for name in names:
        model = _small(name)
        if model is None or "patch_embed.proj.weight" not in model.state_dict():
            continue
        if sum(p.numel() for p in model.parameters()) > _MOST:
            continue
        randomise(model, g)
        side = model.patch_embed.img_size[0]
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        pixels = images(g, side)[:1]
        case = Case(out, name)
        state = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
        save_file(state, case.folder / "model.safetensors")
        facts = {"mean": list(mean), "std": list(std)}
        case.json("config.json", {"architecture": name, "pretrained_cfg": facts})
        tokens = model.forward_features(normalised(pixels, mean, std))
        expected = {"images": pixels, "tokens": tokens}
        case.save(".", {"heads": model.blocks[0].attn.num_heads}, expected)


def _small(name: str) -> torch.nn.Module | None:
    # Some take no image size, some none of these.
    patch = next((int(part[5:]) for part in name.split("_") if part[:5] == "patch"), 16)
    for sizes in ({**SMALL, "img_size": 4 * patch}, SMALL):
        try:
            model = timm.create_model(name, pretrained=False, **sizes)
        except (TypeError, AssertionError, RuntimeError, ValueError):
            continue
        blocks = getattr(model, "blocks", None)
        return model if blocks is not None and hasattr(blocks[0], "attn") else None
    return None
