#!/usr/bin/env bash
# Tests and measures our engines on a machine with one NVIDIA GPU, Python and torch, and no network: see docs/gpu_run.md.
#
#   benchmarks/gpu.sh [--work DIR] [--results DIR] [--wheels DIR] [--minutes 9] [--size full|small|tiny]
#                     [--device cuda|cpu] [--again STEP] [--list] [--table] [STEP ...]
#
# It installs nothing: links turn our folders into the package pplex, and wheels are unpacked beside them. --wheels adds a
# load of carried wheels. While parts of a wheel are missing, only steps named on the command line run.
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
    [ -n "$named" ] || { echo "Parts of wheels are missing. Call it again with the next load." && exit 0; }
  }
fi

for package in bench cli doctor engines export measure runtime server validate; do
  ln -sfn "$repository/$package" "$work/links/pplex/$package"
done
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$repository/pyproject.toml")
described=$work/links/pplex_export-$version.dist-info # the code looks up its version by this name
mkdir -p "$described" && printf 'Metadata-Version: 2.1\nName: pplex-export\nVersion: %s\n' "$version" >"$described/METADATA"

# Carried wheels come before installed packages: onnxruntime-gpu and onnxruntime have the same module name.
export PYTHONPATH=$work/wheels/site:$work/links${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export HF_HUB_OFFLINE=1 TQDM_MININTERVAL=10
installed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
libraries=$({ find "$installed/nvidia" "$work/wheels/site/nvidia" -name '*.so*' -printf '%h\n' 2>/dev/null || true; } | sort -u | paste -sd:)
[ -z "$libraries" ] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

cd "$repository"
exec "$python" benchmarks/gpu.py --work "$work" --results "$results" ${rest[@]+"${rest[@]}"}
