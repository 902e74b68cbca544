#!/usr/bin/env bash
# Train the embedded model from sound clips to a measured bundle: launch/train_embedded.sh [WORKDIR]
# Needs pip install ".[data]" and DUALSPEC_DATA=ROOT (events/metadata.csv, hrtf/*.sofa). The same command again goes on
# where the last one stopped: every stage that is complete is passed over or ends at once. PYTHON chooses the interpreter.
set -euo pipefail

WORKDIR=${1:-runs/embedded}
DATA=${DUALSPEC_DATA:?set DUALSPEC_DATA to the folder that holds events/ and hrtf/}
PYTHON=${PYTHON:-python}
CONFIG=configs/embedded.py

mkdir -p "$WORKDIR"
WORKDIR=$(cd "$WORKDIR" && pwd)
DATA=$(cd "$DATA" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

train() {
  "$PYTHON" -m dualspec_jax.train --config "$CONFIG" --task "$1" --workdir "$WORKDIR"
}

"$PYTHON" -m data.spatial_audio.build --config spatial_audio_6k --data_dir "$WORKDIR/tfds" --manual_dir "$DATA"
train text_encoder
train mel_vae
train stft_vae
"$PYTHON" -m dualspec_jax.encode --config "$CONFIG" --workdir "$WORKDIR"
train diffusion
if [[ ! -d $WORKDIR/bundle ]]; then
  "$PYTHON" -m dualspec_jax.export --config "$CONFIG" --workdir "$WORKDIR" --out "$WORKDIR/bundle" --data "$DATA"
fi
"$PYTHON" -m dualspec_jax.evaluate --bundle "$WORKDIR/bundle" --data "$DATA" --out "$WORKDIR/evaluation"
