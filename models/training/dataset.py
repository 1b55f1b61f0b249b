"""Pictures, captions and tokens, as all training scripts read them."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer

STYLES = {"3d": "3d", "flat": "flat", "noto": "cartoon"}
TEMPLATES = (
    "{n}", "a {n}", "{s} {n}", "{n}, {s}", "a {s} icon of {n}", "an emoji of {n}, {s} style", "a {s} picture of a {n}",
)
OBJECT_TEMPLATES = (
    "{n}", "{n}", "{a} {n}", "{a} {n}", "{a} {n}", "the {n}", "a picture of {a} {n}", "an icon of {a} {n}",
    "an emoji of {a} {n}", "{a} {n} on a white background", "a 3d {n}", "a photo of {a} {n}", "a drawing of {a} {n}",
)


def load_pictures(data: Path) -> tuple[np.ndarray, list[dict]]:
    """Pictures (N, 128, 128, 3) uint8, memory-mapped, and their records."""
    return np.load(data / "pictures.npy", mmap_mode="r"), json.loads((data / "captions.json").read_text())


def halve(pictures: np.ndarray) -> torch.Tensor:
    """(N, 128, 128, 3) uint8 to (N, 3, 64, 64) uint8 by the mean of each 2 x 2 block."""
    chunks = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).split(512)
    return torch.cat([F.avg_pool2d(chunk.float(), 2).round().byte() for chunk in chunks])


def to_signed(pictures: torch.Tensor) -> torch.Tensor:
    """uint8 to float in [-1, 1], as the VAE takes it."""
    return pictures.float() / 127.5 - 1


def to_bytes(pictures: torch.Tensor) -> torch.Tensor:
    """The inverse of `to_signed`, clamped."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte()


def caption(record: dict, rng=random) -> str:
    """A caption of any picture: one of its names in one of the templates, with its style."""
    full, *short = record["names"]
    name = rng.choice([full, full, *short]) if short else full
    return rng.choice(TEMPLATES).format(n=name, s=STYLES[record["style"]])


@dataclass(frozen=True)
class Thing:
    """One line of objects.txt."""

    code: str
    names: tuple[str, ...]
    weight: int

    def caption(self, rng=random) -> str:
        """The first name half of the time; the article agrees with it."""
        name = self.names[0] if rng.random() < 0.5 else rng.choice(self.names)
        article = "an" if name[0] in "aeio" else "a"
        return rng.choice(OBJECT_TEMPLATES).format(n=name, a=article)


def load_things(path: Path) -> list[Thing]:
    things = []
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        code, rest = line.split(maxsplit=1)
        weight = 1
        if rest.startswith("x"):
            first, _, tail = rest.partition(" ")
            if first[1:].isdigit():
                weight, rest = int(first[1:]), tail
        things.append(Thing(code, tuple(name.strip() for name in rest.split("|")), weight))
    return things


def turn(picture: np.ndarray, rng: random.Random, angle=9.0, scale=(0.82, 1.0), shift=6.0) -> np.ndarray:
    """The picture turned (degrees), scaled, moved (pixels) and perhaps mirrored, on white; of the same size."""
    image = Image.fromarray(picture)
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    side = image.width
    angle, scale = np.deg2rad(rng.uniform(-angle, angle)), 1 / rng.uniform(*scale)
    dx, dy = rng.uniform(-shift, shift), rng.uniform(-shift, shift)
    c, s, mid = np.cos(angle) * scale, np.sin(angle) * scale, side / 2
    matrix = (c, s, mid - c * (mid + dx) - s * (mid + dy), -s, c, mid + s * (mid + dx) - c * (mid + dy))
    return np.asarray(image.transform(image.size, Image.AFFINE, matrix, Image.BICUBIC, fillcolor=(255, 255, 255)))


def jitter(picture: np.ndarray, rng: random.Random) -> np.ndarray:
    """The picture turned a little and halved: (128, 128, 3) to (64, 64, 3).

    Without it a narrow set has one picture a caption, and every seed draws the same one.
    """
    image = Image.fromarray(turn(picture, rng))
    return np.asarray(image.resize((image.width // 2, image.height // 2), Image.BOX))


def load_things_with_pictures(data: Path, path: Path) -> tuple[list[Thing], np.ndarray]:
    """The narrow set in the order of `path`, with its "3d" pictures (N, 128, 128, 3)."""
    pictures, records = load_pictures(data)
    index = {record["code"]: i for i, record in enumerate(records) if record["style"] == "3d"}
    things = load_things(path)
    missing = [thing.code for thing in things if thing.code not in index]
    if missing:
        raise SystemExit(f"{path} names code points without a picture: {', '.join(missing)}")
    return things, np.stack([pictures[index[thing.code]] for thing in things])


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode(tokenizer: Tokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids (len(texts), 32)."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])


def contact_sheet(pictures: torch.Tensor, columns: int) -> Image.Image:
    """(N, 3, H, W) uint8 as one picture, filled row by row, the rest white."""
    count, _, height, width = pictures.shape
    sheet = Image.new("RGB", (columns * width, -(-count // columns) * height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (i % columns * width, i // columns * height))
    return sheet
