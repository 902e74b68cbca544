#!/usr/bin/env bash
# Train the networks that judge clips (event classifier, localiser) and put them into the package:
# launch/train_judges.sh [WORKDIR]. WORKDIR/tfds holds the data set of configs/embedded.py (see train_embedded.sh).
# Needs pip install ".[data]" and DUALSPEC_DATA=ROOT (hrtf/*.sofa). The same command again goes on where it stopped.
set -euo pipefail

WORKDIR=${1:-runs/embedded}
DATA=${DUALSPEC_DATA:?set DUALSPEC_DATA to the folder that holds events/ and hrtf/}
PYTHON=${PYTHON:-python}
CONFIG=configs/embedded.py

WORKDIR=$(cd "$WORKDIR" && pwd)
DATA=$(cd "$DATA" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
HEADS=("$DATA"/hrtf/*.sofa)

"$PYTHON" -m dualspec_jax.train --config "$CONFIG" --task classifier --workdir "$WORKDIR"
"$PYTHON" -m dualspec_jax.train --config "$CONFIG" --task localiser --workdir "$WORKDIR" \
  --config.localiser.hrtf="${HEADS[0]}"
"$PYTHON" -m dualspec_jax.export_judges --workdir "$WORKDIR" --out dualspec_jax/evaluation_models
"$PYTHON" -m dualspec_jax.localiser_report --data "$DATA"
