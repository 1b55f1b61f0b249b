#!/bin/sh
# Makes the embedded models from nothing: data, tokenizer and CLIP, autoencoder, UNet, text encoder, ControlNet, inpainting UNet,
# export, measurements, fixtures. Time of each stage in seconds: CLIP_SECONDS, VAE_SECONDS, DECODER_SECONDS, UNET_SECONDS,
# GROW_SECONDS, TEXT_SECONDS, CONTROLNET_SECONDS, INPAINT_SECONDS. PYTHON names the interpreter of an environment with
# requirements.txt; without it, one is made in .venv.
set -eu
cd "$(dirname "$0")"

if [ -z "${PYTHON:-}" ]; then
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/pip install --quiet -r requirements.txt
    PYTHON=.venv/bin/python
fi
command -v npm >/dev/null || { echo "train.sh needs npm on the PATH (Debian: apt install npm)" >&2; exit 1; }

[ -f data/pictures.npy ] || "$PYTHON" prepare_data.py
"$PYTHON" train_clip.py --seconds "${CLIP_SECONDS:-900}"
"$PYTHON" train_vae.py --seconds "${VAE_SECONDS:-2400}"
"$PYTHON" train_vae.py --vae out/vae --freeze-encoder --seconds "${DECODER_SECONDS:-1200}"
"$PYTHON" train_unet.py --seconds "${UNET_SECONDS:-14400}"
"$PYTHON" grow_vae.py --seconds "${GROW_SECONDS:-1500}"
"$PYTHON" train_text.py --seconds "${TEXT_SECONDS:-1080}"
"$PYTHON" train_controlnet.py --seconds "${CONTROLNET_SECONDS:-3300}"
"$PYTHON" train_inpaint.py --seconds "${INPAINT_SECONDS:-2400}"
"$PYTHON" export.py
"$PYTHON" evaluate.py | tee out/evaluation.json
"$PYTHON" fixtures.py
