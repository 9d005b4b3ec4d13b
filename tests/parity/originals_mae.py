"""Masked autoencoders: transformers' ViTMAE, and its tensors under other projects' names."""

from argparse import Namespace
from pathlib import Path

import torch
import transformers as tf
from case import FMOW, IMAGENET, MAE, Case, images, normalised, randomise, renamed
from compressai.entropy_models import EntropyBottleneck
from open_clip.pos_embed import get_2d_sincos_pos_embed


def mae_outputs(model, x: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """What ViTMAE makes of normalised images: whole, and under a mask of three quarters."""
    count = x.shape[-1] // model.config.patch_size
    noise = torch.rand(x.shape[0], count**2, generator=generator)
    masked = model(x, noise=noise)
    kept = noise.argsort(dim=1)[:, : count**2 // 4]
    whole_model = type(model)(model.config)
    whole_model.load_state_dict(model.state_dict())
    whole_model.eval()
    whole_model.vit.embeddings.config.mask_ratio = 0.0
    in_order = torch.arange(count**2).float().expand(x.shape[0], -1)
    whole = whole_model.vit(x, noise=in_order).last_hidden_state
    model.vit.embeddings.config.mask_ratio = 0.75
    return {
        "tokens": whole,
        "masked_tokens": model.vit(x, noise=noise).last_hidden_state,
        "kept": kept.int(),
        "predicted": masked.logits,
        "loss": masked.loss.reshape(1),
    }


# transformers' ViTMAE -> Facebook's MAE.
FACEBOOK = [
    (r"^vit\.embeddings\.cls_token", "cls_token"),
    (r"^vit\.embeddings\.position_embeddings", "pos_embed"),
    (r"^vit\.embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^vit\.layers\.", "blocks."),
    (r"^vit\.layernorm", "norm"),
    (r"^decoder\.mask_token", "mask_token"),
    (r"^decoder\.decoder_layers\.", "decoder_blocks."),
    (r"^decoder\.decoder_", "decoder_"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.o_proj", "attn.proj"),
]


def mae_cases(out: Path, g: torch.Generator) -> None:
    pixels = images(g, 32)
    x = normalised(pixels, *IMAGENET)
    for name, norm_pix in [("transformers-mae", False), ("transformers-mae-normalised", True)]:
        config = tf.ViTMAEConfig(**MAE | {"layer_norm_eps": 1e-12}, norm_pix_loss=norm_pix)
        model = randomise(tf.ViTMAEForPreTraining(config), g)
        case = Case(out, name)
        model.save_pretrained(case.folder)
        case.preprocessor(*IMAGENET)
        case.save(".", {}, {"images": pixels, **mae_outputs(model, x, g)})
    for name, norm_pix in [("facebook-mae", False), ("facebook-mae-normalised", True)]:
        model = tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE, norm_pix_loss=norm_pix))
        randomise(model, g)
        if not norm_pix:  # as released: the fixed positions
            for value in (
                model.vit.embeddings.position_embeddings,
                model.decoder.decoder_pos_embed,
            ):
                fixed = get_2d_sincos_pos_embed(value.shape[-1], 4, cls_token=True)
                value.data = torch.from_numpy(fixed).float()[None]
        state = renamed(model.state_dict(), FACEBOOK)
        arguments = Namespace(
            norm_pix_loss=norm_pix, model="mae_vit_base_patch16", output_dir=Path("out")
        )
        content = {"model": state, "args": arguments, "epoch": 1599, "scaler": {"scale": 65536.0}}
        case = Case(out, name)
        torch.save(content, case.folder / "checkpoint.pth")
        heads = {"heads": 3, "decoder_heads": 2}
        case.save("checkpoint.pth", heads, {"images": pixels, **mae_outputs(model, x, g)})
        if not norm_pix:
            encoder = {
                k: v for k, v in state.items() if not k.startswith(("decoder", "mask_token"))
            }
            case = Case(out, "facebook-mae-encoder")
            torch.save({"model": encoder}, case.folder / "checkpoint.pth")
            options = {"heads": 3, "normalisation": "imagenet"}
            whole = mae_outputs(model, x, g)
            kept = {k: whole[k] for k in ("tokens", "masked_tokens", "kept")}
            case.save("checkpoint.pth", options, {"images": pixels, **kept})


def prithvi_case(out: Path, g: torch.Generator) -> None:
    bands = ["B02", "B03", "B04", "B8A", "B11", "B12"]
    mean = [1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0]
    std = [2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0]
    pixels = images(g, 32, 6, 10000)
    model = randomise(tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE, num_channels=6)), g)
    state = {}
    for name, value in renamed(model.state_dict(), FACEBOOK).items():
        prefix = "decoder." if name.startswith(("decoder", "mask_token")) else "encoder."
        state[prefix + name] = value.unsqueeze(2) if name == "patch_embed.proj.weight" else value
    case = Case(out, "prithvi")
    torch.save(state, case.folder / "checkpoint.pt")
    options = {"heads": 3, "decoder_heads": 2, "bands": bands, "mean": mean, "std": std}
    options |= {"dtype": "int16", "pixels": "plain"}
    x = normalised(pixels, mean, std, 1.0)
    case.save("checkpoint.pt", options, {"images": pixels, **mae_outputs(model, x, g)})


