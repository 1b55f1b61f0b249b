"""Trains the UNet and, along with it, the text encoder, on the narrow set of objects.txt.

Starts from --unet and --text-encoder if they exist (a warm start), otherwise from random weights and the text
tower of --clip. Each picture is encoded once in many jittered variants, so that seeds differ in pose. Saves the
moving average of the weights every --save-every seconds, with a contact sheet, and goes on where it left off with
--resume.

    python train_unet.py --seconds 4800 --out out

On a processor, two workers of one thread each are faster than two threads, which wait for each other at every
layer when the machine has other work. The workers' weights are averaged every --sync-every steps.
"""

import argparse
import copy
import math
import os
import random
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from dataset import contact_sheet, encode, jitter, load_things_with_pictures, load_tokenizer, to_bytes, to_signed

UNET = dict(
    sample_size=16, in_channels=4, out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(96, 192, 192), layers_per_block=1,
    cross_attention_dim=128, attention_head_dim=3, norm_num_groups=32,
)
SCHEDULE = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
    clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="epsilon",
)
SHEET = (
    "a red apple", "a green apple", "a blue heart", "a red heart", "a pizza", "a cat", "a dog", "a rocket",
    "a house", "a red car", "a sunflower", "a hamburger", "a guitar", "a soccer ball", "a snowman", "a rainbow",
    "a smiley face", "an octopus", "a panda", "a banana", "a strawberry", "a cactus", "a crown", "an umbrella",
    "a light bulb", "a tree", "a cup of coffee", "a birthday cake", "a penguin", "a ghost", "a bicycle", "a gift",
)


def loss_weights(scheduler: DDIMScheduler) -> torch.Tensor:
    """Weight of the squared error of epsilon at each timestep.

    (1 + snr) / snr is the error in velocity, which asks for the right colours at high noise where plain epsilon
    hardly does; limited there to 20, and at low noise as min-SNR-5 does.
    """
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = ((1 + snr) / snr).clamp(max=20) * (5 / snr).clamp(max=1)
    return weights / weights.mean()


@torch.no_grad()
def encode_variants(vae, pictures, variants: int, rng: random.Random) -> torch.Tensor:
    """Latents (pictures, variants, 4, 16, 16), scaled as the UNet takes them."""
    rows = []
    for picture in pictures:
        batch = torch.stack([torch.from_numpy(jitter(picture, rng)) for _ in range(variants)]).permute(0, 3, 1, 2)
        rows.append(vae.encode(to_signed(batch)).latent_dist.mean * vae.config.scaling_factor)
    return torch.stack(rows)


