#!/usr/bin/env bash
# Train on a Kubernetes (GKE) cluster, one pod for each host: launch/gke.sh [--dry-run] run|logs|delete [-- TRAIN_FLAG...]
# Settings: CONFIG, TASK, WORKDIR (common.sh; below the claim's mount /mnt/shared); NAME of the job; IMAGE with this
# repository installed at /dualspec_jax; HOSTS (2), RESOURCE (nvidia.com/gpu or google.com/tpu), COUNT (8) of it per host;
# CLAIM (shared, a ReadWriteMany volume claim); SELECTOR, node labels such as "cloud.google.com/gke-tpu-topology: 4x8",
# separated by commas, without quotes (the space after the colon may be left out: labels hold no colons). A pod that is
# evicted gets 180 seconds to save; Kubernetes starts it again, up to 100 times. logs: those of process 0.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

parse "run logs delete" "$@"
setting NAME
check NAME "[a-z0-9-]+" "of lower-case letters, digits and -"
HOSTS=${HOSTS:-2} RESOURCE=${RESOURCE:-nvidia.com/gpu} COUNT=${COUNT:-8} CLAIM=${CLAIM:-shared} SELECTOR=${SELECTOR:-}

manifest() {
  local argument selector
  selector=$(sed -E 's/([^:, ]+): *([^:, ]+)/"\1": "\2"/g' <<< "$SELECTOR")
  train_command python
  cat <<YAML
apiVersion: v1
kind: Service
metadata: {name: "$NAME"}
spec: {clusterIP: None, selector: {job-name: "$NAME"}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: "$NAME"}
spec:
  completions: $HOSTS
  parallelism: $HOSTS
  completionMode: Indexed
  backoffLimit: 100
  template:
    spec:
      subdomain: "$NAME"
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 180
      nodeSelector: {$selector}
      containers:
        - name: train
          image: "$IMAGE"
          workingDir: /dualspec_jax
          env:
            - {name: JAX_COORDINATOR_ADDRESS, value: "$NAME-0.$NAME:8476"}
            - {name: JAX_NUM_PROCESSES, value: "$HOSTS"}
            - name: JAX_PROCESS_ID
              valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
          command:
YAML
  for argument in "${train[@]}"; do
    if [[ $argument == *[[:cntrl:]]* ]]; then fail "$(printf %q "$argument"): an argument must be one line"; fi
    printf "            - '%s'\n" "${argument//\'/\'\'}"
  done
  cat <<YAML
          resources: {limits: {$RESOURCE: $COUNT}}
          volumeMounts: [{name: shared, mountPath: /mnt/shared}]
      volumes: [{name: shared, persistentVolumeClaim: {claimName: "$CLAIM"}}]
YAML
}

case $action in
  run)
    setting WORKDIR
    setting IMAGE
    check WORKDIR "/mnt/shared/.+" "below /mnt/shared"
    check HOSTS "[1-9][0-9]*" "a positive integer"
    check COUNT "[1-9][0-9]*" "a positive integer"
    label="[A-Za-z0-9._/-]+: *[A-Za-z0-9._-]+"
    check SELECTOR "($label(, *$label)*)?" "labels KEY: VALUE without quotes, separated by commas"
    for variable in IMAGE RESOURCE CLAIM; do check "$variable" "[A-Za-z0-9._/:@-]+" "a name without spaces and quotes"; done
    yaml=$(manifest)
    echo "$yaml"
    run kubectl apply -f - <<< "$yaml"
    ;;
  logs)
    no_flags
    run kubectl logs --follow --tail 100 -l "batch.kubernetes.io/job-name=$NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete)
    no_flags
    run kubectl delete --ignore-not-found "job/$NAME" "service/$NAME"
    ;;
  *) fail "no such action: $action" ;;
esac
