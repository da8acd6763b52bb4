#!/usr/bin/env bash
# What is true of our engines on a machine with one NVIDIA GPU, Python and torch, and no network: docs/gpu_run.md.
#
#   benchmarks/gpu.sh [--work DIR] [--results DIR] [--wheels DIR] [--minutes 9] [--size full|small|tiny]
#                     [--device cuda|cpu|stand-in] [--again STEP] [--list] [--table] [STEP ...|load-0]
#
# Nothing is installed: links make our folders the package pplex, wheels are unpacked beside it. With --wheels it takes in
# what was carried. While some of it is still to come, it runs only the steps that are named, or those that need no wheel.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3} work=${TMPDIR:-/tmp}/pplex-gpu results=gpu-results wheels="" rest=() named=""
while [ $# -gt 0 ]; do
  case $1 in
  --work | --results | --wheels) declare "${1#--}=${2:?$1 needs a folder}" && shift 2 ;;
  --minutes | --size | --device | --again) rest+=("$1" "${2:?$1 needs a value}") && shift 2 ;;
  --*) rest+=("$1") && shift ;;
  *) rest+=("$1") && named=1 && shift ;;
  esac
done
mkdir -p "$work/links/pplex" "$work/wheels/site" "$results"
work=$(cd "$work" && pwd) results=$(cd "$results" && pwd)

if [ -n "$wheels" ]; then
  "$python" "$repository/benchmarks/gpu_wheels.py" "$wheels" "$work/wheels" || {
    code=$?
    [ "$code" = 3 ] || exit "$code"
    [ -n "$named" ] || rest+=(load-0)
    echo "Call it again with the next load." >&2
  }
fi

for typed in "$repository"/*/py.typed; do # each of our packages has this file
  package=$(dirname "$typed") && ln -sfn "$package" "$work/links/pplex/$(basename "$package")"
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repository/pyproject.toml")
described=$work/links/pplex_export-$version.dist-info # our version is asked for by name
mkdir -p "$described" && printf 'Metadata-Version: 2.1\nName: pplex-export\nVersion: %s\n' "$version" >"$described/METADATA"

# What was carried goes before what is installed: onnxruntime-gpu and onnxruntime have one name.
export PYTHONPATH=$work/wheels/site:$work/links${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export HF_HUB_OFFLINE=1 TQDM_MININTERVAL=10
installed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libraries=$({ find "$installed/nvidia" "$work/wheels/site/nvidia" -name '*.so*' -printf '%h\n' 2>/dev/null || true; } | sort -u | paste -sd:)
[ -z "$libraries" ] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

cd "$repository"
exec "$python" benchmarks/gpu.py --work "$work" --results "$results" ${rest[@]+"${rest[@]}"}
