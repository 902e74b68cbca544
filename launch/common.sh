# shellcheck shell=bash
# Sourced by the launch scripts. Settings are environment variables, so that one file of exports describes an experiment:
#   CONFIG (configs/base.py), TASK (diffusion), WORKDIR (a folder that every host sees under this path).
# `--dry-run` prints the commands and runs none. What follows `--` goes to dualspec_jax.train as it is.
# "${a[@]+"${a[@]}"}": the Bash of macOS (3.2) takes an empty array for an unset variable.

CONFIG=${CONFIG:-configs/base.py}
TASK=${TASK:-diffusion}
dry_run=false
action=
extra=()

fail() {
  echo "error: $*" >&2
  exit 2
}

# parse ACTIONS ARGUMENT...: set dry_run, action (one of ACTIONS, or none where ACTIONS is empty) and extra.
parse() {
  local actions=$1 known word
  local usage="usage: ${0##*/} [--dry-run] ${actions// /|} [-- TRAIN_FLAG...]"
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
        known=false
        for word in $actions; do
          if [[ $1 == "$word" ]]; then known=true; fi
        done
        if [[ -n $action ]] || ! $known; then fail "unexpected argument '$1'; $usage"; fi
        action=$1
        ;;
    esac
    shift
  done
  if [[ -n $actions && -z $action ]]; then fail "no action; $usage"; fi
}

# no_flags: fail where the action got flags, which only training takes.
no_flags() {
  if ((${#extra[@]})); then fail "$action takes no flags after --"; fi
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
  train=("$1" -m dualspec_jax.train --config "$CONFIG" --task "$TASK" --workdir "$WORKDIR" ${extra[@]+"${extra[@]}"})
}

# setting NAME: fail unless the environment variable is set.
setting() {
  if [[ -z ${!1:-} ]]; then fail "set $1 (see the head of ${0##*/})"; fi
}

# check NAME PATTERN RULE: fail unless all of the variable matches the regular expression.
check() {
  local pattern="^($2)\$"
  if [[ ! ${!1} =~ $pattern ]]; then fail "$1 = $(printf %q "${!1}"): must be $3"; fi
}
