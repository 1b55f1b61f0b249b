#!/usr/bin/env python3
"""Writes the test vectors of ../SPEC.md as the first corpus of each fuzz target."""
import pathlib
import re

here = pathlib.Path(__file__).parent
vectors = {}
for block in re.findall(r"```vectors\n(.*?)```", (here / "../SPEC.md").read_text(), re.S):
    name = ""
    for line in block.splitlines():
        if not line.startswith(" "):
            name, line = line.split(" =", 1)
        vectors[name] = vectors.get(name, "") + line.strip()
vectors = {name: bytes.fromhex(digits) for name, digits in vectors.items()}
frames = [data for name, data in vectors.items() if name.startswith("frame.")]
corpus = {
    "frames": frames + [b"".join(frames)],
    "records": [vectors["record"], vectors["record.signed"]],
    "opens": [vectors["open"] + vectors["task.text_to_image"], vectors["frame.open"][5:]],
    "receipts": [vectors["receipt"], vectors["frame.receipt"][5:]],
    "tasks": [data for name, data in vectors.items() if name.startswith("task.")],
    "answers": [data for name, data in vectors.items() if name.startswith("answer.")],
    "openings": [vectors["opening"], vectors["frame.challenge"][5:]],
    "hotkeys": [
        b"5CfCr47V5Dte6bwxNBE8K9oNnQd9fiay6aDEEkgYtFv7w4Fq",
        vectors["miner.hotkey"] + vectors["signature.record"] + b"argus",
    ],
}
for target, seeds in corpus.items():
    folder = here / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(seeds):
        (folder / f"vector-{index}").write_bytes(data)
