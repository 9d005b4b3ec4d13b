"""What `nec convert` refuses, and what it says; that imports are exact is in test_parity.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from convert_cases import GOLDEN, MAE, convert, options_of, rewritten, tensors_of
from folders import TESTS

import nec_jax
from coder import FileError, InputError
from coder.cli import main
from nec_jax import convert_checkpoint
from nec_jax.convert.source import open_checkpoint


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    def change(tensors):
        del tensors["blocks.1.mlp.fc1.bias"], tensors["decoder_norm.weight"]
        tensors["blocks.0.attn.proj.weight"] = np.zeros((24, 25), np.float32)
        tensors["extra.thing"] = np.zeros(1, np.float32)
        tensors["norm.bias"] = np.full(24, np.nan, np.float32)

    with pytest.raises(FileError) as caught:
        convert(MAE, tmp_path, change)
    for problem in (
        "5 tensors do not fit",
        "missing blocks.1.mlp.fc1.bias",
        "missing decoder_norm.weight",
        "blocks.0.attn.proj.weight has shape [24, 25], not [24, 24]",
        "unexpected extra.thing",
        "norm.bias holds NaN",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pos_embed", (1, 0, 24)),
        ("pos_embed", (1, 17, 0)),
        ("patch_embed.proj.weight", (0, 3, 8, 8)),
        ("patch_embed.proj.weight", (24, 3, 0, 0)),
        ("decoder_embed.weight", (0, 24)),
        ("blocks.0.mlp.fc1.weight", (0, 24)),
    ],
)
def test_an_empty_tensor_is_named(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(FileError, match=rf"{name} has shape .*, not .* axes, none empty"):
        convert(MAE, tmp_path, lambda t: t.update({name: np.zeros(shape, np.float32)}))


def test_however_many_are_missing_each_is_named(tmp_path: Path) -> None:
    biases = [name for name in tensors_of(MAE) if name.endswith(".bias")]
    assert len(biases) > 20
    with pytest.raises(FileError) as caught:
        convert(MAE, tmp_path, lambda t: [t.pop(name) for name in biases])
    assert all(f"missing {name}" in str(caught.value) for name in biases)


@pytest.mark.parametrize("case", ["timm", "transformers-clip", "nec-authors"])
def test_one_tensor_more_or_less_is_refused_everywhere(case: str, tmp_path: Path) -> None:
    needed = sorted(tensors_of(case))
    free = ("head.", "visual_projection", "bottleneck._", "bottleneck.target", "bottleneck.like")
    options = {"activation": "quick-gelu"} if "clip" in case else {}
    for name in needed[:: max(1, len(needed) // 12)]:
        if not name.startswith(free):
            with pytest.raises(FileError, match=r"missing|one of \d axes|not a checkpoint"):
                convert(case, tmp_path, lambda t, n=name: t.pop(n), **options)
    with pytest.raises(FileError, match="unexpected another"):
        convert(case, tmp_path, lambda t: t.update(another=np.zeros(1)), **options)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("patch_embed.0.proj.weight", "grouped channels"),
        ("channel_embed", "grouped channels"),
        ("temporal_embed_enc.scale", "an embedding of time"),
        ("location_embed_enc.scale", "an embedding of place"),
        ("blocks.0.mlp.w12.weight", "SwiGLU"),
        ("blocks.0.attn.rel_pos_h", "relative positions"),
        ("blocks.0.attn.sampling_offsets.1.weight", "varied-size windows"),
        ("rope.freqs", "rotary"),
        ("fc_norm.weight", "pooled token"),
        ("blocks.0.attn.q_norm.weight", "queries and keys"),
        ("h_a.0.weight", "hyperprior"),
    ],
)
def test_variants_that_are_no_plain_vit_are_refused(tensor, message, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=f"{tensor}: this model has.*{message}"):
        convert(MAE, tmp_path, lambda t: t.update({tensor: np.zeros(1, np.float32)}))


def test_two_tensors_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    """Prithvi's prefixes are dropped: one of two tensors would be forgotten without a word."""
    more = {"decoder.norm.weight": np.ones(24, np.float32)}
    with pytest.raises(FileError, match=r"two tensors are named norm\.weight"):
        convert("prithvi", tmp_path, lambda t: t.update(more))


def test_several_frames_and_grids_that_are_no_square(tmp_path: Path) -> None:
    def tubes(tensors):
        name = "encoder.patch_embed.proj.weight"
        tensors[name] = np.concatenate([tensors[name]] * 2, axis=2)

    with pytest.raises(FileError, match="spans 2 frames"):
        convert("prithvi", tmp_path, tubes)

    def four_frames(tensors):  # as many positions as an image of twice the side has
        for name in ("encoder.pos_embed", "decoder.decoder_pos_embed"):
            first, grid = tensors[name][:, :1], tensors[name][:, 1:]
            times = np.random.default_rng(0).normal(size=(4, 1, grid.shape[-1]))
            frames = (grid + times.astype(np.float32)).reshape(1, 64, -1)
            tensors[name] = np.concatenate([first, frames], axis=1)

    with pytest.raises(FileError, match="positions of 4 frames of 4 x 4 patches"):
        convert("prithvi", tmp_path, four_frames)
    longer = {"pos_embed": np.zeros((1, 1 + 3 * 16, 24), np.float32)}
    with pytest.raises(FileError, match=r"positions .* not a square grid.*several frames"):
        convert(MAE, tmp_path, lambda t: t.update(longer))
    larger = {"pos_embed": np.zeros((1, 1 + 25, 24), np.float32)}
    with pytest.raises(FileError, match="encoder has 25 positions and the decoder 16"):
        convert(MAE, tmp_path, lambda t: t.update(larger))
    wide = {"patch_embed.proj.weight": np.zeros((24, 3, 8, 4), np.float32)}
    with pytest.raises(FileError, match="patches of 8 x 4: only square"):
        convert(MAE, tmp_path, lambda t: t.update(wide))


