"""Times diffusers' StableDiffusionPipeline on the embedded weights; prints one JSON object.

    python bench_diffusers.py --weights ../weights --steps 20 --threads 2

`median_s` is the median seconds a picture takes, text encoding and VAE included, after --warm-up pictures. float32.

With --target, Cargo's target folder, the Rust bench named --bench, which must have been built, runs next with the
same steps, guidance and threads; a second object and the ratio of the medians follow. The bench takes this script's
options of the same names and prints an object with `median_s` as its last line.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer/tokenizer.json"), bos_token="<|startoftext|>",
        eos_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=32,
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_rust(target: Path, name: str, args) -> dict:
    """The newest executable of that bench, whichever profile built it."""
    built = [p for p in target.glob(f"*/deps/{name}-*") if p.suffix == "" and p.stat().st_mode & 0o100]
    if not built:
        raise SystemExit(f"no bench `{name}` under {target}: build it with `cargo build --benches` first")
    command = [
        max(built, key=lambda p: p.stat().st_mtime), "--prompt", args.prompt, "--steps", args.steps, "--guidance", args.guidance,
        "--threads", args.threads, "--warm-up", args.warm_up, "--repeats", args.repeats,
    ]
    reply = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return json.loads(reply.stdout.strip().splitlines()[-1])


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=here / "../weights")
    parser.add_argument("--prompt", default="a red apple")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--target", type=Path, help="Cargo's target folder: run the Rust bench as well")
    parser.add_argument("--bench", default="text_to_image")
    parser.add_argument("--save", type=Path, help="write the last picture here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    diffusers.utils.logging.set_verbosity_error()
    pipeline = load_pipeline(args.weights / "argus-tiny")
    seconds = []
    for i in range(args.warm_up + args.repeats):
        started = time.perf_counter()
        # height and width are asked for: the pipeline's default multiplies by the VAE's factor of 4
        image = pipeline(
            args.prompt, height=64, width=64, num_inference_steps=args.steps, guidance_scale=args.guidance,
            generator=torch.Generator().manual_seed(i),
        ).images[0]
        if i >= args.warm_up:
            seconds.append(time.perf_counter() - started)
    if args.save:
        image.save(args.save)
    median = statistics.median(seconds)
    print(json.dumps({
        "bench": "diffusers", "median_s": round(median, 4), "min_s": round(min(seconds), 4),
        "max_s": round(max(seconds), 4), "repeats": args.repeats, "steps": args.steps, "guidance": args.guidance,
        "width": 64, "height": 64, "threads": args.threads, "dtype": "float32",
        "torch": torch.__version__.split("+")[0], "diffusers": diffusers.__version__, "machine": platform.machine(),
    }), flush=True)
    if args.target:
        rust = run_rust(args.target, args.bench, args)
        print(json.dumps(rust))
        print(json.dumps({"bench": "ratio", "rust_over_diffusers": round(rust["median_s"] / median, 3)}))


if __name__ == "__main__":
    main()
