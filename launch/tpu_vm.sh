#!/usr/bin/env bash
# Train on a Cloud TPU VM slice: launch/tpu_vm.sh [--dry-run] create|install|run|logs|stop|watch|delete [-- TRAIN_FLAG...]
#   create   make the slice            install  copy HEAD of this repository to all workers and install it there
#   run      start on all workers      logs     follow the log of worker 0        stop  SIGTERM: save and leave
#   watch    every WATCH_SECONDS (60): when the slice is pre-empted, delete it, create, install and run again
# Settings: CONFIG, TASK, WORKDIR (common.sh); NAME and ZONE of the slice; TYPE (v5litepod-32), VERSION (v2-alpha-tpuv5-lite),
# SPOT (1; 0 = on demand), NFS (host:/share, mounted at /mnt/shared; WORKDIR and the data belong there).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

parse "create install run logs stop watch delete" "$@"
setting NAME
setting ZONE
tpu=(gcloud compute tpus tpu-vm)
on_all=("${tpu[@]}" ssh "$NAME" --zone "$ZONE" --worker all --command)

create() {
  local spot=()
  if [[ ${SPOT:-1} == 1 ]]; then spot=(--spot); fi
  run "${tpu[@]}" create "$NAME" --zone "$ZONE" --accelerator-type "${TYPE:-v5litepod-32}" \
    --version "${VERSION:-v2-alpha-tpuv5-lite}" "${spot[@]}"
}

install() {
  local archive=${TMPDIR:-/tmp}/dualspec_jax.tar.gz
  run git archive --format tar.gz --output "$archive" HEAD
  run "${tpu[@]}" scp "$archive" "$NAME:dualspec_jax.tar.gz" --zone "$ZONE" --worker all
  run "${on_all[@]}" "mkdir -p dualspec_jax && tar -xzf dualspec_jax.tar.gz -C dualspec_jax && cd dualspec_jax && python3 -m venv .venv && .venv/bin/pip install -q '.[data,tpu]'"
  if [[ -n ${NFS:-} ]]; then
    run "${on_all[@]}" "sudo apt-get install -qq nfs-common && sudo mkdir -p /mnt/shared && sudo mount -t nfs $NFS /mnt/shared"
  fi
}

start() {
  train_command .venv/bin/python
  local quoted
  printf -v quoted '%q ' "${train[@]}"
  run "${on_all[@]}" "cd dualspec_jax && (DUALSPEC_DISTRIBUTED=auto setsid nohup $quoted>> train.log 2>&1 < /dev/null & echo \$! > train.pid)"
}

delete() {
  run "${tpu[@]}" delete "$NAME" --zone "$ZONE" --quiet
}

watch() {
  local describe=("${tpu[@]}" describe "$NAME" --zone "$ZONE" --format 'value(state)') state
  if $dry_run; then
    run "${describe[@]}"
    echo "# when it says PREEMPTED or TERMINATED:"
    delete
    create
    install
    start
    return
  fi
  while true; do
    state=$("${describe[@]}" || true)
    case $state in
      PREEMPTED | TERMINATED)
        echo "$NAME: $state"
        delete
        until create; do sleep "${WATCH_SECONDS:-60}"; done # there may be no capacity for a while
        install
        start
        ;;
      '') echo "$NAME: not found or not reachable" >&2 ;;
    esac
    sleep "${WATCH_SECONDS:-60}"
  done
}

case $action in
  create) create ;;
  install) install ;;
  run) start ;;
  logs) run "${tpu[@]}" ssh "$NAME" --zone "$ZONE" --worker 0 --command "tail -n 100 -F dualspec_jax/train.log" ;;
  stop) run "${on_all[@]}" "kill -TERM \$(cat dualspec_jax/train.pid)" ;;
  watch) watch ;;
  delete) delete ;;
esac
