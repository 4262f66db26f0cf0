#!/usr/bin/env bash
# Everything that is to be done on a machine with a GPU: build, tests, measurements, sanitizer, counters. See docs/gpu.md.
# Needs a PyTorch that sees the GPU, and no network. STEPS="build bench" selects; PYTHON names another Python.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-}
if [ -z "$python" ]; then
  if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
unset PYTHONSAFEPATH
exec "$python" -m benchmarks.gpu "$@"
