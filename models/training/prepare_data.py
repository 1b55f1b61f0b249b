"""Fetches four npm packages and renders every emoji in them as a captioned picture.

Writes to DATA: pictures.npy (N, 128, 128, 3) uint8 on white, and captions.json, a list of N records
{code, style, names}. `names[0]` is the Unicode name, the others are short names; `code` is the emoji's
lower-case code point sequence where the package gives one.

    python prepare_data.py --data data

Needs `npm` on the PATH and libcairo (Debian: libcairo2).
"""

import argparse
import io
import json
import re
import subprocess
import tarfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cairosvg
import numpy as np
from PIL import Image

SIZE = 128
PACKAGES = {
    "names": ("emoji-datasource-google", "16.0.0"),  # MIT; only emoji.json is read
    "3d": ("@lobehub/fluent-emoji-3d", "1.1.0"),  # MIT, Microsoft Fluent Emoji
    "flat": ("@iconify-json/fluent-emoji-flat", "1.2.6"),  # MIT, Microsoft Fluent Emoji
    "noto": ("@iconify-json/noto", "1.2.9"),  # Apache-2.0, Google Noto Emoji
}
SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium-light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium-dark skin tone",
    "1F3FF": "dark skin tone",
}


def fetch(name: str, version: str, data: Path) -> Path:
    """Folder of the unpacked npm package, fetched with `npm pack` unless it is there already."""
    folder = data / f"{name.strip('@').replace('/', '-')}-{version}"
    if not folder.exists():
        reply = subprocess.run(
            ["npm", "pack", f"{name}@{version}", "--json", "--pack-destination", str(data)],
            check=True, capture_output=True, text=True,
        )
        archive = data / json.loads(reply.stdout)[0]["filename"].replace("/", "-").strip("@")
        unpacking = folder.with_suffix(".part")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacking, filter="data")
        unpacking.rename(folder)
        archive.unlink()
    return folder / "package"


def read_names(package: Path) -> dict[str, list[str]]:
    """Code point sequence (lower case, without variation selectors) to its names."""
    names = {}
    for emoji in json.loads((package / "emoji.json").read_text()):
        short = [s.replace("_", " ").replace("-", " ") for s in emoji["short_names"]]
        full = emoji["name"].lower() if emoji["name"] else short[0]
        names[without_selectors(emoji["unified"])] = [full, *short]
        for tones, variation in (emoji.get("skin_variations") or {}).items():
            tone = " and ".join(dict.fromkeys(SKIN_TONES[t] for t in tones.split("-") if t in SKIN_TONES))
            names[without_selectors(variation["unified"])] = [f"{name} {tone}" for name in [full, *short]]
    return names


def without_selectors(code: str) -> str:
    return code.lower().replace("-fe0f", "")


def on_white(image: Image.Image) -> np.ndarray:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    white.alpha_composite(image)
    return np.asarray(white.convert("RGB").resize((SIZE, SIZE), Image.LANCZOS))


def render_file(path: Path) -> np.ndarray:
    return on_white(Image.open(path))


def render_svg(icon: tuple[str, int, int]) -> np.ndarray | None:
    """None for the few icons that cairosvg cannot draw."""
    body, width, height = icon
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}">{body}</svg>'
    )
    try:
        png = cairosvg.svg2png(bytestring=svg.encode(), output_width=SIZE, output_height=SIZE)
    except Exception:  # cairosvg raises whatever its parser meets
        return None
    return on_white(Image.open(io.BytesIO(png)))


def collect_files(package: Path, names: dict[str, list[str]]) -> tuple[list[dict], list[Path]]:
    records, paths = [], []
    for path in sorted((package / "assets").glob("*.webp")):
        known = names.get(without_selectors(path.stem))
        if known:
            records.append({"code": path.stem, "style": "3d", "names": known})
            paths.append(path)
    return records, paths


def collect_icons(package: Path, style: str, names: dict[str, list[str]]) -> tuple[list[dict], list[tuple]]:
    by_slug = {re.sub("[^a-z0-9]+", "-", known[0]).strip("-"): (code, known) for code, known in names.items()}
    sheet = json.loads((package / "icons.json").read_text())
    records, icons = [], []
    for slug, icon in sheet["icons"].items():
        code, known = by_slug.get(slug, ("", [slug.replace("-", " ")] * 2))
        records.append({"code": code, "style": style, "names": known})
        icons.append((icon["body"], icon.get("width", sheet.get("width", 16)), icon.get("height", sheet.get("height", 16))))
    return records, icons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)

    packages = {key: fetch(name, version, args.data) for key, (name, version) in PACKAGES.items()}
    names = read_names(packages["names"])
    captions, pictures = [], []

    def add(records, rendered):
        for record, picture in zip(records, rendered):
            if picture is not None and picture.std() > 1:  # a blank drawing teaches nothing
                captions.append(record)
                pictures.append(picture)

    with ProcessPoolExecutor(args.workers) as pool:
        records, paths = collect_files(packages["3d"], names)
        add(records, pool.map(render_file, paths, chunksize=64))
        for style in ("flat", "noto"):
            records, icons = collect_icons(packages[style], style, names)
            add(records, pool.map(render_svg, icons, chunksize=64))

    np.save(args.data / "pictures.npy", np.stack(pictures))
    (args.data / "captions.json").write_text(json.dumps(captions))
    print(f"{len(pictures)} pictures in {args.data}")


if __name__ == "__main__":
    main()
