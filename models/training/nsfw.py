"""MobileNetV2 of nsfwjs 4.3.0 in plain torch, as the reference for the Rust one.

Keras' network of width 1 with the batch normalisations folded into biases and three dense layers on top. Takes
(N, 3, 224, 224) in [0, 1]; returns the pooled feature (N, 1280) and the scores (N, 5) in the order of CLASSES.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

CLASSES = ("drawing", "hentai", "neutral", "porn", "sexy")
SIDE = 224
# (expanded, stride, shortcut) of blocks 0 to 16
BLOCKS = [(False, 1, False)] + [
    (True, stride if i == 0 else 1, i > 0)
    for stride, repeats in ((2, 2), (2, 3), (2, 4), (1, 3), (2, 3), (1, 1))
    for i in range(repeats)
]


class MobileNetV2:
    def __init__(self, path: Path):
        self.w = {name: value.float() for name, value in load_file(path).items()}

    def convolve(self, x, kernel, bias, stride=1, groups=1, relu=True):
        k = self.w[kernel]
        if stride == 2:  # Keras pads only below and to the right of an even side
            x = F.pad(x, (0, 1, 0, 1))
            padding = 0
        else:
            padding = k.shape[-1] // 2
        x = F.conv2d(x, k, self.w[bias], stride, padding, groups=groups)
        return x.clamp(0, 6) if relu else x

    def block(self, x, name, expanded, stride, shortcut):
        y = self.convolve(x, f"{name}_expandk", f"{name}_expand_BN.bias") if expanded else x
        y = self.convolve(y, f"{name}_depthwisek", f"{name}_depthwise_BN.bias", stride, groups=y.shape[1])
        y = self.convolve(y, f"{name}_projectk", f"{name}_project_BN.bias", relu=False)
        return x + y if shortcut else y

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.convolve(x, "Conv1k", "bn_Conv1.bias", 2)
        for i, (expanded, stride, shortcut) in enumerate(BLOCKS):
            x = self.block(x, f"block_{i}" if i else "expanded_conv", expanded, stride, shortcut)
        feature = self.convolve(x, "Conv_1k", "Conv_1_bn.bias").mean((2, 3))
        y = F.relu(feature @ self.w["dense_1k"] + self.w["dense_1b"])
        y = F.relu(y @ self.w["dense_2k"] + self.w["dense_2b"])
        return feature, F.softmax(y @ self.w["dense_3k"] + self.w["dense_3b"], -1)
