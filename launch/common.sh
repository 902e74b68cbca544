# shellcheck shell=bash
# Sourced by the launch scripts. Settings are environment variables, so that one file of exports describes an experiment:
#   CONFIG (configs/base.py), TASK (diffusion), WORKDIR (a folder that every host sees under this path).
# `--dry-run` prints the commands and runs none. What follows `--` goes to dualspec_jax.train as it is.

CONFIG=${CONFIG:-configs/base.py}
TASK=${TASK:-diffusion}
WORKDIR=${WORKDIR:-runs/base}
dry_run=false
action=
extra=()

# parse ACTIONS ARGUMENT...: set dry_run, action (one of ACTIONS, or none where ACTIONS is empty) and extra.
parse() {
  local actions=$1
  shift
  while (($#)); do
    case $1 in
      --dry-run) dry_run=true ;;
      --)
        shift
        extra=("$@")
        break
        ;;
      *)
        if [[ -n $action || " $actions " != *" $1 "* ]]; then
          echo "error: unexpected argument '$1'; usage: ${0##*/} [--dry-run] ${actions// /|} [-- TRAIN_FLAG...]" >&2
          exit 2
        fi
        action=$1
        ;;
    esac
    shift
  done
  if [[ -n $actions && -z $action ]]; then
    echo "error: no action; usage: ${0##*/} [--dry-run] ${actions// /|} [-- TRAIN_FLAG...]" >&2
    exit 2
  fi
}

# run COMMAND...: print the command, quoted for a shell, and run it unless this is a dry run.
run() {
  printf '%q ' "$@"
  printf '\n'
  if ! $dry_run; then "$@"; fi
}

# train_command PYTHON: set `train` to the training command.
train_command() {
  # shellcheck disable=SC2034 # read by the scripts
  train=("$1" -m dualspec_jax.train --config "$CONFIG" --task "$TASK" --workdir "$WORKDIR" "${extra[@]}")
}

# setting NAME: fail unless the environment variable is set.
setting() {
  if [[ -z ${!1:-} ]]; then
    echo "error: set $1 (see the head of ${0##*/})" >&2
    exit 2
  fi
}