def test_another_patch_is_refused() -> None:
    with pytest.raises(InputError, match=r"--patch 16: the checkpoint's patches are 8"):
        convert_checkpoint(GOLDEN / MAE / "checkpoint.pth", patch=16, **options_of(MAE))


def test_normalised_pixels_are_not_taken_for_plain_ones(tmp_path: Path) -> None:
    path = GOLDEN / MAE / "checkpoint.pth"
    with pytest.raises(InputError, match=r"--pixels says plain.*norm_pix_loss.*is normalised"):
        convert_checkpoint(path, pixels="plain", **options_of(MAE))
    # A file that does not say: the user has to.
    with pytest.raises(FileError, match=r"does not say its kind of pixels.*pass --pixels"):
        convert_checkpoint(rewritten(MAE, tmp_path, lambda t: None), **options_of(MAE))
    told = convert(MAE, tmp_path, lambda t: None, pixels="normalised")
    assert told.config.decoder_target == "normalised-pixels"


def test_positions_are_resized_only_when_asked(tmp_path: Path) -> None:
    path = GOLDEN / MAE / "checkpoint.pth"
    with pytest.raises(InputError, match=r"for images of 32 x 32, not 48.*--resize-positions"):
        convert_checkpoint(path, image_size=48, **options_of(MAE))
    with pytest.raises(InputError, match="not a positive multiple of the patch 8"):
        convert_checkpoint(path, image_size=50, **options_of(MAE))
    params = convert_checkpoint(path, image_size=48, resize_positions=True, **options_of(MAE))
    assert params.weights["encoder"]["positions"].shape == (36, 24)
    assert params.weights["decoder"]["stem"]["positions"].shape == (37, 16)
    assert json.loads(params.provenance)["convert"]["positions_resized"] == "4 to 6, bicubic"
    # And a model of learned positions takes no other size later on.
    with pytest.raises(InputError, match=r"images are 32 x 32.*for 48 x 48.*nec convert"):
        nec_jax.latents(params, np.zeros((1, 32, 32, 3), np.uint8))
    # Fixed ones are resized as well, as their projects do; as they are, they fit any grid.
    path, options = GOLDEN / "facebook-mae/checkpoint.pth", options_of("facebook-mae")
    with pytest.raises(InputError, match=r"for images of 32 x 32, not 48.*--resize-positions"):
        convert_checkpoint(path, image_size=48, **options)
    resized = convert_checkpoint(path, image_size=48, resize_positions=True, **options)
    assert resized.config.positions == resized.config.decoder_positions == "learned"
    with pytest.raises(InputError, match="pass --image-size, the side to resize"):
        convert_checkpoint(path, resize_positions=True, **options)
    fixed = convert_checkpoint(path, **options)
    assert nec_jax.latents(fixed, np.zeros((1, 64, 16, 3), np.uint8)).shape == (1, 17, 24)


def test_a_layer_of_the_image_tower_is_not_taken_for_one_of_texts(tmp_path: Path) -> None:
    def visual_alone(tensors):
        tower = {k: v for k, v in tensors.items() if k.startswith("visual.")}
        tensors.clear()
        tensors.update({k.removeprefix("visual."): v for k, v in tower.items()})

    params = convert("open-clip", tmp_path, visual_alone)
    assert params.config.pre_norm

    def with_scale(tensors):
        visual_alone(tensors)
        tensors["transformer.resblocks.0.ls_1.gamma"] = np.ones(24, np.float32)

    with pytest.raises(FileError, match=r"unexpected transformer\.resblocks\.0\.ls_1\.gamma"):
        convert("open-clip", tmp_path, with_scale)


def test_nec_tables_that_are_damaged_or_were_never_made(tmp_path: Path) -> None:
    def damage(tensors):
        tensors["bottleneck._quantized_cdf"] = tensors["bottleneck._quantized_cdf"][:, ::-1]

    with pytest.raises(FileError, match="table of channel 0 is damaged"):
        convert("nec-authors", tmp_path, damage)

    def empty(tensors):
        for name in ("_quantized_cdf", "_cdf_length", "_offset"):
            tensors[f"bottleneck.{name}"] = np.zeros(0, np.int32)

    assert convert("nec-authors", tmp_path, empty).codec is None


