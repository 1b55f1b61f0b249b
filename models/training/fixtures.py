"""Makes the reference fixtures that the Rust tests of argus-models compare with, from the embedded weights.

    python fixtures.py --weights ../weights --out ../tests/fixtures

Everything runs in float32 from the f16 files. Run it again whenever the weights change: the README.md that it
writes beside the fixtures says which of them depend on weights and what every tensor is.
"""

import argparse
import hashlib
import json
import random
from pathlib import Path

import imagehash
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextModel

import nsfw
from dataset import encode, load_tokenizer, to_bytes, to_signed

PROMPTS = ("a red apple", "a 3d icon of an octopus, cartoon")
GUIDANCE = 4.0
STEPS = 20
SNAPSHOTS = (1, 5, 20)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_PICTURES = ("scene-64x64.png", "gradient-128x128.png", "scene-96x80.png")
NSFW_PICTURES = ("nsfw_trigger_m.png", "nsfw_trigger_o.png", "scene-96x80.png", "rgba-64x64.png")

TEXTS = [
    "", " ", "a", "A", "a red apple", "A Red Apple", "  a   red\tapple\n", "red apple", "a blue heart", "a pizza",
    "a 3d icon of an octopus, cartoon", "an emoji of a cat, flat style", "don't", "it's we're I've I'm you'll he'd",
    "DON'T IT'S", "'s 't 're", "rock 'n' roll", "12345", "3.14159", "a1b2c3", "1st 2nd 3rd", "100% juice!", "C++ & C#",
    "hello, world!", "wait... what?!", "(brackets) [square] {curly} <angle>", "under_score", "hyphen-ated",
    "e-mail@example.com", "https://example.com/a?b=c&d=e#f", "#hashtag @name", "$5.00 €10 £3 ¥100", "a/b\\c|d",
    "quotes \"double\" and 'single'", "“curly” ‘quotes’", "ellipsis…", "em—dash en–dash", "café", "cafe\u0301", "naïve",
    "façade", "Übergröße", "STRASSE straße", "İstanbul ıI", "ΑΒΓ αβγ ς", "Привет, мир", "שלום", "مرحبا بالعالم", "नमस्ते",
    "สวัสดี", "你好，世界", "こんにちは", "カタカナ", "안녕하세요", "🍎", "🍎🍏", "👩‍🚀", "🏳️‍🌈", "👍🏽", "♥️", "½ ² ³", "Ⅷ ① ٣",
    "ﬁ ligature", "ｆｕｌｌ ｗｉｄｔｈ", "zero\u200bwidth", "no\u00a0break", "thin\u2009space", "line\u2028separator", "soft\u00adhyphen",
    "tab\there", "new\nline", "carriage\r\nreturn", "\u0000null", "bell\u0007", "\ufeffbom", "\ufffd", "a" * 40, "ab " * 40,
    "supercalifragilisticexpialidocious", "a very long prompt " * 12, "the quick brown fox jumps over the lazy dog",
    "a photo of a castle on a hill at sunset, highly detailed", "grinning face with sunglasses",
    "woman astronaut medium-dark skin tone", "man in tuxedo", "flag of japan", "<|startoftext|>", "<|endoftext|>",
    "a <|endoftext|> b", "<|startoftext|> apple", "endoftext", "mountain, noto style", "a flat picture of a teapot",
    "x²+y²=z²", "…", "---", "!!!", "?!?!", "a.b.c", "U.S.A.", "o'clock", "y'all'd've", "snow-capped mountain",
]


