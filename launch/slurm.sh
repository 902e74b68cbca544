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
# `launch/slurm.sh --dry-run` prints the command of the job. Submit it from the repository's folder, which all nodes see.
# Settings: CONFIG, TASK, WORKDIR (common.sh; runs/base in that folder), PYTHON (python).
# Three minutes before the end, and at a pre-emption, the processes get SIGTERM, save and leave with status 143; the job
# then goes back into the queue and continues from there.
set -euo pipefail
folder=${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..} # SLURM runs a copy of this script from its own folder
if [[ ! -f $folder/launch/common.sh ]]; then
  echo "error: SLURM_SUBMIT_DIR = $folder: must be the repository's folder; submit from there: sbatch launch/slurm.sh" >&2
  exit 2
fi
cd "$folder"
# shellcheck source=launch/common.sh
source launch/common.sh

WORKDIR=${WORKDIR:-runs/base}
parse "" "$@"
train_command "${PYTHON:-python}"
status=0
# Since 22.05 srun does not take the number of CPUs over from sbatch.
run env DUALSPEC_DISTRIBUTED=auto srun --kill-on-bad-exit=1 --cpus-per-task "${SLURM_CPUS_PER_TASK:-8}" "${train[@]}" ||
  status=$?
if ((status == 143)); then
  run scontrol requeue "${SLURM_JOB_ID:?not inside a SLURM job}"
elif ((status)); then
  exit "$status"
fi