def test_blocks(tmp_path: Path) -> None:
    path = GOLDEN / MAE / "checkpoint.pth"
    for blocks in ((0,), (3,), (2, 1), (1, 1)):
        with pytest.raises(InputError, match="give rising numbers from 1 to 2"):
            convert_checkpoint(path, blocks=blocks, **options_of(MAE))
    params = convert_checkpoint(path, blocks=(1,), **options_of(MAE))
    assert params.config.decoder_target == "none"
    left_out = json.loads(params.provenance)["convert"]["left_out"]
    assert left_out == ["encoder block 2", "the decoder, which takes the last block's output"]
    nec = GOLDEN / "nec-authors/checkpoint.pth"
    with pytest.raises(InputError, match="belongs to its last block"):
        convert_checkpoint(nec, blocks=(1,), **options_of("nec-authors"))


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file or folder"):
        convert_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(FileError, match=r"neither of model.safetensors"):
        convert_checkpoint(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"nonsense" * 4)
    with pytest.raises(FileError, match="damaged, or not a safetensors file"):
        convert_checkpoint(tmp_path / "x.safetensors")

    def rename(tensors):
        for name in list(tensors):
            tensors[f"layer_{name}"] = tensors.pop(name)

    with pytest.raises(FileError, match=r"not a checkpoint that this knows.*begin with layer_"):
        convert("timm", tmp_path, rename)


def test_bfloat16_of_safetensors_is_float32_of_the_same_value(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5, 3.140625], [0.0, 1e-30, 65280.0]], np.float32)
    path = tmp_path / "x.safetensors"
    safetensors.flax.save_file({"x": jnp.asarray(values, jnp.bfloat16)}, path)
    found = open_checkpoint(path).tensors["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(jnp.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(found[0], values[0])


def test_names_of_blocks_that_do_not_follow_are_unexpected(tmp_path: Path) -> None:
    def far(tensors):
        tensors["blocks.1000000000.norm1.weight"] = np.zeros(24, np.float32)

    with pytest.raises(FileError, match=r"1 tensors do not fit.*unexpected blocks\.1000000000"):
        convert(MAE, tmp_path, far)

    def quantised(tensors):
        tensors["norm.bias"] = np.zeros(24, np.int8)

    with pytest.raises(FileError, match=r"norm\.bias holds int8 numbers"):
        convert(MAE, tmp_path, quantised)


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "model.safetensors"
    main(["convert", str(GOLDEN / "timm-clip"), "--out", str(out), "--heads", "3"])
    text = capsys.readouterr().out
    digest = subprocess.run(["sha256sum", out], check=True, capture_output=True, text=True)
    for part in (
        "timm ViT",
        "patch 8, 2 blocks of 24, 3 heads, images of 32 x 32",
        "quick-gelu, epsilon 1e-05, learned positions, norm before the blocks, no patch bias",
        "encoder 14,856",
        "uint8, normalised by red 122.8 +- 68.5",
        "left out      head.bias, head.weight",
        digest.stdout.split()[0],
    ):
        assert part in text, text
    assert nec_jax.load(out).config.arch == "vit-24x2"
    first = out.read_bytes()
    for _ in range(3):
        more = ["--heads", "3", "--overwrite"]
        main(["convert", str(GOLDEN / "timm-clip"), "--out", str(out), *more])
        assert out.read_bytes() == first


def test_the_command_refuses_with_a_message(tmp_path: Path) -> None:
    out = str(tmp_path / "model.safetensors")
    with pytest.raises(SystemExit, match=r"x.pth: no such file or folder"):
        main(["convert", str(tmp_path / "x.pth"), "--out", out])
    with pytest.raises(SystemExit, match="2"):
        main(["fly"])
    assert not Path(out).exists()


def test_the_command_replaces_neither_a_file_nor_its_input(tmp_path: Path) -> None:
    source, out = tmp_path / "source.safetensors", tmp_path / "out.safetensors"
    shutil.copy(GOLDEN / "timm-no-class-token" / "model.safetensors", source)
    out.write_bytes(b"mine")
    for path, more, message in (
        (out, [], "out.safetensors: exists: .* --overwrite"),
        (source, [], "is the input"),
        (source, ["--overwrite"], "is the input"),
        (tmp_path / "none" / "x.safetensors", [], "make it first"),
        (tmp_path / "x.pth", [], "name a .safetensors file"),
    ):
        before = source.read_bytes()
        with pytest.raises(SystemExit, match=message):
            main(["convert", str(source), "--out", str(path), *more])
        assert (source.read_bytes(), out.read_bytes()) == (before, b"mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-h"], "install nec-jax[train]"), (["convert", "-h"], "install nec-jax[train]")],
)
def test_without_jax_the_help_says_what_is_needed(arguments: list[str], message: str) -> None:
    program = (
        f"import sys; sys.modules['jax'] = None; from coder.cli import main; main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_of_this_project_is_told_so() -> None:
    """Its codec has unsigned tensors, which other projects' checkpoints seldom have."""
    path = TESTS / "kept" / "2026-11" / "model.safetensors"
    with pytest.raises(FileError, match=r"model.safetensors: is a model of nec-jax already"):
        nec_jax.convert_checkpoint(path)
