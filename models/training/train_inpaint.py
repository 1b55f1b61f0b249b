"""Trains an inpainting UNet (9 input channels: latents, mask, latents of the masked picture) from the finished one.

Only what reads and writes the picture is trained, and what carries it across: the first convolution, the outermost
blocks and the attention, without its linear layers. The file that is saved holds those tensors alone, and an index
says that all others are the text-to-image UNet's, so that an inpainting model adds a few megabytes to the family.

    python train_inpaint.py --seconds 3600 --out out/inpaint
"""

import argparse
import copy
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from dataset import caption, contact_sheet, encode, load_pictures, load_things_with_pictures, load_tokenizer, to_bytes, to_signed, turn
from train_unet import SCHEDULE, loss_weights

TRAINED = ("conv_in.", "down_blocks.0.", "up_blocks.2.", ".attn1.", ".attn2.", "conv_norm_out.", "conv_out.")


def widen(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same network with five more input channels that it does not look at yet."""
    config = dict(unet.config)
    config["in_channels"] = 9
    new = UNet2DConditionModel.from_config(config)
    state = unet.state_dict()
    first = torch.zeros_like(new.conv_in.weight)
    first[:, :4] = state["conv_in.weight"]
    state["conv_in.weight"] = first
    new.load_state_dict(state)
    return new


def mask(rng: random.Random, side: int = 64) -> np.ndarray:
    """(side, side) of 0 and 1; 1 is made anew: a circle, a rectangle, bands along edges, or everything."""
    rows, columns = np.mgrid[:side, :side]
    kind = rng.random()
    if kind < 0.4:
        radius, x, y = rng.uniform(0.12, 0.4) * side, rng.uniform(0, side), rng.uniform(0, side)
        chosen = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    elif kind < 0.65:
        width, height = rng.uniform(0.2, 0.8) * side, rng.uniform(0.2, 0.8) * side
        x, y = rng.uniform(0, side - width), rng.uniform(0, side - height)
        chosen = (columns >= x) & (columns < x + width) & (rows >= y) & (rows < y + height)
    elif kind < 0.92:
        edges = [rng.uniform(0, 0.4) * side if rng.random() < 0.5 else 0 for _ in range(4)]
        chosen = (columns < edges[0]) | (columns >= side - edges[1]) | (rows < edges[2]) | (rows >= side - edges[3])
    else:
        chosen = np.ones((side, side), bool)
    return chosen.astype(np.float32)


@torch.no_grad()
def condition(vae, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(N, 5, 16, 16): the mask, and the scaled latents of the picture without what it covers (diffusers' order)."""
    kept = to_signed(pictures) * (masks.unsqueeze(1) < 0.5)
    latents = vae.encode(kept).latent_dist.mean * vae.config.scaling_factor
    return torch.cat([F.interpolate(masks.unsqueeze(1), size=latents.shape[-2:]), latents], 1)


@torch.no_grad()
def sample(unet, text_encoder, vae, tokenizer, prompts, pictures, masks, steps=20, guidance=4.0, seed=0):
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    latents = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    texts, given = encode(tokenizer, [""] * len(prompts) + list(prompts)), condition(vae, pictures, masks)
    with torch.autocast("cpu", torch.bfloat16):
        context = text_encoder(input_ids=texts).last_hidden_state
        for timestep in scheduler.timesteps:
            both = torch.cat([latents, given], 1).repeat(2, 1, 1, 1)
            without, with_text = unet(both, timestep, encoder_hidden_states=context).sample.float().chunk(2)
            latents = scheduler.step(without + guidance * (with_text - without), timestep, latents).prev_sample
        return to_bytes(vae.decode(latents / vae.config.scaling_factor).sample)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--models", type=Path, default=here / "out", help="vae (of 64 px), unet, text_encoder, tokenizer")
    parser.add_argument("--out", type=Path, default=here / "out/inpaint")
    parser.add_argument("--narrow", type=float, default=0.75, help="share of pictures that are of the narrow set")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--save-every", type=float, default=480)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = load_tokenizer(args.models / "tokenizer/tokenizer.json")
    frozen = lambda model, folder: model.from_pretrained(args.models / folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    vae, text_encoder = frozen(AutoencoderKL, "vae"), frozen(CLIPTextModel, "text_encoder")
    unet = widen(frozen(UNet2DConditionModel, "unet")).train()
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(any(part in name for part in TRAINED))
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    things, pictures = load_things_with_pictures(args.data, args.objects)
    everything, records = load_pictures(args.data)
    frequency = [thing.weight for thing in things]
    scheduler = DDIMScheduler(**SCHEDULE)
    weights = loss_weights(scheduler)
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    average = copy.deepcopy(unet).requires_grad_(False).eval()
    averaged = [dict(average.named_parameters())[name] for name in trained]
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"trains {sum(p.numel() for p in parameters) / 1e6:.2f} M of {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M", flush=True)

    def draw(count: int) -> tuple[torch.Tensor, list[str]]:
        """Pictures (count, 3, 64, 64) uint8 and their captions."""
        chosen, texts = [], []
        for _ in range(count):
            if rng.random() < args.narrow:
                i = rng.choices(range(len(things)), frequency)[0]
                source, text = pictures[i], things[i].caption(rng)
            else:
                i = rng.randrange(len(everything))
                source, text = everything[i], caption(records[i], rng)
            chosen.append(torch.from_numpy(turn(source, rng, angle=15, scale=(0.6, 1.0), shift=12).copy()))
            texts.append(text)
        return F.avg_pool2d(torch.stack(chosen).permute(0, 3, 1, 2).float(), 2).round().byte(), texts

    sheet_rng = random.Random(7)
    kept_state, rng = rng, sheet_rng
    shown, shown_texts = draw(24)
    shown_masks = torch.from_numpy(np.stack([mask(sheet_rng) for _ in range(24)]))
    rng = kept_state

    def save(name: str) -> None:
        save_file({key: value.detach().contiguous() for key, value in zip(trained, averaged)}, args.out / "changed.safetensors", metadata={"format": "pt"})
        average.save_config(args.out)
        made = sample(average, text_encoder, vae, tokenizer, shown_texts, shown, shown_masks)
        given = (shown.float() * (1 - shown_masks.unsqueeze(1)) + 128 * shown_masks.unsqueeze(1)).byte()
        pasted = torch.where(shown_masks.unsqueeze(1) > 0.5, made, shown)
        rows = [torch.cat([given[i : i + 12], pasted[i : i + 12]]) for i in (0, 12)]
        contact_sheet(torch.cat(rows), 12).save(args.out / f"sheet_{name}.png")

    started = last_save = time.time()
    step, window = 0, []
    while (progress := (time.time() - started) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        batch, texts = draw(args.batch)
        texts = ["" if rng.random() < 0.15 else text for text in texts]
        masks = torch.from_numpy(np.stack([mask(rng) for _ in range(args.batch)]))
        with torch.no_grad():
            clean = vae.encode(to_signed(batch)).latent_dist.mean * vae.config.scaling_factor
        given = condition(vae, batch, masks)
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (args.batch,))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                context = text_encoder(input_ids=encode(tokenizer, texts)).last_hidden_state
            noisy = scheduler.add_noise(clean, noise, timesteps)
            guess = unet(torch.cat([noisy, given], 1), timesteps, encoder_hidden_states=context).sample
        error = (guess.float() - noise).square() * (0.3 + given[:, :1])  # what is made anew counts most
        loss = (error.mean((1, 2, 3)) * weights[timesteps]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.995, (1 + step) / (10 + step))
        torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - decay)
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