def resized_mae_case(out: Path, g: torch.Generator) -> None:
    """transformers' ViTMAE on larger images: its decoder's positions as one sequence."""
    pixels = images(g, 48)
    model = randomise(tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE | {"mask_ratio": 0.0})), g)
    case = Case(out, "transformers-mae-resized")
    model.save_pretrained(case.folder)
    case.preprocessor(*IMAGENET)
    x, in_order = normalised(pixels, *IMAGENET), torch.arange(36).float().expand(3, -1)
    tokens = model.vit(x, noise=in_order, interpolate_pos_encoding=True).last_hidden_state
    restore = torch.arange(36).expand(3, -1)
    predicted = model.decoder(tokens, restore, interpolate_pos_encoding=True).logits
    options = {"image_size": 48, "resize_positions": True}
    case.save(".", options, {"images": pixels, "tokens": tokens, "decoded": predicted})


def satmae_cases(out: Path, g: torch.Generator) -> None:
    """SatMAE's plain ViTs: Facebook's names, its own scripts' arguments, RGB and Sentinel-2."""
    sentinel = [f"B{i:02d}" for i in range(1, 11)]
    for name, dataset, bands in [("satmae-rgb", "rgb", []), ("satmae", "sentinel", sentinel)]:
        channels = len(bands) or 3
        model = randomise(tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE, num_channels=channels)), g)
        arguments = Namespace(dataset_type=dataset, model_type=None, norm_pix_loss=False)
        content = {"model": renamed(model.state_dict(), FACEBOOK), "args": arguments}
        case = Case(out, name)
        torch.save(content, case.folder / "checkpoint.pth")
        options = {"heads": 3, "decoder_heads": 2}
        if bands:
            # From two deviations below the mean to two above, as SatMAE scales to 0..1.
            mean = (torch.rand(channels, generator=g) * 1000).round().tolist()
            std = (400 + torch.rand(channels, generator=g) * 4000).round().tolist()
            options |= {"bands": bands, "mean": mean, "std": std, "dtype": "int16"}
            pixels = images(g, 32, channels, 10000)
            x = normalised(pixels, mean, std, 1.0)
        else:
            pixels = images(g, 32)
            x = normalised(pixels, *FMOW)
        case.save("checkpoint.pth", options, {"images": pixels, **mae_outputs(model, x, g)})


def nec_cases(out: Path, g: torch.Generator) -> None:
    pixels = images(g, 32)
    x = normalised(pixels, *IMAGENET)
    for name, old in [("nec-authors", False), ("nec-authors-old-names", True)]:
        model = randomise(tf.ViTMAEForPreTraining(tf.ViTMAEConfig(**MAE)), g)
        bottleneck = EntropyBottleneck(24)
        for value in bottleneck.parameters():
            value.data += 0.3 * torch.randn(value.shape, generator=g)
        bottleneck.quantiles.data = torch.randn(24, 1, 3, generator=g).sort(dim=-1).values * 20
        bottleneck.eval()
        bottleneck.update(force=True)
        outputs = mae_outputs(model, x, g)
        latent = 8 * outputs["tokens"].permute(0, 2, 1).unsqueeze(-1)
        y_hat, likelihoods = bottleneck(latent, training=False)
        symbols = bottleneck.quantize(latent, "symbols", bottleneck._get_medians())
        state = renamed(model.state_dict(), FACEBOOK)
        for key, value in bottleneck.state_dict().items():
            if old:
                names = {"matrices.": "_matrix", "biases.": "_bias", "factors.": "_factor"}
                for new, before in names.items():
                    key = key.replace(new, before)
            state[f"bottleneck.{key}"] = value
        case = Case(out, name)
        content = {"model": state, "args": Namespace(norm_pix_loss=False), "epoch": 19}
        torch.save(content, case.folder / "checkpoint.pth")
        tokens = {
            k: v.squeeze(-1).permute(0, 2, 1)
            for k, v in {
                "latent": latent,
                "y_hat": y_hat,
                "likelihoods": likelihoods,
                "symbols": symbols,
            }.items()
        }
        expected = {"images": pixels, **outputs, **tokens, "cdf": bottleneck._quantized_cdf}
        case.save("checkpoint.pth", {"heads": 3, "decoder_heads": 2}, expected)
