"""Encoders: CLIP of transformers and open_clip, transformers' ViT and DINOv2, timm's ViTs."""

from pathlib import Path

import open_clip
import timm
import torch
import transformers as tf
from case import CLIP, IMAGENET, SIZES, TIMM, Case, images, normalised, randomise, renamed
from safetensors.torch import save_file


def clip_cases(out: Path, g: torch.Generator) -> None:
    pixels = images(g, 32)
    x = normalised(pixels, *CLIP)
    config = tf.CLIPVisionConfig(**SIZES, image_size=32, patch_size=8, projection_dim=16)
    model = randomise(tf.CLIPVisionModelWithProjection(config), g)
    case = Case(out, "transformers-clip")
    model.save_pretrained(case.folder)
    # As CLIPProcessor of the fifth transformers writes it.
    mean, std = CLIP
    case.json("processor_config.json", {"image_processor": {"image_mean": mean, "image_std": std}})
    tower = model.vision_model
    tokens = tower.post_layernorm(tower(x).last_hidden_state)
    case.save(".", {}, {"images": pixels, "tokens": tokens})

    vision = {
        "image_size": 32,
        "layers": 2,
        "width": 24,
        "head_width": 8,
        "patch_size": 8,
        "mlp_ratio": 2.0,
    }
    text = {"context_length": 5, "vocab_size": 11, "width": 8, "heads": 2, "layers": 1}
    model = open_clip.CLIP(16, vision, text, quick_gelu=True, output_dict=False)
    randomise(model, g)
    visual = model.visual
    with torch.no_grad():
        visual.output_tokens = False
        tokens = visual.ln_post(visual.transformer(visual._embeds(x)))
    case = Case(out, "open-clip")
    state = model.state_dict()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in state.items()}}, case.folder / "checkpoint.pt"
    )
    case.save(
        "checkpoint.pt",
        {"heads": 3, "activation": "quick-gelu", "normalisation": "clip"},
        {"images": pixels, "tokens": tokens},
    )
    # As OpenAI's files are: TorchScript, in float16, with three numbers beside the parameters.
    case = Case(out, "openai-clip")
    half = Tree()
    for key, value in state.items():
        half.put(key, value.half())
    for key, value in {"input_resolution": 32, "context_length": 5, "vocab_size": 11}.items():
        half.put(key, torch.tensor(value))
    torch.jit.script(half).save(str(case.folder / "checkpoint.pt"))
    for value in model.parameters():
        value.data = value.data.half().float()
    with torch.no_grad():
        tokens = visual.ln_post(visual.transformer(visual._embeds(x)))
    case.save("checkpoint.pt", {"heads": 3}, {"images": pixels, "tokens": tokens})


class Tree(torch.nn.Module):
    """A module that holds tensors under given names, to be compiled by TorchScript."""

    def put(self, name: str, value: torch.Tensor) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_buffer(first, value)
            return
        if not hasattr(self, first):
            self.add_module(first, Tree())
        getattr(self, first).put(rest, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


DINO = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
DINO |= {"mlp_ratio": 2, "patch_size": 14, "image_size": 56}


def dino_cases(out: Path, g: torch.Generator) -> None:
    for name, config, kind, side in [
        ("transformers-dinov2", tf.Dinov2Config, tf.Dinov2Model, 56),
        ("transformers-dinov2-resized", tf.Dinov2Config, tf.Dinov2Model, 42),
        (
            "transformers-dinov2-registers",
            tf.Dinov2WithRegistersConfig,
            tf.Dinov2WithRegistersModel,
            56,
        ),
    ]:
        registers = 0 if config is tf.Dinov2Config else 4
        extra = {"num_register_tokens": registers} if registers else {}
        model = randomise(kind(config(**DINO, **extra)), g)
        pixels = images(g, side)
        states = model(normalised(pixels, *IMAGENET), output_hidden_states=True)
        tokens = states.last_hidden_state
        first = model.layernorm(states.hidden_states[1])
        case = Case(out, name)
        model.save_pretrained(case.folder)
        case.preprocessor(*IMAGENET)
        options = {"image_size": side, "resize_positions": True} if side != 56 else {}
        expected = {"images": pixels, "tokens": drop(tokens, registers)}
        expected["after_block_1"] = drop(first, registers)
        case.save(".", options, expected)


# transformers' DINOv2 -> the files that its authors released.
RELEASED = [
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"layer_scale([12])\.lambda1", r"ls\1.gamma"),
    (r"attention\.o_proj", "attn.proj"),
    (r"^layernorm", "norm"),
]


