#!/usr/bin/env bash
# Train the embedded model from sound clips to a measured bundle: launch/train_embedded.sh [WORKDIR]
# Needs pip install ".[data,rooms]" and DUALSPEC_DATA=ROOT (events/metadata.csv, hrtf/*.sofa). The same command again goes on
# where the last one stopped: every stage that is complete is passed over or ends at once. PYTHON chooses the interpreter.
# WORKDIR/times.tsv gets a line per stage: name, seconds of this run, exit status, devices.
set -euo pipefail

WORKDIR=${1:-runs/embedded}
DATA=${DUALSPEC_DATA:?set DUALSPEC_DATA to the folder that holds events/ and hrtf/}
PYTHON=${PYTHON:-python}
CONFIG=configs/embedded.py

mkdir -p "$WORKDIR"
WORKDIR=$(cd "$WORKDIR" && pwd)
DATA=$(cd "$DATA" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DEVICES=$("$PYTHON" -c 'import jax; print(jax.device_count(), jax.devices()[0].device_kind)')

stage() {
  local name=$1 start=$SECONDS status=0
  shift
  "$PYTHON" -m "$@" || status=$?
  printf '%s\t%d\t%d\t%s\n' "$name" $((SECONDS - start)) "$status" "$DEVICES" >>"$WORKDIR/times.tsv"
  return "$status"
}

train() {
  stage "$1" dualspec_jax.train --config "$CONFIG" --task "$1" --workdir "$WORKDIR" "${@:2}"
}

stage build data.spatial_audio.build --config spatial_audio_6k --data_dir "$WORKDIR/tfds" --manual_dir "$DATA"
stage build_rooms data.spatial_audio.build --config spatial_audio_rooms --data_dir "$WORKDIR/tfds" --manual_dir "$DATA"
train text_encoder
train reader
train mel_vae
train mel_decoder
train stft_vae
train stft_decoder --config.feeding.mix='(("spatial_audio/spatial_audio_rooms:1.0.0", 0.5),)'
train vocoder
train listener
stage encode dualspec_jax.encode --config "$CONFIG" --workdir "$WORKDIR"
train event_guide
train diffusion
if [[ ! -d $WORKDIR/bundle ]]; then
  stage export dualspec_jax.export --config "$CONFIG" --workdir "$WORKDIR" --out "$WORKDIR/bundle" --data "$DATA"
fi
stage evaluate dualspec_jax.evaluate --bundle "$WORKDIR/bundle" --data "$DATA" --out "$WORKDIR/evaluation"
