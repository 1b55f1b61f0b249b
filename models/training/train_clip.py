"""Trains the tokenizer (byte-level BPE as CLIP's, 2,048 tokens, 32 of them a text) and a small CLIP on all pictures.

    python train_clip.py --seconds 900 --out out

Writes OUT/tokenizer/tokenizer.json and OUT/clip. Prints how often, of 256 held-out pictures, the right caption is
the nearest. The text tower is also where `train_unet.py` starts its text encoder from.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel

from dataset import caption, encode, halve, load_pictures, load_things

VOCABULARY, LENGTH = 2048, 32
START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
HELD_OUT = 256


def train_tokenizer(texts: list[str], path: Path) -> Tokenizer:
    """CLIP's normalisation and splitting; every byte is a token alone and as the end of a word, so nothing is unknown."""
    words = models.BPE(unk_token=None, end_of_word_suffix=SUFFIX)
    tokenizer = Tokenizer(words)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=[], initial_alphabet=alphabet, end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)

    # The trainer knows only the word ends it has seen. Add the others, dropping as many of the last merges.
    state = json.loads(tokenizer.to_str())
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in state["model"]["merges"]]
    ends = [letter + SUFFIX for letter in sorted(alphabet)]
    room = VOCABULARY - 2 - len(alphabet) - len(ends)
    merges = merges[:room]
    tokens = list(dict.fromkeys([*sorted(alphabet), *ends, *("".join(pair) for pair in merges)]))
    state["model"]["vocab"] = {token: i for i, token in enumerate(tokens)}
    state["model"]["merges"] = [list(pair) for pair in merges]
    start, end = VOCABULARY - 2, VOCABULARY - 1
    state["added_tokens"] = [
        {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, text in ((start, START), (end, END))
    ]
    if len(tokens) > start:
        raise SystemExit(f"{len(tokens)} tokens do not fit below {start}")
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH, pad_id=end, pad_token=END)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return tokenizer


def build_model(start: int, end: int) -> CLIPModel:
    return CLIPModel(CLIPConfig(
        text_config=dict(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=512, projection_dim=128, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=LENGTH, hidden_act="quick_gelu",
            bos_token_id=start, eos_token_id=end, pad_token_id=end,
        ),
        vision_config=dict(
            hidden_size=192, intermediate_size=768, projection_dim=128, num_hidden_layers=6, num_attention_heads=3,
            image_size=64, patch_size=8, hidden_act="quick_gelu",
        ),
        projection_dim=128,
    ))


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures.float() / 255 - MEAN) / DEVIATION


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=here / "data")
    parser.add_argument("--objects", type=Path, default=here / "objects.txt")
    parser.add_argument("--out", type=Path, default=here / "out")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    random.seed(0)

    everything, records = load_pictures(args.data)
    pictures = halve(everything)
    rng = random.Random(3)
    texts = [caption(record, rng) for _ in range(6) for record in records]
    texts += [thing.caption(rng) for _ in range(20) for thing in load_things(args.objects)]
    tokenizer = train_tokenizer(texts, args.out / "tokenizer/tokenizer.json")

    model = build_model(VOCABULARY - 2, VOCABULARY - 1)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(1))
    held_out, trained_on = order[:HELD_OUT], order[HELD_OUT:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    step, started = 0, time.time()
    while (progress := (time.time() - started) / args.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.rate * min(1, (step + 1) / 50) * max(0.01, 0.5 * (1 + math.cos(math.pi * progress)))
        chosen = trained_on[torch.randperm(len(trained_on))[: args.batch]]
        shift = tuple(int(s) for s in torch.randint(-3, 4, (2,)))  # so that an embedding ignores a few pixels
        batch = normalise(torch.roll(pictures[chosen], shift, (2, 3)))
        ids = encode(tokenizer, [caption(records[i]) for i in chosen.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, pixel_values=batch).logits_per_image.float()
        target = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if step % 50 == 0:
            hits = (logits.argmax(1) == target).float().mean().item()
            print(f"step {step}, {time.time() - started:.0f} s, loss {loss.item():.3f}, right {hits:.2f}", flush=True)

    model.save_pretrained(args.out / "clip")
    model.eval()
    rng = random.Random(5)
    with torch.no_grad():
        ids = encode(tokenizer, [caption(records[i], rng) for i in held_out.tolist()])
        logits = model(input_ids=ids, pixel_values=normalise(pictures[held_out])).logits_per_image
    right = (logits.argmax(1) == torch.arange(HELD_OUT)).float().mean().item()
    print(f"done after {step} steps, top-1 of {HELD_OUT} held out: {right:.3f}", flush=True)


if __name__ == "__main__":
    main()
