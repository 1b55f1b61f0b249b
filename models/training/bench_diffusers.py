"""Times diffusers and Argus on the same weights, in one run: one UNet step (both halves of the guidance), VAE
decoding, a whole picture, a CLIP picture embedding; and the memory that each process took.

    python bench_diffusers.py --target ../../target

Two families: the embedded one, and `sd15`: Stable Diffusion 1.5's and ViT-L/14's real widths and a picture of 512 x
512, with random weights and fewer layers, so that it fits a run of minutes. Each process measures itself, alone, one
after the other; float32; medians. With --target, Cargo's target folder, the Rust bench `text_to_image` must have
been built (`make bench-diffusers` does); without it only diffusers is timed. `--save FILE` writes the rows as JSON.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STAGES = {
    "step_s": "UNet step", "decode_s": "VAE decode", "picture_s": "whole picture",
    "embed_s": "CLIP embedding", "peak_mb": "peak memory, MB", "above_start_mb": "… above the start",
}


def peak_mb() -> float:
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def write_sd15(folder: Path) -> None:
    """A Stable Diffusion of 1.5's widths, and a CLIP of ViT-L/14's, with random weights and few layers."""
    import shutil

    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

    here = Path(__file__).parent
    torch.manual_seed(0)
    tokens = dict(vocab_size=2048, bos_token_id=2046, eos_token_id=2047, pad_token_id=2047, max_position_embeddings=32)
    text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=4, num_attention_heads=12, hidden_act="quick_gelu", **tokens)
    UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8, layers_per_block=1,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        sample_size=512, block_out_channels=(128, 256, 512, 512), layers_per_block=1, latent_channels=4, scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                  steps_offset=1).save_pretrained(folder / "scheduler")
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=16, image_size=224, patch_size=14)
    clip = CLIPModel(CLIPConfig(text_config={**text, "projection_dim": 768}, vision_config={**vision, "projection_dim": 768}, projection_dim=768))
    clip.save_pretrained(folder / "clip")
    embedded = here / "../weights/argus-tiny"
    (folder / "tokenizer").mkdir()
    shutil.copy(embedded / "tokenizer/tokenizer.json", folder / "tokenizer/tokenizer.json")
    shutil.copy(embedded / "tokenizer/tokenizer.json", folder / "clip/tokenizer.json")
    shutil.copy(embedded / "model_index.json", folder / "model_index.json")


def load_pipeline(folder: Path):
    import diffusers
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

    diffusers.utils.logging.set_verbosity_error()
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


def measure(args) -> dict:
    """The same as the Rust bench, with diffusers and transformers, in this process."""
    import torch
    import torch.nn.functional as F
    from transformers import CLIPModel

    torch.set_num_threads(args.threads)
    before = peak_mb()
    opened = time.perf_counter()
    pipeline = load_pipeline(args.pipeline)
    load = time.perf_counter() - opened
    size = args.size or pipeline.vae.config.sample_size
    rows = {"step_s": [], "decode_s": [], "picture_s": []}
    for run in range(args.warm_up + args.repeats):
        ends = []

        def ended(_pipeline, _step, _timestep, kwargs):
            ends.append(time.perf_counter())
            return kwargs

        # The first step begins when the text is encoded: the scheduler's timesteps are set then.
        original = pipeline.scheduler.set_timesteps
        pipeline.scheduler.set_timesteps = lambda *a, **k: (ends.append(time.perf_counter()), original(*a, **k))
        started = time.perf_counter()
        pipeline(args.prompt, height=size, width=size, num_inference_steps=args.steps, guidance_scale=args.guidance,
                 generator=torch.Generator().manual_seed(run), callback_on_step_end=ended)
        finished = time.perf_counter()
        pipeline.scheduler.set_timesteps = original
        if run >= args.warm_up:
            rows["step_s"].append((ends[-1] - ends[0]) / args.steps)
            rows["decode_s"].append(finished - ends[-1])
            rows["picture_s"].append(finished - started)
    peak = peak_mb()
    del pipeline
    clip = CLIPModel.from_pretrained(args.clip, dtype=torch.float32).eval()
    edge = clip.config.vision_config.image_size
    picture = torch.rand(1, 3, size, size)
    embed = []
    for run in range(args.warm_up + args.repeats):
        started = time.perf_counter()
        with torch.no_grad():
            pixels = F.interpolate(picture, (edge, edge), mode="bicubic", antialias=True) * 2 - 1
            F.normalize(clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output), dim=-1)
        if run >= args.warm_up:
            embed.append(time.perf_counter() - started)
    medians = {name: round(statistics.median(values), 5) for name, values in {**rows, "embed_s": embed}.items()}
    return {"bench": "diffusers", **medians, "peak_mb": round(peak), "above_start_mb": round(peak - before), "load_s": round(load, 3),
            "size": size, "steps": args.steps, "threads": args.threads}


def run_json(command) -> dict:
    reply = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    if reply.returncode != 0:
        raise SystemExit(f"{command[0]} failed with {reply.returncode}")
    return json.loads(reply.stdout.strip().splitlines()[-1])


def newest(target: Path) -> Path:
    built = [p for p in target.glob("*/deps/text_to_image-*") if p.suffix == "" and p.stat().st_mode & 0o100]
    if not built:
        raise SystemExit(f"no bench `text_to_image` under {target}: build it with `cargo build --benches` first")
    return max(built, key=lambda p: p.stat().st_mtime)


def compare(family: str, pipeline: Path, clip: Path, args) -> list[dict]:
    folders = ["--pipeline", pipeline, "--clip", clip]
    options = [
        "--prompt", args.prompt, "--guidance", args.guidance, "--threads", args.threads,
        "--size", args.size, "--steps", args.steps if family == "embedded" else args.sd15_steps,
        "--warm-up", args.warm_up if family == "embedded" else 1, "--repeats", args.repeats if family == "embedded" else 3,
    ]
    theirs = run_json([sys.executable, __file__, "--measure", *folders, *options])
    # The embedded family lies in the Rust binary; its CLIP has no tokenizer of its own in the folder.
    ours = run_json([newest(args.target), *([] if family == "embedded" else folders), *options]) if args.target else {}
    print(f"\n{family}: {theirs['size']} px, {theirs['steps']} steps, {theirs['threads']} threads, float32")
    print(f"{'':<22}{'diffusers':>12}{'Argus':>12}{'ratio':>9}")
    rows = []
    for stage, name in STAGES.items():
        row = {"family": family, "stage": stage, "diffusers": theirs[stage], "argus": ours.get(stage)}
        row["ratio"] = round(ours[stage] / theirs[stage], 3) if ours and theirs[stage] else None
        rows.append(row)
        shown = lambda value: "–" if value is None else f"{value:.0f}" if stage.endswith("mb") else f"{value * 1e3:.1f} ms"
        print(f"{name:<22}{shown(row['diffusers']):>12}{shown(row['argus']):>12}{row['ratio'] or 0:>8.2f}×")
    return rows


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=["embedded", "sd15"], default=["embedded", "sd15"])
    parser.add_argument("--prompt", default="a red apple")
    parser.add_argument("--size", type=int, default=0, help="pixels; 0 for the model's own")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sd15-steps", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--target", type=Path, help="Cargo's target folder: run the Rust bench as well")
    parser.add_argument("--save", type=Path, help="write all rows here, as JSON")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--pipeline", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--clip", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)))
        return
    rows = []
    if "embedded" in args.families:
        rows += compare("embedded", here / "../weights/argus-tiny", here / "../weights/clip", args)
    if "sd15" in args.families:
        with tempfile.TemporaryDirectory() as folder:
            write_sd15(Path(folder))
            rows += compare("sd15", Path(folder), Path(folder) / "clip", args)
    if args.save:
        args.save.write_text(json.dumps({"machine": platform.machine(), "threads": args.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
