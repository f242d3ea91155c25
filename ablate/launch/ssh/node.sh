#!/usr/bin/env bash
# Everything that a launch does on a machine of a cluster: node.sh setup, versions, head, ...
# It lies beside node.env, token, constraints.txt, grid.yaml and the wheel. All processes that it starts, and their
# children, carries ABLATE_CLUSTER=$name-$id in its environment: by this mark they are found and ended, and no others.
set -u
here=$(cd "$(dirname "$0")" && pwd)
. "$here/node.env"  # name, id, wheel, extras, environment, python, port, ray_options
environment=${environment/#\~/$HOME}
mark=ABLATE_CLUSTER=$name-$id
session=/tmp/ray/ablate-$id  # short: sockets in it have paths of at most 107 characters
log=$here/$(hostname)

ours() {  # the pids of the cluster's processes on this machine: by the mark, by Ray's folder in their command line, or,
  local folder pid words  # as Ray's own titles overwrite both, by files that they hold open in that folder
  for folder in /proc/[0-9]*; do
    pid=${folder#/proc/}
    [ "$pid" = $$ ] && continue
    [ "$(sed -n 's/^State:\t\(.\).*/\1/p' "$folder/status")" = Z ] && continue
    words=$(tr '\0' ' ' <"$folder/cmdline")
    if grep -qzsx "$mark" "$folder/environ" || [[ $words == *"$session/"* ]] ||
      { [[ $words == ray::* ]] && [ -n "$(find "$folder/fd" -lname "$session/*" -print -quit)" ]; }; then
      echo "$pid"
    fi
  done 2>/dev/null
}

marked() {  # COMMAND...: with the mark, the cluster's token, and Ray's metrics, which anybody could read, switched off
  export "${mark?}" RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$here/token" RAY_USAGE_STATS_ENABLED=0
  export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=65536 DASHBOARD_METRIC_PORT=65536  # no such port
  export RAY_gcs_server_port_wait_time_s=120  # Ray's own 30 s for its GCS to come up are short on a busy machine
  export RAY_JOB_STOP_WAIT_TIME_S=120 PATH="$environment/bin:$PATH"
  unset RAY_AUTH_TOKEN RAY_ADDRESS OMP_NUM_THREADS
  ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
  "$@"
}

start() {  # OPTION...: of `ray start`; 200 MB of objects are plenty, as stages exchange files
  marked "$environment/bin/python" -m ray.scripts.scripts start "$@" --object-store-memory=200000000 \
    --disable-usage-stats --dashboard-agent-listen-port=0 $ray_options
}

case ${1-} in
setup)  # an environment of its own with the wheel in it; machines that share a home take turns
  exec 9>"$here/setup.lock"
  flock 9
  if ! [ -x "$environment/bin/python" ]; then
    "$python" -m venv "$environment" || exit 1
  fi
  stamp=$environment/.ablate-$(cat "$here/$wheel" "$here/constraints.txt" | sha256sum | cut -c1-16)
  [ -e "$stamp" ] && exit 0
  pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" -c "$here/constraints.txt" "$here/$wheel[$extras]" || exit 1
  "${pip[@]}" --no-deps --force-reinstall "$here/$wheel" || exit 1  # the same version may be other code
  rm -f "$environment"/.ablate-*
  touch "$stamp"
  ;;
versions)  # one line: Python, Ray and ablate of this machine
  "$environment/bin/python" - <<'PY'
import platform
from importlib.metadata import version

print(f"Python {'.'.join(platform.python_version_tuple()[:2])}, Ray {version('ray')}, ablate {version('ablate')}")
PY
  ;;
head)  # ADDRESS [option...]: the head of the Ray cluster, in the background
  address=$2
  shift 2
  start --head ${address:+--node-ip-address="$address"} --port="$port" --temp-dir="$session" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) "$@" \
    >"$log-head.log" 2>&1
  ;;
worker)  # HEAD ADDRESS [option...]: joins the cluster, in the background
  start --address="$2:$port" ${3:+--node-ip-address="$3"} "${@:4}" >"$log-worker.log" 2>&1
  ;;
keep-worker)  # HEAD ADDRESS [option...]: joins in the background, and again after it was cut off
  [ -n "$(ours)" ] && exit 0  # it is at it already
  marked setsid "$0" join-again "${@:2}" </dev/null >"$log-worker.log" 2>&1 &
  ;;
join-again)  # HEAD ADDRESS [option...]: what keep-worker starts; it gives up after an hour without a head
  joined=$SECONDS
  while [ $((SECONDS - joined)) -lt 3600 ]; do
    began=$SECONDS
    start --address="$2:$port" ${3:+--node-ip-address="$3"} --block "${@:4}"
    [ $((SECONDS - began)) -gt 60 ] && joined=$SECONDS
    sleep 5
  done
  ;;
driver)  # run --grid ... --out ...: starts the run's driver again if it is killed; all its other ends are ends
  shift
  trap 'ending=1' TERM
  quick=0
  while :; do
    began=$SECONDS
    "$environment/bin/ablate" "$@" --address "$RAY_ADDRESS"
    code=$?
    case $code in 134 | 137 | 139) ;; *) exit $code ;; esac
    [ -n "${ending-}" ] && exit $code
    quick=$((SECONDS - began < 120 ? quick + 1 : 0))
    [ $quick -ge 5 ] && exit $code
    echo "the driver was killed (exit code $code); it starts again in 10 s and goes on"
    sleep 10
  done
  ;;
left)  # the processes of the cluster on this machine, a line each
  for pid in $(ours); do
    ps -o pid=,args= -p "$pid" | cut -c1-120
  done
  ;;
stop)  # ends the processes of the cluster on this machine; prints those that are left
  pids=$(ours)
  [ -n "$pids" ] && kill -TERM $pids 2>/dev/null
  for _ in $(seq 20); do
    pids=$(ours)
    [ -z "$pids" ] && break
    sleep 0.5
  done
  for _ in $(seq 20); do
    pids=$(ours)
    [ -z "$pids" ] && break
    kill -KILL $pids 2>/dev/null
    sleep 0.5
  done
  rm -rf "$session"
  "$0" left
  ;;
*)
  echo "usage: node.sh setup|versions|head|worker|keep-worker|driver|left|stop" >&2
  exit 2
  ;;
esac
