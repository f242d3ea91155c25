#!/usr/bin/env bash
# All that needs a GPU, in under 25 minutes and into one file: benches of the shipped search spaces, in both precisions
# and on another revision too where one is given, and the tests marked gpu. Ray need not be there.
# Usage: tests/benchmarks/gpu.sh FILE.json [REVISION]
#   FILE.json   what was measured; written anew after every step, so that an early end leaves what there is
#   REVISION    a git revision to measure before this one, such as main; it must have `ablate bench`
# A bench out of it, for `ablate plan --bench recommended.json`:
#   python -c "import json; print(json.dumps(json.load(open('FILE.json'))['steps']['recommended']['bench']))" > recommended.json
# PYTHON (default python) is the interpreter; MINUTES (default 24) is how long all of it may take; DEVICE (default cuda)
# is what the benches compute on: cpu tries the script where there is no GPU.
set -uo pipefail
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,10s/^# \?//p' "$0" >&2
  exit 2
fi
case $1 in /*) out=$1 ;; *) out=$PWD/$1 ;; esac
before=${2:-}
python=${PYTHON:-python}
minutes=${MINUTES:-24}
device=${DEVICE:-cuda}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"; [ -n "$before" ] && git -C "$root" worktree prune' EXIT
start=$(date +%s)

left() {  # seconds of the whole that are left
  awk -v m="$minutes" -v start="$start" -v now="$(date +%s)" 'BEGIN { printf "%.0f", start + 60 * m - now }'
}

step() {  # step NAME FOLDER COMMAND...: run a command in a folder, note its end and what it printed
  local name=$1 folder=$2 rc begin
  shift 2
  begin=$(date +%s)
  echo "== $name ($(left) s left)"
  if [ "$(left)" -lt 30 ]; then
    echo "left out: no time is left" >"$work/$name.txt"
    rc=null
  else
    (cd "$folder" && PYTHONPATH=$folder${PYTHONPATH:+:$PYTHONPATH} timeout --kill-after=10 "$(left)" "$@") >"$work/$name.txt" 2>"$work/$name.err"
    rc=$?
    [ $rc -eq 0 ] || tail -n 5 "$work/$name.err"
  fi
  echo "$name $rc $(($(date +%s) - begin))" >>"$work/steps"
  gather
}

gather() {  # write the file: every step with its exit code, seconds, text, and figures where it left some
  "$python" - "$work" "$out" <<'PY'
import json
import pathlib
import sys

work, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
steps = {}
for line in (work / "steps").read_text().splitlines():
    name, code, seconds = line.split()
    figures, errors = work / f"{name}.json", work / f"{name}.err"
    steps[name] = {
        "exit_code": None if code == "null" else int(code),
        "seconds": int(seconds),
        "text": (work / f"{name}.txt").read_text().splitlines(),
        "errors": errors.read_text().splitlines()[-20:] if errors.is_file() else [],
        "bench": json.loads(figures.read_text()) if figures.is_file() else None,
    }
draft = out.with_name(f".{out.name}.part")
draft.write_text(json.dumps({"format": "ablate gpu", "version": 1, "steps": steps}, indent=1) + "\n")
draft.replace(out)
PY
}

bench() {  # bench NAME FOLDER SHARE GRID [OPTIONS]: a bench that takes a share of the whole, in hundredths
  local name=$1 folder=$2 share=$3 grid=$4
  shift 4
  step "$name" "$folder" "$python" -m ablate bench --grid "$grid" --device "$device" --json "$work/$name.json" \
    --minutes "$(awk -v m="$minutes" -v s="$share" 'BEGIN { print m * s / 100 }')" "$@"
}

cd "$root" || exit 1
step machine "$root" "$python" -c 'import platform, torch
print(platform.platform(), platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda)
print("\n".join(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())) or "no GPU")'
bench recommended "$root" 18 recommended
bench recommended-bf16 "$root" 12 recommended --set precision=bf16
bench recommended-launched "$root" 14 recommended --set precision=bf16 --cuda-graphs --compile
bench paper "$root" 10 paper
bench matched "$root" 8 matched
bench cephalo-cpu "$root" 6 cephalo-cpu
if [ -n "$before" ]; then
  git worktree add --quiet --detach "$work/before" "$before" || exit 1
  bench before-paper "$work/before" 16 paper
fi
mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py)  # others import Ray
step tests "$root" "$python" -m pytest -q -o addopts= -W ignore::pytest.PytestConfigWarning -p no:cacheprovider \
  -m "gpu and not slow" "${files[@]}"
echo "$out"
"$python" - "$out" <<'PY'
import json
import sys

steps = json.load(open(sys.argv[1]))["steps"]
for name, step in steps.items():
    print(f"{name:<16} exit code {step['exit_code']}, {step['seconds']} s")
failed = [name for name, step in steps.items() if step["exit_code"] != 0]
sys.exit(f"not done: {', '.join(failed)}" if failed else 0)
PY
