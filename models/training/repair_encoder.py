"""Teaches a finished VAE encoder to keep red apart from green, cheaply and without its decoder.

The base family's encoder had lost that axis (a red and a green heart had nearly the same latents) while it hardly
used one of its four channels (mean 1.5 times the posterior's deviation). Here that channel learns to carry red minus
green of each 4 x 4 block, and the others learn to stay what they were, so that a UNet trained on the old latents is
still a good start. Fine-tune the decoder afterwards: `train_vae.py --freeze-encoder`. A VAE that `train_vae.py`
trains from scratch does not need this: its loss has a term for colour.

    python repair_encoder.py --vae base/vae --out out/vae
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dataset import halve, jitter, load_pictures, load_things_with_pictures, to_signed

GAIN = 1.8  # of red minus green in [-2, 2], so that the channel's deviation comes near the others'


def red_minus_green(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 3, 64, 64) in [-1, 1] to (N, 16, 16)."""
    return F.avg_pool2d(pictures[:, 0] - pictures[:, 1], 4)


def training_pictures(data: Path, objects: Path, wide: int, copies: int) -> torch.Tensor:
    """Jittered copies of the narrow set and `wide` pictures drawn from everything, (N, 3, 64, 64) uint8."""
    rng = random.Random(0)
    _, narrow = load_things_with_pictures(data, objects)
    jittered = [torch.from_numpy(jitter(p, rng).copy()).permute(2, 0, 1) for p in narrow for _ in range(copies)]
    everything, _ = load_pictures(data)
    chosen = sorted(rng.sample(range(len(everything)), wide))
    return torch.cat([torch.stack(jittered), halve(everything[chosen])])


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=here / "out/vae")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--channel", type=int, default=1, help="the one to give to red minus green")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32)
    pictures = training_pictures(args.data, args.objects, wide=800, copies=6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        targets = torch.cat([vae.encode(to_signed(chunk)).latent_dist.mean.float() for chunk in pictures.split(64)])
    targets[:, args.channel] = GAIN * torch.cat([red_minus_green(to_signed(chunk)) for chunk in pictures.split(256)])
    spread = targets.var((0, 2, 3))

    parameters = [*vae.encoder.parameters(), *vae.quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, betas=(0.9, 0.99), fused=True)
    started = time.time()
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 20) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        chosen = torch.randint(len(pictures), (args.batch,))
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(to_signed(pictures[chosen])).latent_dist.mean.float()
        errors = (mean - targets[chosen]).square().mean((0, 2, 3)) / spread  # one a channel, 1 = knows nothing
        loss = errors.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}, {time.time() - started:.0f} s, unexplained share by channel "
                  f"{[round(e, 3) for e in errors.tolist()]}", flush=True)
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
