#!/usr/bin/env bash
# Whether a GPU gives the CPU's answers, and how long every part takes on it: under eight minutes.
#
#     benchmarks/gpu.sh                  on the GPU
#     benchmarks/gpu.sh --device cpu     a dry run with small sizes, where there is none
#
# Exit status 1 where an answer differs by more than the tolerance beside it, a step of training waits for the GPU, or
# it takes more than 1.1 times as long as a plain PyTorch loop.
set -euo pipefail
cd "$(dirname "$0")/.."
exec timeout 480 "${PYTHON:-python}" -m benchmarks.gpu "$@"
