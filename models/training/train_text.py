"""Teaches the finished text encoder to find the thing in captions that it was not trained on.

The narrow set's captions come in thirteen forms; people write in others. Here captions are grown of openers, adjectives,
endings and words made of random tokens, and the encoder learns to make the finished UNet predict from them what it
predicts from "a NAME". The UNet is the teacher and stays as it is, and so do a ControlNet and an inpainting UNet that
were made for it.

    python train_text.py --seconds 1200
"""

import argparse
import copy
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from transformers import CLIPTextModel

from dataset import Thing, encode, load_things_with_pictures, load_tokenizer
from train_unet import SCHEDULE, encode_variants, loss_weights

OPENERS = (
    "", "", "draw {a}", "draw me {a}", "paint {a}", "show me {a}", "i want {a}", "please make {a}", "make me {a}", "a picture of {a}",
    "an image of {a}", "a photo of {a}", "a photograph of {a}", "a drawing of {a}", "a painting of {a}", "an illustration of {a}",
    "a close up of {a}", "an icon of {a}", "a 3d render of {a}", "high quality photo of {a}", "this is {a}", "there is {a}", "some",
    "the", "my", "your", "just {a}", "{a}", "{a}", "{a}",
)
ADJECTIVES = (
    "cute", "beautiful", "big", "large", "small", "little", "shiny", "lovely", "simple", "nice", "old", "new", "glossy", "colourful",
    "happy", "amazing", "detailed", "realistic", "fresh", "funny", "single", "giant", "tiny", "perfect", "pretty", "round",
)
ENDINGS = (
    ".", "!", "please", ", please", "on white", "on a white background", "on a table", "in the middle", ", high quality",
    ", highly detailed", ", 4k", ", masterpiece", ", digital art", ", cartoon style", "in cartoon style", "with a shadow",
    ", studio light", ", isolated", ", best quality", "for me", "emoji", "icon", "sticker", "in the sun", "at night", "in a garden",
    "floating in the air", "on a plate", "in front of a wall", ", soft light", ", trending", "as a logo", "by the sea",
)


class Captions:
    def __init__(self, tokenizer: Tokenizer, things: list[Thing]):
        names = {word for thing in things for name in thing.names for word in name.split()}
        pieces = [tokenizer.decode([i]).strip().lower() for i in range(tokenizer.get_vocab_size())]
        self.pieces = [piece for piece in pieces if piece.isascii() and piece.isalpha() and len(piece) > 1 and piece not in names]

    def word(self, rng: random.Random) -> str:
        """Letters that mean nothing, as an unknown word does."""
        return "".join(rng.choice(self.pieces) for _ in range(rng.choice((1, 1, 2, 2, 3))))

    def draw(self, thing: Thing, rng: random.Random) -> str:
        if rng.random() < 0.25:
            return thing.caption(rng)
        before = [rng.choice(ADJECTIVES)] if rng.random() < 0.35 else []
        before += [self.word(rng)] if rng.random() < 0.2 else []
        name = " ".join([*before, thing.names[0] if rng.random() < 0.5 else rng.choice(thing.names)])
        opener = rng.choice(OPENERS).format(a="an" if name[0] in "aeio" else "a")
        parts = [self.word(rng) for _ in range(rng.choice((0, 0, 0, 1, 2)))] + [opener, name]
        parts += [rng.choice(ENDINGS)] if rng.random() < 0.5 else []
        parts += [self.word(rng) for _ in range(rng.choice((0, 0, 0, 1, 2, 3)))]
        text = " ".join(part for part in parts if part).replace(" ,", ",").replace(" .", ".").replace(" !", "!")
        return text.capitalize() if rng.random() < 0.15 else text


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--models", type=Path, default=here / "out", help="vae (of 64 px), unet, text_encoder, tokenizer")
    parser.add_argument("--out", type=Path, default=here / "out/text_encoder-any", help="where the encoder goes")
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--variants", type=int, default=8)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = random.Random(0)
    tokenizer = load_tokenizer(args.models / "tokenizer/tokenizer.json")
    frozen = lambda model, folder: model.from_pretrained(args.models / folder, torch_dtype=torch.float32).eval().requires_grad_(False)
    vae, unet, teacher = frozen(AutoencoderKL, "vae"), frozen(UNet2DConditionModel, "unet"), frozen(CLIPTextModel, "text_encoder")
    encoder = copy.deepcopy(teacher).train().requires_grad_(True)
    things, pictures = load_things_with_pictures(args.data, args.objects)
    latents = encode_variants(vae, pictures, args.variants, rng)
    captions = Captions(tokenizer, things)
    print("\n".join(captions.draw(things[i], rng) for i in range(0, len(things), 12)), flush=True)
    scheduler = DDIMScheduler(**SCHEDULE)
    weights = loss_weights(scheduler)
    parameters = [p for p in encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.rate, weight_decay=1e-3, betas=(0.9, 0.99))
    average = copy.deepcopy(encoder).requires_grad_(False).eval()

    started, step, window = time.time(), 0, []
    while (progress := (time.time() - started) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 100) * max(0.02, 0.5 * (1 + math.cos(math.pi * progress)))
        chosen, variant = torch.randint(len(things), (args.batch,)), torch.randint(args.variants, (args.batch,))
        clean = latents[chosen, variant]
        # what a thing is, is settled while there is much noise
        noise, timesteps = torch.randn_like(clean), (torch.rand(args.batch).sqrt() * 1000).long().clamp(max=999)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        known = ["" if rng.random() < 0.08 else things[i].caption(rng) for i in chosen.tolist()]
        asked = [text and captions.draw(things[i], rng) for text, i in zip(known, chosen.tolist())]
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                context = teacher(input_ids=encode(tokenizer, known)).last_hidden_state
                wanted = unet(noisy, timesteps, encoder_hidden_states=context).sample.float()
            context = encoder(input_ids=encode(tokenizer, asked)).last_hidden_state
            guess = unet(noisy, timesteps, encoder_hidden_states=context).sample.float()
        loss = ((guess - wanted).square().mean((1, 2, 3)) * weights[timesteps]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.995, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
        window.append(loss.item())
        if len(window) >= 50:
            print(f"step {step}, {time.time() - started:.0f} s, loss {sum(window) / len(window):.5f}", flush=True)
            window.clear()
        if step % 500 == 0:
            average.save_pretrained(args.out)
    average.save_pretrained(args.out)
    print(f"done after {step} steps", flush=True)


if __name__ == "__main__":
    main()
