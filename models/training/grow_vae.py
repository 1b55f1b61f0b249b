"""Grows the autoencoder of 64 px pictures (f = 4) into one of 128 px pictures (f = 8) with the same latents.

The new encoder is one block deeper at its front, the new decoder at its end, and both begin as what the old ones
do between averaging 2 x 2 pixels and repeating them. Then the encoder is taught to give the old encoder's latents
of the halved picture, and the decoder to draw the whole one from them. A UNet, a ControlNet and an inpainting UNet
made for the old latents stay valid, and a step of theirs costs what it did.

    python grow_vae.py --vae out/vae --seconds 1800 --out out/vae-128
"""

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dataset import contact_sheet, halve, load_pictures, load_things_with_pictures, to_bytes, to_signed, turn
from train_vae import reconstruction_loss


def grown(old: AutoencoderKL) -> AutoencoderKL:
    """One block more on both sides, of the outermost width, which hands through what it is given."""
    config = dict(old.config)
    widths = config["block_out_channels"]
    config.update(
        block_out_channels=(widths[0], *widths), sample_size=2 * config["sample_size"],
        down_block_types=["DownEncoderBlock2D"] * (len(widths) + 1),
        up_block_types=["UpDecoderBlock2D"] * (len(widths) + 1),
    )
    new = AutoencoderKL.from_config(config)
    state = new.state_dict()
    for name, value in old.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["encoder", "down_blocks"]:
            parts[2] = str(int(parts[2]) + 1)
        state[".".join(parts)] = value
    first, last = new.encoder.down_blocks[0], new.decoder.up_blocks[-1]
    for resnet in (*first.resnets, *last.resnets):  # x + 0
        for part in ("weight", "bias"):
            state_key = next(k for k, p in new.named_parameters() if p is getattr(resnet.conv2, part))
            state[state_key] = torch.zeros_like(state[state_key])
    width = widths[0]
    average = torch.zeros(width, width, 3, 3)
    average[range(width), range(width), :2, :2] = 0.25
    state["encoder.down_blocks.0.downsamplers.0.conv.weight"] = average
    state["encoder.down_blocks.0.downsamplers.0.conv.bias"] = torch.zeros(width)
    hand_through = torch.zeros(width, width, 3, 3)
    hand_through[range(width), range(width), 1, 1] = 1
    before_last = f"decoder.up_blocks.{len(widths) - 1}.upsamplers.0.conv"
    state[f"{before_last}.weight"], state[f"{before_last}.bias"] = hand_through, torch.zeros(width)
    new.load_state_dict(state)
    return new


@torch.no_grad()
def evaluate(vae, pictures: torch.Tensor, out: Path) -> float:
    """PSNR in dB, and a sheet of pictures above their reconstructions."""
    guesses = torch.cat([to_bytes(vae.decode(vae.encode(to_signed(chunk)).latent_dist.mean).sample) for chunk in pictures.split(16)])
    rows = [torch.cat([pictures[i : i + 12], guesses[i : i + 12]]) for i in range(0, min(len(pictures), 48) - 11, 12)]
    contact_sheet(torch.cat(rows), 12).save(out / "vae.png")
    return float(10 * torch.log10(255**2 / (guesses.float() - pictures.float()).square().mean()))


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--vae", type=Path, default=here / "out/vae")
    parser.add_argument("--out", type=Path, default=here / "out/vae-128")
    parser.add_argument("--narrow", type=float, default=0.6, help="share of pictures that are of the narrow set")
    parser.add_argument("--latent-noise", type=float, default=0.05, help="deviation, so that it forgives the UNet")
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    old = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval().requires_grad_(False)
    vae = grown(old)
    everything, _ = load_pictures(args.data)
    _, narrow = load_things_with_pictures(args.data, args.objects)
    tensor = lambda batch: torch.stack([torch.from_numpy(p.copy()) for p in batch]).permute(0, 3, 1, 2)
    held_out = tensor(narrow)
    print(f"PSNR before {evaluate(vae, held_out[:48], args.out):.2f} dB", flush=True)

    rng = random.Random(0)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.rate, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
    average = copy.deepcopy(vae).requires_grad_(False)
    step, started = 0, time.time()
    while (progress := (time.time() - started) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 50) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        source = lambda: narrow[rng.randrange(len(narrow))] if rng.random() < args.narrow else everything[rng.randrange(len(everything))]
        bytes_ = tensor([turn(source(), rng) for _ in range(args.batch)])
        for covered in bytes_[: args.batch // 4]:  # as the inpainting UNet is shown them: grey where it is to draw
            top, left = rng.randrange(112), rng.randrange(112)
            covered[:, top : top + rng.randrange(16, 96), left : left + rng.randrange(16, 96)] = 128
        picture = to_signed(bytes_)
        with torch.no_grad():
            small = to_signed(F.avg_pool2d(bytes_.float(), 2).round())
            wanted = old.encode(small).latent_dist
        with torch.autocast("cpu", torch.bfloat16):
            got = vae.encode(picture).latent_dist
            guess = vae.decode(wanted.mean + args.latent_noise * torch.randn_like(wanted.mean)).sample
        latents = F.mse_loss(got.mean.float(), wanted.mean) + 0.01 * F.mse_loss(got.logvar.float(), wanted.logvar)
        loss = reconstruction_loss(guess.float(), picture) + latents
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(0.99, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
        if step % 25 == 0:
            print(f"step {step}, {time.time() - started:.0f} s, loss {loss.item():.4f}, latents {latents.item():.4f}", flush=True)
        if step % 250 == 0:
            average.save_pretrained(args.out)
    average.save_pretrained(args.out)
    print(f"done after {step} steps, PSNR {evaluate(average, held_out, args.out):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
