"""Trains the autoencoder: from random weights on all pictures, or, with --vae and --freeze-encoder, only the
decoder of a finished one on the narrow set of objects.txt, so that latents made before stay valid.

    python train_vae.py --seconds 1200 --out out/vae
    python train_vae.py --vae out/vae --freeze-encoder --seconds 900 --out out/vae

Prints the PSNR over 256 held-out pictures (from scratch) or over the narrow set unjittered (decoder only).
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

from dataset import contact_sheet, halve, jitter, load_pictures, load_things_with_pictures, to_bytes, to_signed

VAE = dict(
    in_channels=3, out_channels=3,
    down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    block_out_channels=(32, 64, 128), layers_per_block=1, latent_channels=4, norm_num_groups=32,
    sample_size=64, scaling_factor=1.0,
)


def reconstruction_loss(guess: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    """L1 of values, of differences of neighbours (edges), and of 4 x 4 means and their colour (slow to be learnt)."""
    def edges(x):
        return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]

    def colour(x):
        x = F.avg_pool2d(x, 4)
        return torch.stack([x[:, 0] - x[:, 1], x[:, 2] - (x[:, 0] + x[:, 1]) / 2], 1)

    edge = sum(F.l1_loss(a, b) for a, b in zip(edges(guess), edges(picture)))
    coarse = F.l1_loss(F.avg_pool2d(guess, 4), F.avg_pool2d(picture, 4))
    return F.l1_loss(guess, picture) + 0.5 * edge + coarse + F.l1_loss(colour(guess), colour(picture))


@torch.no_grad()
def evaluate(vae, pictures: torch.Tensor, out: Path) -> float:
    """PSNR in dB over all values of `pictures` (uint8), and a sheet of pictures above their reconstructions."""
    guesses = torch.cat([to_bytes(vae.decode(vae.encode(to_signed(chunk)).latent_dist.mean).sample) for chunk in pictures.split(34)])
    error = (guesses.float() - pictures.float()).square().mean()
    rows = [torch.cat([pictures[i : i + 16], guesses[i : i + 16]]) for i in range(0, min(len(pictures), 96) - 15, 16)]
    contact_sheet(torch.cat(rows), 16).save(out / "vae.png")
    return float(10 * torch.log10(255**2 / error))


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--out", type=Path, default=here / "out/vae")
    parser.add_argument("--vae", type=Path, help="start from this one rather than from random weights")
    parser.add_argument("--freeze-encoder", action="store_true", help="train the decoder only, on the narrow set")
    parser.add_argument("--copies", type=int, default=8, help="jittered copies of each picture of the narrow set")
    parser.add_argument("--latent-noise", type=float, default=0.05, help="deviation, so that it forgives the UNet")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--steps", type=int, help="stop, and anneal the rate, after so many steps rather than by time")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.freeze_encoder and not args.vae:
        raise SystemExit("--freeze-encoder needs --vae, the model whose decoder to train")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)

    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32) if args.vae else AutoencoderKL(**VAE)
    if args.freeze_encoder:
        rng = random.Random(3)
        _, narrow = load_things_with_pictures(args.data, args.objects)
        held_out = halve(narrow)
        pictures = torch.stack([torch.from_numpy(jitter(p, rng).copy()).permute(2, 0, 1) for p in narrow for _ in range(args.copies)])
        with torch.no_grad():
            latents = torch.cat([vae.encode(to_signed(chunk)).latent_dist.mean for chunk in pictures.split(32)])
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    else:
        everything = halve(load_pictures(args.data)[0])
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(1))
        held_out, pictures = everything[order[:256]], everything[order[256:]]

    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
    average = copy.deepcopy(vae).requires_grad_(False)
    step, started = 0, time.time()
    elapsed = lambda: step / args.steps if args.steps else (time.time() - started) / args.seconds
    while (progress := elapsed()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 20) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        chosen = torch.randint(len(pictures), (args.batch,))
        picture = to_signed(pictures[chosen])
        divergence = 0.0
        with torch.autocast("cpu", torch.bfloat16):
            if args.freeze_encoder:
                z = latents[chosen] + args.latent_noise * torch.randn_like(latents[chosen])
            else:
                posterior = vae.encode(picture).latent_dist
                z = posterior.mean + torch.randn_like(posterior.mean) * posterior.std
                divergence = 0.5 * (posterior.mean.float().square() + posterior.logvar.float().exp() - 1 - posterior.logvar.float()).mean()
            guess = vae.decode(z).sample
        loss = reconstruction_loss(guess.float(), picture) + 2e-3 * divergence
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.98, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
        if step % 25 == 0:
            print(f"step {step}, {time.time() - started:.0f} s, loss {loss.item():.4f}", flush=True)
        if step % 250 == 0:
            average.save_pretrained(args.out)

    if not args.freeze_encoder:  # the UNet wants latents of deviation 1
        with torch.no_grad():
            deviation = average.encode(to_signed(held_out)).latent_dist.mean.std().item()
        average.register_to_config(scaling_factor=1 / deviation)
    average.save_pretrained(args.out)
    print(f"done after {step} steps, PSNR {evaluate(average, held_out, args.out):.2f} dB", flush=True)


if __name__ == "__main__":
    main()
