#!/usr/bin/env bash
# Every check of the project, from nothing: an environment, the package with its development tools, then
# notebooks and package in step -> every notebook runs -> pytest.
#   bash tools/test.sh [--full] [other pytest arguments]
# LLMBUILDER_VENV  where the environment lives (default: .venv)      PYTHON  which Python makes it (default: python3)
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${LLMBUILDER_VENV:-.venv}
full=0
for a in "$@"; do if [ "$a" = --full ]; then full=1; fi; done
step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "environment in $venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: llmbuilder needs Python 3.11 or newer, $python is older; name another with PYTHON=..." >&2; exit 1; }
"$python" -m venv "$venv"
PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH
unset PYTHONPATH PYTHONHOME
python -m pip install -q -c constraints.txt torch   # first and pinned: a bare requirement may bring gigabytes of CUDA
python -m pip install -q -c constraints.txt -e '.[dev]'

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export LLMBUILDER_CACHE="$scratch/cache" MPLBACKEND=agg PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 WANDB_MODE=offline

failed=()   # every part runs, so that one run tells everything that is wrong

step "notebooks clean, package and README.md in step with them"
bash tools/check.sh || failed+=("tools/check.sh")

step "notebooks run"
# nbdev_test has no time limit, and says Success. even when it found nothing to run: so a limit, and a count
flags=(--n_workers 2 --do_print --timing)
if [ "$full" = 1 ]; then flags+=(--flags slow); else export LLMBUILDER_QUICK=1; fi
if timeout 1200 nbdev_test "${flags[@]}" </dev/null 2>&1 | tee "$scratch/notebooks.log"; then
    want=$(find nbs -name '*.ipynb' -not -path '*/.*' -not -path '*/_*' | wc -l)
    ran=$(grep -cE '^\S+\.ipynb: [0-9]+ secs$' "$scratch/notebooks.log" || true)
    echo "$ran of $want notebooks ran"
    [ "$want" -gt 0 ] && [ "$ran" -eq "$want" ] || failed+=("nbdev_test left notebooks out")
else
    failed+=("nbdev_test")
fi
unset LLMBUILDER_QUICK

step "pytest"
python -m pytest -q -rs --durations=10 "$@" </dev/null || failed+=("pytest")

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
