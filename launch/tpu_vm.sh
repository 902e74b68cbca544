#!/usr/bin/env bash
# Train on a Cloud TPU VM slice: launch/tpu_vm.sh [--dry-run] create|install|run|logs|stop|watch|delete [-- TRAIN_FLAG...]
#   create   make the slice            install  copy HEAD of this repository to all workers and install it there
#   run      start on all workers      logs     follow the log of worker 0        stop  SIGTERM: save and leave
#   watch    every WATCH_SECONDS (60): do the next step towards a slice that trains, whatever failed before: create it
#            where there is none, delete it when it was pre-empted, install and run where no training runs
# Settings: CONFIG, TASK, WORKDIR (common.sh; run and watch need it); NAME and ZONE of the slice; TYPE (v5litepod-32),
# VERSION (v2-alpha-tpuv5-lite), SPOT (1; 0 = on demand), NFS (host:/share, mounted at /mnt/shared; WORKDIR and the data
# belong there), PYTHON (3.11: version or path on the workers; uv fetches it where the image has none).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

parse "create install run logs stop watch delete" "$@"
setting NAME
check NAME "[a-z0-9-]+" "of lower-case letters, digits and -"
setting ZONE
SPOT=${SPOT:-1}
check SPOT "0|1" "0 or 1"
case $action in
  run | watch) setting WORKDIR ;;
  *) no_flags ;;
esac
tpu=(gcloud compute tpus tpu-vm)
# A pre-empted worker does not close its connections: the flag ends a command that waits for it.
on_all=("${tpu[@]}" ssh "$NAME" --zone "$ZONE" --worker all --ssh-flag=-oServerAliveInterval=30 --command)
alive="pgrep -F train.pid -f dualspec_jax.train > /dev/null 2>&1" # the process of train.pid, while it is the training

create() {
  local spot=
  if [[ $SPOT == 1 ]]; then spot=--spot; fi
  run "${tpu[@]}" create "$NAME" --zone "$ZONE" --accelerator-type "${TYPE:-v5litepod-32}" \
    --version "${VERSION:-v2-alpha-tpuv5-lite}" ${spot:+"$spot"}
}

# install: steps joined by &&, for `watch` asks how it ended, which turns `set -e` off.
install() {
  local archive=${TMPDIR:-/tmp}/dualspec_jax-$NAME.tar.gz python share
  printf -v python %q "${PYTHON:-3.11}"
  printf -v share %q "${NFS:-}"
  run git archive --format tar.gz --output "$archive" HEAD &&
    run "${tpu[@]}" scp "$archive" "$NAME:dualspec_jax.tar.gz" --zone "$ZONE" --worker all &&
    run "${on_all[@]}" "mkdir -p dualspec_jax && tar -xzf dualspec_jax.tar.gz -C dualspec_jax && cd dualspec_jax && python3 -m pip install -q --upgrade --target .uv uv && .uv/bin/uv venv -q --allow-existing --python $python && .uv/bin/uv pip install -q '.[data,tpu]'" &&
    if [[ -n ${NFS:-} ]]; then
      run "${on_all[@]}" "mountpoint -q /mnt/shared || (sudo apt-get install -qq nfs-common && sudo mkdir -p /mnt/shared && sudo mount -t nfs $share /mnt/shared)"
    fi
}

start() {
  train_command .venv/bin/python
  local quoted
  printf -v quoted '%q ' "${train[@]}"
  run "${on_all[@]}" "cd dualspec_jax && if $alive; then echo 'error: the training runs already; stop it first' >&2; exit 1; fi && (DUALSPEC_DISTRIBUTED=auto setsid nohup $quoted>> train.log 2>&1 < /dev/null & echo \$! > train.pid)"
}

delete() {
  run "${tpu[@]}" delete "$NAME" --zone "$ZONE" --quiet
}

watch() {
  local describe=("${tpu[@]}" describe "$NAME" --zone "$ZONE" --format 'value(state)') state trains=false
  local ask=("${on_all[@]}" "cd dualspec_jax && $alive")
  if $dry_run; then
    run "${describe[@]}"
    echo "# PREEMPTED or TERMINATED:"
    delete
    echo "# NOT_FOUND:"
    create
    echo "# READY:"
    run "${ask[@]}"
    echo "# READY, and that failed:"
    install
    start
    return
  fi
  errors=$(mktemp)
  trap 'rm -f "$errors"' EXIT
  while true; do
    if ! state=$("${describe[@]}" 2> "$errors"); then
      state=UNREACHABLE
      if grep -q NOT_FOUND "$errors"; then state=NOT_FOUND; else cat "$errors" >&2; fi
    fi
    if [[ $state != READY ]]; then echo "$NAME: $state"; fi
    if [[ $state != READY && $state != UNREACHABLE ]]; then trains=false; fi
    case $state in
      PREEMPTED | TERMINATED) delete || true ;;
      NOT_FOUND) create || true ;; # there may be no capacity for a while
      READY)
        # Asked once for each time the slice gets ready: a training that ends by itself afterwards stays so.
        if ! $trains && { run "${ask[@]}" || { install && start; }; }; then trains=true; fi
        ;;
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
  *) fail "no such action: $action" ;;
esac
