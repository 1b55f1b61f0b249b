"""Measures the embedded weights: a contact sheet of the narrow set, and CLIP's opinion of it.

    python evaluate.py --weights ../weights --out out

Prints one JSON object:
  clip_held_out_top1     of 256 pictures that CLIP was not trained on, how often the right caption is nearest
  generated_top1, top5   of pictures generated from "a NAME", how often the nearest real picture of the narrow set,
                         by CLIP image embedding, is the one of that name (among the nearest five)
  captions_top1, top5    the same for 50 captions in words that no training caption has
  vae_psnr_db            over the unjittered pictures of the narrow set
  seed_distance          mean absolute difference of two seeds' pictures, in [0, 1]
  steps_distance         the same between 20 and 10 steps of one seed
and writes OUT/contact_sheet.png, a row of seeds for each of the first --rows names, and OUT/objects_sheet.png,
every name once.
"""

import argparse
import json
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel

from dataset import caption, contact_sheet, encode, halve, load_pictures, load_things_with_pictures, load_tokenizer, to_bytes, to_signed
from train_clip import HELD_OUT, normalise
from train_unet import sample

CAPTIONS = 50
NEW_TEMPLATES = (
    "my favourite {n}", "one enormous {n} seen from above", "could you show {a} {n}?", "look, {a} {n}!", "sketch {a} {n} for my daughter",
)


@torch.no_grad()
def embed(clip, pictures: torch.Tensor) -> torch.Tensor:
    pictures = F.interpolate(pictures.float(), size=clip.config.vision_config.image_size, mode="area").round()
    chunks = [clip.vision_model(pixel_values=normalise(chunk)).pooler_output for chunk in pictures.split(64)]
    return F.normalize(clip.visual_projection(torch.cat(chunks)), dim=-1)


@torch.no_grad()
def held_out_top1(clip, tokenizer, data: Path) -> float:
    pictures, records = load_pictures(data)
    held_out = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(1))[:HELD_OUT].tolist()
    rng = random.Random(5)
    ids = encode(tokenizer, [caption(records[i], rng) for i in held_out])
    logits = clip(input_ids=ids, pixel_values=normalise(halve(pictures[held_out]))).logits_per_image
    return (logits.argmax(1) == torch.arange(HELD_OUT)).float().mean().item()


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--weights", type=Path, default=here / "../weights")
    parser.add_argument("--out", type=Path, default=here / "out")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    tiny = args.weights / "argus-tiny"
    tokenizer = load_tokenizer(tiny / "tokenizer/tokenizer.json")
    unet = UNet2DConditionModel.from_pretrained(tiny / "unet", torch_dtype=torch.float32).eval()
    text_encoder = CLIPTextModel.from_pretrained(tiny / "text_encoder", dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(tiny / "vae", torch_dtype=torch.float32).eval()
    clip = CLIPModel.from_pretrained(args.weights / "clip", dtype=torch.float32).eval()

    things, full = load_things_with_pictures(args.data, args.objects)
    real = halve(full)
    prompts = [("an " if thing.names[0][0] in "aeio" else "a ") + thing.names[0] for thing in things]
    draw = lambda texts, **options: sample(unet, text_encoder, vae, tokenizer, texts, **options)

    def nearest(chosen: list[int], texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures drawn from the texts, and whether each of the five nearest real ones is the thing chosen (N, 5)."""
        drawn = torch.cat([draw(texts[i : i + 32]) for i in range(0, len(texts), 32)])
        return drawn, (embed(clip, drawn) @ embed(clip, real).t()).topk(5, dim=1).indices == torch.tensor(chosen).unsqueeze(1)

    generated, hits = nearest(list(range(len(things))), prompts)
    rng = random.Random(11)
    chosen = rng.sample(range(len(things)), CAPTIONS)
    names = [rng.choice(things[i].names) for i in chosen]
    _, caption_hits = nearest(chosen, [
        rng.choice(NEW_TEMPLATES).format(n=name, a="an" if name[0] in "aeio" else "a") for name in names
    ])
    whole = torch.from_numpy(full).permute(0, 3, 1, 2)  # of the size that the autoencoder is for
    whole = whole if vae.config.sample_size == whole.shape[-1] else real
    with torch.no_grad():
        guesses = torch.cat([to_bytes(vae.decode(vae.encode(to_signed(chunk)).latent_dist.mean).sample) for chunk in whole.split(32)])
    error = (guesses.float() - whole.float()).square().mean()
    rows = prompts[: args.rows]
    by_seed = torch.stack([draw(rows, seed=seed) for seed in range(args.seeds)], 1)
    fewer = draw(rows, steps=10)
    distance = lambda a, b: (a.float() - b.float()).abs().mean().item() / 255

    contact_sheet(by_seed.flatten(0, 1), args.seeds).save(args.out / "contact_sheet.png")
    contact_sheet(generated, 16).save(args.out / "objects_sheet.png")
    print(json.dumps({
        "objects": len(things),
        "clip_held_out_top1": round(held_out_top1(clip, tokenizer, args.data), 3),
        "generated_top1": round(hits[:, 0].float().mean().item(), 3),
        "generated_top5": round(hits.any(1).float().mean().item(), 3),
        "captions_top1": round(caption_hits[:, 0].float().mean().item(), 3),
        "captions_top5": round(caption_hits.any(1).float().mean().item(), 3),
        "vae_psnr_db": round(float(10 * torch.log10(255**2 / error)), 2),
        "seed_distance": round(distance(by_seed[:, 0], by_seed[:, 1]), 4),
        "steps_distance": round(distance(by_seed[:, 0], fewer), 4),
    }))


if __name__ == "__main__":
    main()
