#!/usr/bin/env bash
# Train on all devices of one machine: launch/local.sh [--dry-run] [-- TRAIN_FLAG...]
# Settings: CONFIG, TASK, WORKDIR (common.sh; runs/base), PYTHON (python). The same command again goes on from the last
# checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

WORKDIR=${WORKDIR:-runs/base}
parse "" "$@"
train_command "${PYTHON:-python}"
run env DUALSPEC_DISTRIBUTED=off "${train[@]}"
