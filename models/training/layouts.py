"""Makes tiny random models in the layouts of Stable Diffusion 1.5, 2.1 and XL, with diffusers' numbers for them.

    python layouts.py --out ../tests/fixtures/layouts

Each `<name>.fixture` is one safetensors file: the weights as `part/file:tensor` (f16), what diffusers computes from
them in float32 as `expected:name`, and every other file of the model's folder as metadata, path to text. The Rust
test writes the folder out again and opens it as it would the real model.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline,
    StableDiffusionXLPipeline, UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PROMPT = "a red apple, on the table!"
NEGATIVE = "blurry"
STEPS = 4
GUIDANCE = 2.0  # random networks amplify rounding, guidance more so
EDGE = 32  # pixels; the autoencoders shrink by 2
TIMESTEP = 481


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def write_tokenizer(folder: Path, pad: str) -> CLIPTokenizer:
    merges = [("r", "e"), ("re", "d</w>"), ("a", "p"), ("ap", "p"), ("l", "e</w>"), ("app", "le</w>"), ("o", "n</w>")]
    alphabet = byte_alphabet()
    tokens = alphabet + [token + "</w>" for token in alphabet] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", **special}))
    return CLIPTokenizer.from_pretrained(folder)


def randomise(model: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Weights that keep activations at about one, so that a wrong layer shows, rounded to f16."""
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            values *= parameter[0].numel() ** -0.5 if "embedding" not in name else 0.5
        else:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        parameter.data = values.half().float()
    return model.eval()


def text_encoder(kind: type, generator: torch.Generator, width: int, vocabulary: int, act: str, end: int) -> torch.nn.Module:
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, projection_dim=width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, hidden_act=act, bos_token_id=0, eos_token_id=end, pad_token_id=1,
    )
    return randomise(kind(config), generator)


def autoencoder(generator: torch.Generator, **options) -> AutoencoderKL:
    return randomise(AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, sample_size=EDGE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **options,
    ), generator)


def unet(generator: torch.Generator, context: int, cross: tuple[bool, bool], **options) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if on else "DownBlock2D" for on in cross)
    up = tuple("CrossAttnUpBlock2D" if on else "UpBlock2D" for on in reversed(cross))
    return randomise(UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=2, norm_num_groups=2, sample_size=EDGE // 2,
        cross_attention_dim=context, down_block_types=down, up_block_types=up, **options,
    ), generator)


def sd15(folder: Path, generator: torch.Generator):
    tokenizer = write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    encoder = text_encoder(CLIPTextModel, generator, 12, len(tokenizer), "quick_gelu", 2)
    network = unet(generator, 12, (True, False), attention_head_dim=2)
    # The scheduler that Stable Diffusion 1.5 was published with; DDIM runs on its config.
    published = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1,
        set_alpha_to_one=False,
    )
    parts = dict(text_encoder=encoder, tokenizer=tokenizer, vae=autoencoder(generator), unet=network)
    run = DDIMScheduler.from_config(published.config, clip_sample=False)
    return StableDiffusionPipeline, parts, published, run


def sd21(folder: Path, generator: torch.Generator):
    tokenizer = write_tokenizer(folder / "tokenizer", "!")
    encoder = text_encoder(CLIPTextModel, generator, 12, len(tokenizer), "gelu", len(tokenizer) - 1)
    network = unet(generator, 12, (True, False), attention_head_dim=(1, 4), use_linear_projection=True)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False,
        clip_sample=False, prediction_type="v_prediction", timestep_spacing="trailing",
    )
    parts = dict(text_encoder=encoder, tokenizer=tokenizer, vae=autoencoder(generator), unet=network)
    return StableDiffusionPipeline, parts, scheduler, scheduler


def sdxl(folder: Path, generator: torch.Generator):
    tokenizer = write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    tokenizer_2 = write_tokenizer(folder / "tokenizer_2", "!")
    encoder = text_encoder(CLIPTextModel, generator, 8, len(tokenizer), "quick_gelu", 2)
    encoder_2 = text_encoder(CLIPTextModelWithProjection, generator, 12, len(tokenizer), "gelu", len(tokenizer) - 1)
    network = unet(
        generator, 20, (False, True), attention_head_dim=(2, 4), use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading",
    )
    parts = dict(
        text_encoder=encoder, tokenizer=tokenizer, text_encoder_2=encoder_2, tokenizer_2=tokenizer_2,
        vae=autoencoder(generator, scaling_factor=0.13025), unet=network,
    )
    return StableDiffusionXLPipeline, parts, scheduler, scheduler


@torch.no_grad()
def expected(pipeline, is_double: bool, generator: torch.Generator) -> dict[str, torch.Tensor]:
    noise = torch.randn(1, 4, EDGE // 2, EDGE // 2, generator=generator)
    out = {"noise": noise}
    extra = {}
    if is_double:
        context, without, pooled, _ = pipeline.encode_prompt(PROMPT, negative_prompt=NEGATIVE)
        out["pooled"] = pooled
        extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor([[EDGE, EDGE, 0.0, 0.0, EDGE, EDGE]])}}
    else:
        context, without = pipeline.encode_prompt(PROMPT, "cpu", 1, True, negative_prompt=NEGATIVE)
    out["context"], out["negative_context"] = context, without
    out["unet"] = pipeline.unet(noise, TIMESTEP, encoder_hidden_states=context, **extra).sample
    for name, negative in (("latents", NEGATIVE), ("latents_without_negative", None)):
        out[name] = pipeline(
            PROMPT, negative_prompt=negative, height=EDGE, width=EDGE, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            latents=noise.clone(), output_type="latent",
        ).images
    out["picture"] = pipeline.vae.decode(out["latents"] / pipeline.vae.config.scaling_factor).sample
    return out


def make(name: str, build, out: Path) -> None:
    generator = torch.Generator().manual_seed(15)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        kind, parts, published, run = build(folder, generator)
        is_double = kind is StableDiffusionXLPipeline
        safety = {} if is_double else dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipeline = kind(**parts, scheduler=run, **safety)
        pipeline.set_progress_bar_config(disable=True)
        tensors = {f"expected:{key}": value.float().contiguous() for key, value in expected(pipeline, is_double, generator).items()}
        kind(**parts, scheduler=published, **safety).save_pretrained(folder / "saved")
        files = {}
        for path in sorted((folder / "saved").rglob("*")):
            inside = path.relative_to(folder / "saved").as_posix()
            if path.suffix == ".safetensors":
                tensors |= {f"{inside}:{key}": value.half() for key, value in load_file(path).items()}
            elif path.is_file() and not inside.startswith("tokenizer"):
                files[inside] = path.read_text()
        for path in sorted(folder.glob("tokenizer*/*")):
            files[path.relative_to(folder).as_posix()] = path.read_text()
    save_file(tensors, out / f"{name}.fixture", metadata=files)
    print(name, (out / f"{name}.fixture").stat().st_size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "../tests/fixtures/layouts")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name, build in {"sd15": sd15, "sd21": sd21, "sdxl": sdxl}.items():
        make(name, build, args.out)


if __name__ == "__main__":
    main()