def generate_pictures(folder: Path) -> None:
    """Small synthetic PNGs of many sizes and modes; a pure function of this script."""
    rng = np.random.default_rng(20)

    def gradient(width, height):
        y, x = np.mgrid[0:height, 0:width]
        return np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), (x + y) * 3 % 256], -1).astype(np.uint8)

    def waves(width, height):
        y, x = np.mgrid[0:height, 0:width] / max(width, height)
        planes = [np.sin(2 * np.pi * (rng.uniform(0.5, 3) * x + rng.uniform(0.5, 3) * y + rng.uniform())) for _ in range(3)]
        return ((np.stack(planes, -1) + 1) * 127.5).astype(np.uint8)

    def scene(width, height):
        image = Image.new("RGB", (width, height), (180, 215, 240))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, height * 2 // 3, width, height), fill=(90, 160, 70))
        draw.ellipse((width // 8, height // 8, width // 2, height // 2 + height // 8), fill=(210, 40, 45))
        draw.polygon([(width * 3 // 4, height // 4), (width - 4, height * 3 // 4), (width // 2, height * 3 // 4)], fill=(70, 60, 140))
        return image

    pictures = {
        "scene-64x64": scene(64, 64),
        "scene-96x80": scene(96, 80),
        "gradient-128x128": Image.fromarray(gradient(128, 128)),
        "waves-80x96": Image.fromarray(waves(80, 96)),
        "waves-33x47": Image.fromarray(waves(33, 47)),
        "wide-200x50": scene(200, 50),
        "noise-32x32": Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
        "exact-8x8": Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)),
        "tiny-5x3": Image.fromarray(rng.integers(0, 256, (3, 5, 3), dtype=np.uint8)),
        "white-64x64": Image.new("RGB", (64, 64), "white"),
        "black-20x30": Image.new("RGB", (20, 30), "black"),
        "grey-70x40": Image.fromarray(waves(70, 40)[..., 0]),
        "grey-alpha-24x24": Image.fromarray(waves(24, 24)[..., :2], "LA"),
        "rgba-64x64": Image.fromarray(np.concatenate([waves(64, 64), gradient(64, 64)[..., :1]], -1), "RGBA"),
        "palette-48x48": scene(48, 48).quantize(16),
    }
    for name, image in pictures.items():
        image.save(folder / f"{name}.png", optimize=True)


def resize_for_clip(image: Image.Image, side: int) -> torch.Tensor:
    """As CLIPImageProcessor on PIL: shorter side to `side` (bicubic, a = -0.5, antialiased), centre crop, normalise."""
    image = image.convert("RGB")
    short = min(image.size)
    width, height = (side if edge == short else int(side * edge / short) for edge in image.size)
    image = image.resize((width, height), Image.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    values = np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255
    values = (values - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(values).permute(2, 0, 1)[None]


def token_fixture(tokenizer) -> list[dict]:
    return [{"text": text, "ids": tokenizer.encode(text).ids} for text in TEXTS]


@torch.no_grad()
def diffusion_fixture(weights: Path, pictures: Path, tokenizer) -> dict[str, torch.Tensor]:
    text_encoder = CLIPTextModel.from_pretrained(weights / "text_encoder", dtype=torch.float32).eval()
    unet = UNet2DConditionModel.from_pretrained(weights / "unet", torch_dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32).eval()
    scheduler = DDIMScheduler.from_pretrained(weights / "scheduler")
    generator = torch.Generator().manual_seed(7)

    ids = encode(tokenizer, ["", *PROMPTS])
    hidden = text_encoder(input_ids=ids).last_hidden_state
    unconditional, context = hidden[0:1], hidden[1:2]
    out = {"text_ids": ids.to(torch.int64), "text_hidden": hidden}

    noise = torch.randn(1, 4, 16, 16, generator=generator)
    timestep = 481
    out["unet_latents"], out["unet_timestep"] = noise, torch.tensor([timestep])
    out["unet_context"], out["unet_epsilon"] = context, unet(noise, timestep, encoder_hidden_states=context).sample

    picture = to_signed(torch.from_numpy(np.array(Image.open(pictures / "scene-64x64.png"))).permute(2, 0, 1)[None])
    moments = vae.encode(picture).latent_dist
    out["vae_encode_mean"], out["vae_encode_logvar"] = moments.mean, moments.logvar
    out["vae_decode_latents"] = moments.mean
    out["vae_decode_picture"] = vae.decode(moments.mean).sample

    latents = torch.randn(1, 4, 16, 16, generator=generator)
    out["ddim_noise"] = latents
    scheduler.set_timesteps(STEPS)
    out["ddim_timesteps"] = scheduler.timesteps.to(torch.int64)
    for done, step in enumerate(scheduler.timesteps, 1):
        without, with_text = unet(
            torch.cat([latents, latents]), step, encoder_hidden_states=torch.cat([unconditional, context])
        ).sample.chunk(2)
        latents = scheduler.step(without + GUIDANCE * (with_text - without), step, latents).prev_sample
        if done in SNAPSHOTS:
            out[f"ddim_latents_after_{done}"] = latents
    decoded = vae.decode(latents / vae.config.scaling_factor).sample
    Image.fromarray(to_bytes(decoded)[0].permute(1, 2, 0).numpy()).save(pictures / "ddim-result.png", optimize=True)
    return out


@torch.no_grad()
def clip_fixture(weights: Path, pictures: Path, tokenizer) -> dict[str, torch.Tensor]:
    clip = CLIPModel.from_pretrained(weights, dtype=torch.float32).eval()
    side = clip.config.vision_config.image_size
    values = torch.cat([resize_for_clip(Image.open(pictures / name), side) for name in CLIP_PICTURES])
    output = clip(input_ids=encode(tokenizer, list(PROMPTS)), pixel_values=values)
    return {
        "pixel_values": values,  # (3, 3, 64, 64)
        "image_embeds": output.image_embeds,  # (3, 128), of length 1
        "text_embeds": output.text_embeds,  # (2, 128), of length 1
        "logit_scale": clip.logit_scale.exp().reshape(1),
    }


def hash_fixture(pictures: Path) -> list[dict]:
    rows = []
    for path in sorted(pictures.glob("*.png")):
        if path.name == "ddim-result.png":
            continue
        image = Image.open(path)
        rows.append({
            "file": path.name, "size": list(image.size), "mode": image.mode,
            "average": str(imagehash.average_hash(image)), "perceptual": str(imagehash.phash(image)),
            "difference": str(imagehash.dhash(image)), "colour": str(imagehash.colorhash(image)),
        })
    return rows


def nsfw_fixture(weights: Path, pictures: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    model = nsfw.MobileNetV2(weights / "model.safetensors")
    images = [Image.open(pictures / name).convert("RGB").resize((nsfw.SIDE, nsfw.SIDE), Image.BILINEAR) for name in NSFW_PICTURES]
    values = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255
    feature, scores = model(values)
    rows = [
        {"file": name, "scores": {label: round(float(p), 6) for label, p in zip(nsfw.CLASSES, row)}}
        for name, row in zip(NSFW_PICTURES, scores)
    ]
    return rows, {"feature": feature, "scores": scores}


def save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    for name, value in tensors.items():
        if not torch.isfinite(value.float()).all():
            raise SystemExit(f"{path.name}: {name} is not finite")
    path.unlink(missing_ok=True)
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)
    path.chmod(0o644)


def digest(folder: Path) -> str:
    """BLAKE2 of all weight files, so that a reader sees which weights a fixture came from."""
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.rglob("*.safetensors")):
        hasher.update(path.read_bytes())
    return hasher.hexdigest()


README = """# Reference fixtures

Made by `models/training/fixtures.py` in float32 from the f16 weights of `models/weights/`; run it again when the
weights change. `*.fixture` are safetensors files. Versions: torch {torch}, Pillow {pillow}, ImageHash {imagehash}.

| file | depends on | what |
|---|---|---|
| `pictures/*.png` | nothing | synthetic test pictures, and the two NSFW trigger patterns |
| `tokens.json` | tokenizer | {texts} texts and their 32 token ids, by the `tokenizers` library |
| `hashes.json` | nothing | hex hashes by Python's `imagehash`: `average_hash`, `phash`, `dhash` (8 x 8), `colorhash` (3 bits) of `Image.open(file)` as it is |
| `diffusion.fixture` | argus-tiny ({tiny}) | see below |
| `clip.fixture` | clip ({clip}) | text embeddings of both prompts, image embeddings of {clip_pictures} |
| `nsfw.json`, `nsfw.fixture` | nsfw-mobilenetv2 ({nsfw}) | class scores and the pooled 1280-wide feature of {nsfw_pictures}, by a plain torch forward (`models/training/nsfw.py`) of the f16 weights |
| `pictures/ddim-result.png` | argus-tiny | the picture of the DDIM run |
| `schedulers/*.fixture` | nothing | 273 whole runs of diffusers' schedulers under an affine network, by `models/training/fixtures/schedulers.py` |
| `prompts/*.fixture` | `layouts/` | weighted and long prompts, by transformers' encoders (`models/training/fixtures/prompts.py`) |
| `tokens/*` | nothing | CLIP's tokenizer with its first 3,000 merges (open-clip-torch, MIT), and 1,000 prompts by transformers' `CLIPTokenizer` (`models/training/fixtures/tokens.py`) |
| `lora/*` | `layouts/` | LoRA files in the formats of peft, older diffusers and kohya, and what diffusers gives with them fused (`models/training/fixtures/lora.py`) |
| `checkpoints/*.fixture` | `layouts/` | the models of `layouts/` as single files in the names of the original training code (`models/training/fixtures/checkpoints.py`) |
| `upscale/*.fixture` | its own, and upscale-x2, upscale-x4 | RRDBNet (two scales, community names), SRVGGNetCompact, upconv_7, by `models/training/fixtures/upscale.py` on crops of chelsea |
| `vision/*.fixture` | its own | CLIP in the layouts of ViT-B/32 and ViT-L/14 at 336 px, Stable Diffusion's safety checker, by `models/training/fixtures/vision.py` |
| `open_nsfw.fixture` | its own | OpenNSFW with a sixteenth of the channels, by onnxruntime (`models/training/open_nsfw.py`) |
| `preprocess.fixture` | none | grey, Gaussian, Canny, dilation, erosion, outline by OpenCV 5.0.0 (`models/training/fixtures/preprocess.py`) |
| `depth.fixture` | its own | Depth Anything V2 by transformers (`models/training/fixtures/depth.py`) |
| `pictures/chelsea-96x80.png` | none | crop of scikit-image's chelsea.png (CC0), halved |

Prompts: `{prompts}`. Row 0 of `text_ids` and `text_hidden` is the empty prompt, rows 1 and 2 are the prompts in order.

`diffusion.fixture`: `unet_epsilon` is UNet(`unet_latents`, `unet_timestep`, `unet_context`), context of prompt 1.
`vae_encode_mean` and `vae_encode_logvar` are of `scene-64x64.png` mapped to [-1, 1], without the scaling factor;
`vae_decode_picture` is the unclamped decoding of `vae_decode_latents` (no scaling factor either).
`ddim_latents_after_N` are the latents of prompt 1 after N steps of one run of {steps} DDIM steps (`ddim_timesteps`),
guidance {guidance}, eta 0, from `ddim_noise`.

`white-64x64.png`: all DCT coefficients but the first are exactly zero in the reference, so rounding dust of another
DCT must not count as positive; in every other picture no coefficient lies within 0.4 of the median.

CLIP pictures: RGB, shorter side to 64 by Pillow's `BICUBIC` (a = -0.5, antialiased when shrinking), longer side
truncated to an integer, centre crop with offsets rounded down, CLIP's mean and deviation; `pixel_values` holds the
result. NSFW pictures: RGB without alpha blending, 224 x 224 by Pillow's `BILINEAR` (antialiased when shrinking), [0, 1].
"""


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=here / "../weights")
    parser.add_argument("--out", type=Path, default=here / "../tests/fixtures")
    args = parser.parse_args()
    torch.manual_seed(0)
    random.seed(0)
    pictures = args.out / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    generate_pictures(pictures)
    missing = [name for name in NSFW_PICTURES if not (pictures / name).exists()]
    if missing:
        raise SystemExit(f"{pictures} lacks {', '.join(missing)}: the trigger patterns are committed, not generated")

    tiny, clip, nsfw_weights = args.weights / "argus-tiny", args.weights / "clip", args.weights / "nsfw-mobilenetv2"
    tokenizer = load_tokenizer(tiny / "tokenizer/tokenizer.json")
    write = lambda name, rows: (args.out / name).write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    write("tokens.json", token_fixture(tokenizer))
    write("hashes.json", hash_fixture(pictures))
    save(diffusion_fixture(tiny, pictures, tokenizer), args.out / "diffusion.fixture")
    save(clip_fixture(clip, pictures, tokenizer), args.out / "clip.fixture")
    rows, tensors = nsfw_fixture(nsfw_weights, pictures)
    write("nsfw.json", rows)
    save(tensors, args.out / "nsfw.fixture")
    (args.out / "README.md").write_text(README.format(
        torch=torch.__version__.split("+")[0], pillow=Image.__version__, imagehash=imagehash.__version__,
        texts=len(TEXTS), prompts="`, `".join(PROMPTS), steps=STEPS, guidance=GUIDANCE,
        tiny=digest(tiny), clip=digest(clip), nsfw=digest(nsfw_weights),
        clip_pictures=", ".join(CLIP_PICTURES), nsfw_pictures=", ".join(NSFW_PICTURES),
    ))
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
