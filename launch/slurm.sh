#!/usr/bin/env bash
#SBATCH --job-name=dualspec_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
# Train on a SLURM cluster, one process for each GPU: sbatch --nodes 4 launch/slurm.sh [-- TRAIN_FLAG...]
# `launch/slurm.sh --dry-run` prints the command of the job. Settings: CONFIG, TASK, WORKDIR (common.sh), PYTHON (python).
# Three minutes before the end, and at a pre-emption, the processes get SIGTERM, save and leave with status 143; the job
# then goes back into the queue and continues from there.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
# shellcheck source=launch/common.sh
source launch/common.sh

parse "" "$@"
train_command "${PYTHON:-python}"
export DUALSPEC_DISTRIBUTED=auto
status=0
run srun --kill-on-bad-exit=1 "${train[@]}" || status=$?
if ((status == 143)); then
  run scontrol requeue "${SLURM_JOB_ID:?not inside a SLURM job}"
elif ((status)); then
  exit "$status"
fi
