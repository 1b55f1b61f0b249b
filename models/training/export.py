"""Writes the embedded weights from the trained models: f16 safetensors in the layout of diffusers.

    python export.py --models out --weights ../weights

The inpainting UNet is written as the tensors in which it differs from the text-to-image UNet, the second of two shards
under an index; the first is that UNet's own file, which the binary holds once.

Refuses to write a tensor that is not finite in f16, or that f16 changes by more than one part in 200 of its
largest value. Each file is put in place by a rename, so that a reader never sees half of one.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
INPAINT_INDEX = {**MODEL_INDEX, "_class_name": "StableDiffusionInpaintPipeline"}
FOLDERS = {"vae": "vae-128", "text_encoder": "text_encoder-any", "controlnet": "controlnet-scribble"}  # of what was trained, where the names differ
SHARDS = [f"diffusion_pytorch_model-{number:05}-of-00002.safetensors" for number in (1, 2)]
UNKNOWN = "Ā"  # the byte 0, which no prompt holds


def put(path: Path, write) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    os.replace(part, path)


def export_weights(source: Path, target: Path) -> None:
    tensors = {}
    for name, value in load_file(source).items():
        half = value.astype(np.float16) if np.issubdtype(value.dtype, np.floating) else value
        change = np.abs(half.astype(np.float32) - value).max()
        if not np.isfinite(half).all() or change > np.abs(value).max() / 200:
            raise SystemExit(f"{source}: {name} does not survive f16")
        tensors[name] = np.ascontiguousarray(half)
    put(target, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    target.chmod(0o644)
    print(f"{target}: {len(tensors)} tensors, {target.stat().st_size / 1e6:.1f} MB")


def export_tokenizer(source: Path, target: Path) -> None:
    """As it is, except that an unknown-token that is not in the vocabulary, which would make encoding fail, becomes one that is."""
    tokenizer = json.loads(source.read_text())
    model = tokenizer["model"]
    if model["unk_token"] is not None and model["unk_token"] not in model["vocab"]:
        model["unk_token"] = UNKNOWN
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    put(target, lambda path: path.write_text(text))


def export_config(source: Path, target: Path) -> None:
    """Without `_name_or_path`, which names a folder of the machine that trained."""
    config = json.loads(source.read_text())
    config.pop("_name_or_path", None)
    put(target, lambda path: path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n"))


def export_folder(source: Path, target: Path) -> None:
    export_config(source / "config.json", target / "config.json")
    for weights in source.glob("*.safetensors"):
        export_weights(weights, target / weights.name)


def export_inpaint(source: Path, unet: Path, target: Path) -> None:
    export_config(source / "config.json", target / "unet/config.json")
    export_weights(source / "changed.safetensors", target / "unet" / SHARDS[1])
    with safe_open(unet, "numpy") as whole, safe_open(target / "unet" / SHARDS[1], "numpy") as changed:
        shard = {**dict.fromkeys(whole.keys(), SHARDS[0]), **dict.fromkeys(changed.keys(), SHARDS[1])}
    index = {"metadata": {}, "weight_map": shard}
    text = json.dumps(index, indent=1, sort_keys=True) + "\n"
    put(target / "unet/diffusion_pytorch_model.safetensors.index.json", lambda path: path.write_text(text))
    put(target / "model_index.json", lambda path: path.write_text(json.dumps(INPAINT_INDEX, indent=2) + "\n"))


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=here / "out")
    parser.add_argument("--weights", type=Path, default=here / "../weights")
    everything = ["tokenizer", "text_encoder", "unet", "vae", "scheduler", "clip", "controlnet", "inpaint"]
    parser.add_argument("--parts", nargs="+", choices=everything, default=everything)
    args = parser.parse_args()
    tiny, own = args.weights / "argus-tiny", {"clip": "clip", "controlnet": "argus-tiny-controlnet"}
    for part in args.parts:
        source = args.models / FOLDERS.get(part, part)
        if part == "tokenizer":
            export_tokenizer(source / "tokenizer.json", tiny / "tokenizer/tokenizer.json")
        elif part == "scheduler":
            export_config(source / "scheduler_config.json", tiny / "scheduler/scheduler_config.json")
        elif part == "inpaint":
            export_inpaint(source, tiny / "unet/diffusion_pytorch_model.safetensors", args.weights / "argus-tiny-inpaint")
        else:
            export_folder(source, args.weights / own.get(part, f"argus-tiny/{part}"))
    put(tiny / "model_index.json", lambda path: path.write_text(json.dumps(MODEL_INDEX, indent=2) + "\n"))


if __name__ == "__main__":
    main()