@torch.no_grad()
def sample(unet, text_encoder, vae, tokenizer, prompts, steps=20, guidance=4.0, seed=0) -> torch.Tensor:
    """Pictures (N, 3, 64, 64) uint8 by DDIM, one seed for all prompts."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), 4, 16, 16, generator=generator)
    texts = encode(tokenizer, [""] * len(prompts) + list(prompts))
    with torch.autocast("cpu", torch.bfloat16):
        context = text_encoder(input_ids=texts).last_hidden_state
        for timestep in scheduler.timesteps:
            noise = unet(torch.cat([latents, latents]), timestep, encoder_hidden_states=context).sample.float()
            without, with_text = noise.chunk(2)
            latents = scheduler.step(without + guidance * (with_text - without), timestep, latents).prev_sample
        pictures = vae.decode(latents / vae.config.scaling_factor).sample
    return to_bytes(pictures)


def load_models(args):
    vae = AutoencoderKL.from_pretrained(args.vae, torch_dtype=torch.float32).eval().requires_grad_(False)
    if args.unet and args.unet.exists():
        unet = UNet2DConditionModel.from_pretrained(args.unet, torch_dtype=torch.float32)
    else:
        unet = UNet2DConditionModel(**UNET)
    if args.text_encoder and args.text_encoder.exists():
        text_encoder = CLIPTextModel.from_pretrained(args.text_encoder, dtype=torch.float32)
    else:
        clip = CLIPModel.from_pretrained(args.clip, dtype=torch.float32)
        text_encoder = CLIPTextModel(clip.config.text_config)
        text_encoder.load_state_dict(
            {name: value for name, value in clip.state_dict().items() if name.startswith("text_model.")}
        )
    return vae, unet, text_encoder.eval()  # eval: CLIP's towers have no dropout to switch on


@torch.no_grad()
def average_parameters(parameters, workers: int) -> None:
    """The mean over all workers, in one message (local SGD: each worker steps alone in between)."""
    flat = torch.cat([p.reshape(-1) for p in parameters])
    dist.all_reduce(flat)
    flat /= workers
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.copy_(part.view_as(p))


def train(rank: int, args) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    if args.workers > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(args.port))
        dist.init_process_group("gloo", rank=rank, world_size=args.workers)
    tokenizer = load_tokenizer(args.tokenizer)
    vae, unet, text_encoder = load_models(args)
    things, pictures = load_things_with_pictures(args.data, args.objects)
    latents = encode_variants(vae, pictures, args.variants, random.Random(args.seed + 1 + rank))
    frequency = torch.tensor([float(thing.weight) for thing in things])
    torch.manual_seed(args.seed + 1000 * rank)
    rng = random.Random(args.seed + 1000 * rank)

    scheduler = DDIMScheduler(**SCHEDULE)
    weights = loss_weights(scheduler)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(
        [{"params": unet.parameters(), "scale": 1.0}, {"params": text_encoder.parameters(), "scale": args.text_rate}],
        lr=args.rate, weight_decay=1e-3, betas=(0.9, 0.99), fused=True,
    )
    average = copy.deepcopy(torch.nn.ModuleList([unet, text_encoder])).requires_grad_(False)
    step = 0
    resume_file = args.out / "resume.pt"
    if args.resume and resume_file.exists():
        state = torch.load(resume_file)
        unet.load_state_dict(state["unet"])
        text_encoder.load_state_dict(state["text_encoder"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        rng.seed(step + rank)
        torch.manual_seed(step + 1000 * rank)
    if rank == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        size = sum(p.numel() for p in unet.parameters()) / 1e6
        print(f"{len(things)} things, UNet {size:.1f} M, latents' deviation {latents.std():.3f}", flush=True)

    def save(name: str, sheet: bool = True) -> None:
        smooth_unet, smooth_text = average
        smooth_unet.save_pretrained(args.out / "unet")
        smooth_text.save_pretrained(args.out / "text_encoder")
        torch.save(
            {"unet": unet.state_dict(), "text_encoder": text_encoder.state_dict(), "average": average.state_dict(),
             "optimizer": optimizer.state_dict(), "step": step}, resume_file.with_suffix(".part"))
        resume_file.with_suffix(".part").rename(resume_file)
        if sheet:
            pictures = sample(smooth_unet, smooth_text, vae, tokenizer, SHEET)
            contact_sheet(pictures, 8).save(args.out / f"sheet_{name}.png")

    started = last_save = time.time()
    window, first_step, progress = [], step, 0.0
    while True:
        if (step - first_step) % args.sync_every == 0:
            now = torch.tensor([(time.time() - started) / args.seconds])
            if args.workers > 1:
                dist.broadcast(now, 0)  # all workers stop at the same step
            progress = float(now)
            if progress >= 1:
                break
        rate = args.rate * min(1, (step - first_step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]

        chosen = torch.multinomial(frequency, args.batch, replacement=True)
        clean = latents[chosen, torch.randint(args.variants, (args.batch,))]
        captions = ["" if rng.random() < 0.1 else things[i].caption(rng) for i in chosen.tolist()]
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (args.batch,))
        with torch.autocast("cpu", torch.bfloat16):
            context = text_encoder(input_ids=encode(tokenizer, captions)).last_hidden_state
            noisy = scheduler.add_noise(clean, noise, timesteps)
            guess = unet(noisy, timesteps, encoder_hidden_states=context).sample
        loss = ((guess.float() - noise).square().mean((1, 2, 3)) * weights[timesteps]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        window.append(loss.item())
        if (step - first_step) % args.sync_every:
            continue
        if args.workers > 1:
            average_parameters(parameters, args.workers)
        if rank == 0:
            done = (step - first_step) / args.sync_every
            decay = min(args.decay ** args.sync_every, (1 + done) / (10 + done))
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
            if len(window) >= 48:
                print(f"step {step}, {time.time() - started:.0f} s, loss {sum(window) / len(window):.4f}", flush=True)
                window.clear()
            if time.time() - last_save > args.save_every:
                last_save = time.time()
                save(f"{step:06d}")
    if rank == 0:
        save("final")
        DDIMScheduler(**SCHEDULE).save_pretrained(args.out / "scheduler")
        print(f"done after {step} steps", flush=True)
    if args.workers > 1:
        dist.destroy_process_group()


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--out", type=Path, default=here / "out")
    parser.add_argument("--vae", type=Path, default=here / "out/vae")
    parser.add_argument("--clip", type=Path, default=here / "out/clip")
    parser.add_argument("--tokenizer", type=Path, default=here / "out/tokenizer/tokenizer.json")
    parser.add_argument("--unet", type=Path, help="start from this one rather than from random weights")
    parser.add_argument("--text-encoder", type=Path, help="start from this one rather than from CLIP's text tower")
    parser.add_argument("--seconds", type=float, default=7200)
    parser.add_argument("--save-every", type=float, default=480)
    parser.add_argument("--batch", type=int, default=32, help="of each worker")
    parser.add_argument("--variants", type=int, default=24, help="jittered copies of each picture, for each worker")
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--text-rate", type=float, default=0.3, help="times --rate, for the text encoder")
    parser.add_argument("--decay", type=float, default=0.997, help="of the moving average, a step")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sync-every", type=int, default=8, help="steps between averagings of the workers")
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--port", type=int, default=29511)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    if args.workers > 1:
        mp.spawn(train, (args,), args.workers)
    else:
        train(0, args)


if __name__ == "__main__":
    main()
