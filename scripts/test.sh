#!/usr/bin/env bash
# Set up and run every check: format, lint, types, tests. Extra words go to pytest.
#
#   bash scripts/test.sh
#   bash scripts/test.sh tests/moe -k schedule
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"

ruff format --check .
ruff check .
mypy
if ! python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  set -- -m "not gpu" "$@"
fi
# Slow files begin (tests/conftest.py); xdist would begin with those of many tests.
exec pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
