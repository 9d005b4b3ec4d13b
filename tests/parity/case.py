"""What the makers of parity fixtures share: random models, images, folders."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
# Of SatMAE's fMoW images of red, green and blue.
FMOW = (
    [0.4182007312774658, 0.4214799106121063, 0.3991275727748871],
    [0.28774282336235046, 0.27541765570640564, 0.2764017581939697],
)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
}
MAE = {
    **SIZES,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "layer_norm_eps": 1e-6,
}
TIMM = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "img_size": 32,
    "patch_size": 8,
    "mlp_ratio": 2,
}


def randomise(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Every parameter random, so that a forgotten one shows."""
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim >= 2 and "embed" not in name.rsplit(".", 1)[-1] and "token" not in name:
            noise /= value[0].numel() ** 0.5
        elif value.ndim == 1 and (name.endswith("weight") or "scale" in name or "gamma" in name):
            noise = 1 + 0.3 * noise
        else:
            noise *= 0.5
        value.data = noise
    return model.eval()


def images(generator: torch.Generator, side: int, bands: int = 3, top: int = 255) -> torch.Tensor:
    """[3, side, side, bands] of coarse blobs and noise."""
    coarse = torch.randint(0, top * 3 // 4, (3, 4, 4, bands), generator=generator)
    fine = torch.randint(0, top // 4, (3, side, side, bands), generator=generator)
    index = torch.arange(side) * 4 // side
    return coarse[:, index][:, :, index] + fine


def normalised(pixels: torch.Tensor, mean, std, scale: float = 255.0) -> torch.Tensor:
    """Channels first, as the originals take them."""
    x = (pixels.float() / scale - torch.tensor(mean)) / torch.tensor(std)
    return x.permute(0, 3, 1, 2)


def renamed(
    state: dict[str, torch.Tensor], rules: list[tuple[str, str]]
) -> dict[str, torch.Tensor]:
    """transformers' tensors under another project's names, an attention's projections joined."""
    out, parts = {}, {}
    for name, value in state.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        if match := re.fullmatch(r"(.*)attention\.([qkv])_proj\.(weight|bias)", name):
            parts.setdefault((match[1], match[3]), {})[match[2]] = value
        else:
            out[name] = value
    for (prefix, kind), qkv in parts.items():
        out[f"{prefix}attn.qkv.{kind}"] = torch.cat([qkv[k] for k in "qkv"])
    return out


class Case:
    """One folder."""

    def __init__(self, out: Path, name: str):
        self.folder = out / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def json(self, name: str, content: dict) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=1) + "\n")

    def save(self, source: str, options: dict, expected: dict[str, torch.Tensor]) -> None:
        self.json("options.json", {"source": source, "options": options})
        tensors = {k: v.detach().contiguous() for k, v in expected.items()}
        tensors["images"] = tensors["images"].to(
            torch.uint8 if tensors["images"].max() < 256 else torch.int16
        )
        save_file(tensors, self.folder / "expected.safetensors")

    def preprocessor(self, mean, std) -> None:
        self.json("preprocessor_config.json", {"image_mean": mean, "image_std": std})
