"""Converts pickled PyTorch checkpoints to safetensors, which is all that Argus reads.

    python3 models/training/convert_checkpoint.py MODEL [--out FILE]

MODEL is a file (.bin, .pt, .pth, .ckpt) or a folder, in which every such file is converted beside
itself: `pytorch_model.bin` becomes `model.safetensors`, `x.bin` becomes `x.safetensors`, and an index of
shards follows. Nothing pickled is run: torch's `weights_only` unpickler knows tensors and containers and
refuses everything else. Needs torch and safetensors (models/training/requirements.txt).
"""

import argparse
import json
import pathlib
import pickle
import sys

import torch
from safetensors.torch import save_file

PICKLED = {".bin", ".pt", ".pth", ".ckpt"}
# Where trainers put the weights among what else they keep.
WRAPPERS = ("state_dict", "params_ema", "params", "model", "module")


def tensors_of(checkpoint):
    """The named tensors of a checkpoint, out of whatever it is wrapped in."""
    while isinstance(checkpoint, dict):
        wrapped = next((key for key in WRAPPERS if isinstance(checkpoint.get(key), dict)), None)
        if wrapped is None:
            break
        checkpoint = checkpoint[wrapped]
    if not isinstance(checkpoint, dict):
        raise SystemExit(f"it holds a {type(checkpoint).__name__}, not named tensors")
    # Tensors that share memory would be refused, and strides have no place in the format.
    return {
        name: value.detach().clone().contiguous()
        for name, value in checkpoint.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def safe_name(name):
    stem = pathlib.PurePath(name).stem
    return stem.replace("pytorch_model", "model", 1) if stem.startswith("pytorch_model") else stem


def convert(source, target):
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        sys.exit(f"{source}: refused, since it holds more than tensors and containers of them")
    tensors = tensors_of(checkpoint)
    if not tensors:
        raise SystemExit(f"{source}: no tensors in it")
    save_file(tensors, target, metadata={"format": "pt"})
    print(f"{source} -> {target} ({len(tensors)} tensors)")


def convert_index(source):
    index = json.loads(source.read_text())
    index["weight_map"] = {name: safe_name(file) + ".safetensors" for name, file in index["weight_map"].items()}
    name = source.name.replace("pytorch_model", "model", 1) if source.name.startswith("pytorch_model") else source.name
    target = source.with_name(name.replace(".bin.index.json", ".safetensors.index.json"))
    target.write_text(json.dumps(index, indent=2) + "\n")
    print(f"{source} -> {target}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="where one file's tensors go")
    arguments = parser.parse_args()
    if arguments.model.is_file():
        default = arguments.model.with_name(safe_name(arguments.model.name) + ".safetensors")
        convert(arguments.model, arguments.out or default)
        return
    if arguments.out:
        parser.error("--out is for one file")
    found = sorted(path for path in arguments.model.rglob("*") if path.suffix in PICKLED and path.is_file())
    if not found:
        sys.exit(f"{arguments.model}: no {', '.join(sorted(PICKLED))} file in it")
    for path in found:
        convert(path, path.with_name(safe_name(path.name) + ".safetensors"))
    for path in sorted(arguments.model.rglob("*.bin.index.json")):
        convert_index(path)


if __name__ == "__main__":
    main()
