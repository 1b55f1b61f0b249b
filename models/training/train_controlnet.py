"""Trains a ControlNet for scribbles on the finished UNet, which stays as it is.

The scribbles are the outlines that the seed systems made of pictures: grey, Gaussian 5 x 5, Canny 50/150, dilated
and eroded 3 x 3; white on black, of 128 px for latents of 16. A quarter of them are drawn with a broader pen, as people
do, and a quarter are bare Canny edges (100/200), so that the same network takes those. Pictures are turned, scaled and
moved much more than for the UNet, so that the outline is what tells where things are.

    python train_controlnet.py --seconds 3600 --out out/controlnet-scribble
"""

import argparse
import copy
import math
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from dataset import contact_sheet, encode, load_things_with_pictures, load_tokenizer, to_bytes, to_signed, turn
from train_unet import SCHEDULE, loss_weights


def scribble(picture: np.ndarray) -> np.ndarray:
    """The outline of a picture (H, W, 3) uint8 as (H, W) uint8, white on black."""
    edges = cv2.Canny(cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (5, 5), 0), 50, 150)
    kernel = np.ones((3, 3), np.uint8)
    return cv2.erode(cv2.dilate(edges, kernel), kernel)


def drawn(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """A scribble, one of a broad pen, or Canny edges: what the network shall take, (H, W) uint8."""
    kind = rng.random()
    if kind < 0.25:
        return cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 100, 200)
    side = rng.choice((2, 3, 4)) if kind < 0.5 else 1
    return cv2.dilate(scribble(picture), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))


def moved(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    return turn(picture, rng, angle=25, scale=(0.5, 1.0), shift=18)


@torch.no_grad()
def examples(vae, pictures, variants: int, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (pictures, variants, 4, 16, 16), scaled, and outlines (pictures, variants, 128, 128) uint8."""
    latents, outlines = [], []
    for picture in pictures:
        batch = np.stack([moved(picture, rng) for _ in range(variants)])
        outlines.append(torch.from_numpy(np.stack([drawn(p, rng) for p in batch])))
        small = torch.nn.functional.avg_pool2d(torch.from_numpy(batch).permute(0, 3, 1, 2).float(), 2).round()
        latents.append(vae.encode(to_signed(small)).latent_dist.mean * vae.config.scaling_factor)
    return torch.stack(latents), torch.stack(outlines)


def to_condition(outlines: torch.Tensor) -> torch.Tensor:
    """(N, 128, 128) uint8 to what the ControlNet takes: (N, 3, 128, 128) in [0, 1]."""
    return (outlines.float() / 255).unsqueeze(1).repeat(1, 3, 1, 1)


@torch.no_grad()
def sample(unet, controlnet, text_encoder, vae, tokenizer, prompts, outlines, steps=20, guidance=4.0, seed=0):
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    latents = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    texts = encode(tokenizer, [""] * len(prompts) + list(prompts))
    condition = to_condition(outlines).repeat(2, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        context = text_encoder(input_ids=texts).last_hidden_state
        for timestep in scheduler.timesteps:
            both = torch.cat([latents, latents])
            down, middle = controlnet(both, timestep, context, condition, return_dict=False)
            noise = unet(both, timestep, context, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample.float()
            without, with_text = noise.chunk(2)
            latents = scheduler.step(without + guidance * (with_text - without), timestep, latents).prev_sample
        return to_bytes(vae.decode(latents / vae.config.scaling_factor).sample)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--models", type=Path, default=here / "out", help="vae (of 64 px), unet, text_encoder, tokenizer")
    parser.add_argument("--out", type=Path, default=here / "out/controlnet-scribble")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--save-every", type=float, default=480)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--variants", type=int, default=48)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = load_tokenizer(args.models / "tokenizer/tokenizer.json")
    frozen = lambda model, folder: model.from_pretrained(args.models / folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    vae, unet, text_encoder = frozen(AutoencoderKL, "vae"), frozen(UNet2DConditionModel, "unet"), frozen(CLIPTextModel, "text_encoder")
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64, 96))
    controlnet.train().requires_grad_(True)
    things, pictures = load_things_with_pictures(args.data, args.objects)
    latents, outlines = examples(vae, pictures, args.variants, rng)
    frequency = torch.tensor([float(thing.weight) for thing in things])
    scheduler = DDIMScheduler(**SCHEDULE)
    weights = loss_weights(scheduler)
    parameters = list(controlnet.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    average = copy.deepcopy(controlnet).requires_grad_(False).eval()
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(things)} things, ControlNet {sum(p.numel() for p in parameters) / 1e6:.1f} M", flush=True)

    def save(name: str) -> None:
        average.save_pretrained(args.out)
        chosen = torch.arange(0, len(things), max(1, len(things) // 24))[:24]
        prompts = ["a " + things[i].names[0] for i in chosen.tolist()]
        made = sample(unet, average, text_encoder, vae, tokenizer, prompts, outlines[chosen, 0])
        made = torch.nn.functional.interpolate(made.float(), scale_factor=2).byte()
        asked = outlines[chosen, 0].unsqueeze(1).repeat(1, 3, 1, 1)
        rows = [torch.cat([asked[i : i + 12], made[i : i + 12]]) for i in (0, 12)]
        contact_sheet(torch.cat(rows), 12).save(args.out / f"sheet_{name}.png")

    started = last_save = time.time()
    step, window = 0, []
    while (progress := (time.time() - started) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        chosen, variant = torch.multinomial(frequency, args.batch, replacement=True), torch.randint(args.variants, (args.batch,))
        clean = latents[chosen, variant]
        captions = ["" if rng.random() < 0.2 else things[i].caption(rng) for i in chosen.tolist()]
        # where the outline matters: things are placed while there is much noise
        noise, timesteps = torch.randn_like(clean), (torch.rand(args.batch).sqrt() * 1000).long().clamp(max=999)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                context = text_encoder(input_ids=encode(tokenizer, captions)).last_hidden_state
            noisy = scheduler.add_noise(clean, noise, timesteps)
            down, middle = controlnet(noisy, timesteps, context, to_condition(outlines[chosen, variant]), return_dict=False)
            guess = unet(noisy, timesteps, context, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
        loss = ((guess.float() - noise).square().mean((1, 2, 3)) * weights[timesteps]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.995, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        window.append(loss.item())
        if len(window) >= 50:
            print(f"step {step}, {time.time() - started:.0f} s, loss {sum(window) / len(window):.4f}", flush=True)
            window.clear()
        if time.time() - last_save > args.save_every:
            last_save = time.time()
            save(f"{step:06d}")
    save("final")
    print(f"done after {step} steps", flush=True)


if __name__ == "__main__":
    main()