def released_dino_cases(out: Path, g: torch.Generator) -> None:
    """transformers' DINOv2 under the names of its authors, positions resized by their call."""
    for registers in (0, 4):
        name, kind = "Dinov2WithRegisters" if registers else "Dinov2", "dinov2-released"
        extra = {"num_register_tokens": registers} if registers else {}
        config = getattr(tf, f"{name}Config")(**DINO, **extra)
        model = randomise(getattr(tf, f"{name}Model")(config), g)
        case = Case(out, f"{kind}-registers" if registers else kind)
        torch.save(renamed(model.state_dict(), RELEASED), case.folder / "checkpoint.pth")
        pixels = images(g, 42)
        where = model.embeddings.position_embeddings
        first, grid = where[:, :1], where[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        # Without registers: interpolate_offset 0.1; with them: antialiased, to a size.
        how = {"size": (3, 3), "antialias": True} if registers else {"scale_factor": (3.1 / 4,) * 2}
        resized = torch.nn.functional.interpolate(grid, mode="bicubic", **how)
        where.data = torch.cat([first, resized.flatten(2).transpose(1, 2)], dim=1)
        tokens = model(normalised(pixels, *IMAGENET)).last_hidden_state
        options = {"heads": 3, "image_size": 42, "resize_positions": True}
        case.save("checkpoint.pth", options, {"images": pixels, "tokens": drop(tokens, registers)})


def resized_cases(out: Path, g: torch.Generator) -> None:
    """What transformers makes of images of another size, where that is not plainly bicubic."""
    config = tf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=4)
    model = randomise(tf.Dinov2WithRegistersModel(config), g)
    pixels = images(g, 42)
    case = Case(out, "transformers-dinov2-registers-resized")
    model.save_pretrained(case.folder)
    case.preprocessor(*IMAGENET)
    tokens = model(normalised(pixels, *IMAGENET)).last_hidden_state
    options = {"image_size": 42, "resize_positions": True}
    case.save(".", options, {"images": pixels, "tokens": drop(tokens, 4)})


def vit_case(out: Path, g: torch.Generator) -> None:
    """transformers' ViT, with its normalisation of pixels from -1 to 1."""
    pixels = images(g, 32)
    model = randomise(tf.ViTModel(tf.ViTConfig(**SIZES, image_size=32, patch_size=8)), g)
    case = Case(out, "transformers-vit")
    model.save_pretrained(case.folder)
    case.preprocessor([0.5] * 3, [0.5] * 3)
    tokens = model(normalised(pixels, [0.5] * 3, [0.5] * 3)).last_hidden_state
    case.save(".", {}, {"images": pixels, "tokens": tokens})


def drop(tokens: torch.Tensor, registers: int) -> torch.Tensor:
    return torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], dim=1)


def timm_cases(out: Path, g: torch.Generator) -> None:
    pixels = images(g, 32)
    half = ([0.5] * 3, [0.5] * 3)
    plain, registers = "vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"
    clip = "vit_base_patch16_clip_quickgelu_224"
    bare = {"class_token": False, "global_pool": "avg", "fc_norm": False, "act_layer": "gelu_tanh"}
    inception, imagenet = {"normalisation": "inception"}, {"normalisation": "imagenet"}
    tanh = {"normalisation": "inception", "activation": "gelu-tanh"}
    for name, arch, extra, scale, options in [
        ("timm", plain, {}, half, inception),
        ("timm-no-qkv-bias", plain, {"qkv_bias": False}, IMAGENET, imagenet),
        ("timm-registers", registers, {}, IMAGENET, imagenet),
        ("timm-no-class-token", plain, bare, half, tanh),
        ("timm-clip", clip, {}, CLIP, {}),
    ]:
        model = randomise(timm.create_model(arch, **TIMM, num_classes=5, **extra), g)
        tokens = model.forward_features(normalised(pixels, *scale))
        if model.has_class_token:
            tokens = drop(tokens, model.num_reg_tokens)
        case, source = Case(out, name), "model.safetensors"
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        save_file(state, case.folder / source)
        if arch == clip:  # as timm's folders on the hub are
            mean, std = scale
            facts = {"architecture": arch, "pretrained_cfg": {"mean": mean, "std": std}}
            case.json("config.json", facts)
            source = "."
        case.save(source, {"heads": 3, **options}, {"images": pixels, "tokens": tokens})
