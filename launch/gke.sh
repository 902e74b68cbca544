#!/usr/bin/env bash
# Train on a Kubernetes (GKE) cluster, one pod for each host: launch/gke.sh [--dry-run] run|logs|delete [-- TRAIN_FLAG...]
# Settings: CONFIG, TASK, WORKDIR (common.sh; below the claim's mount /mnt/shared); NAME of the job; IMAGE with this
# repository installed at /dualspec_jax; HOSTS (2), RESOURCE (nvidia.com/gpu or google.com/tpu), COUNT (8) of it per host;
# CLAIM (shared, a ReadWriteMany volume claim); SELECTOR, node labels such as "cloud.google.com/gke-tpu-topology: 4x8",
# separated by commas. A pod that is evicted gets 180 seconds to save; Kubernetes starts it again, up to 100 times.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

parse "run logs delete" "$@"
setting NAME

manifest() {
  local argument
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
  completions: ${HOSTS:-2}
  parallelism: ${HOSTS:-2}
  completionMode: Indexed
  backoffLimit: 100
  template:
    spec:
      subdomain: "$NAME"
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: 180
      nodeSelector: {${SELECTOR:-}}
      containers:
        - name: train
          image: "$IMAGE"
          workingDir: /dualspec_jax
          env:
            - {name: JAX_COORDINATOR_ADDRESS, value: "$NAME-0.$NAME:8476"}
            - {name: JAX_NUM_PROCESSES, value: "${HOSTS:-2}"}
            - name: JAX_PROCESS_ID
              valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
          command:
YAML
  for argument in "${train[@]}"; do printf "            - '%s'\n" "${argument//\'/\'\'}"; done
  cat <<YAML
          resources: {limits: {${RESOURCE:-nvidia.com/gpu}: ${COUNT:-8}}}
          volumeMounts: [{name: shared, mountPath: /mnt/shared}]
      volumes: [{name: shared, persistentVolumeClaim: {claimName: "${CLAIM:-shared}"}}]
YAML
}

case $action in
  run)
    setting IMAGE
    yaml=$(manifest)
    echo "$yaml"
    run kubectl apply -f - <<< "$yaml"
    ;;
  logs) run kubectl logs --follow --tail 100 "job/$NAME" ;;
  delete) run kubectl delete --ignore-not-found "job/$NAME" "service/$NAME" ;;
esac
