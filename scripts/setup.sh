#!/usr/bin/env bash
# Make .venv and install the project into it. Does nothing the second time, until requirements.txt
# or pyproject.toml change.
#
#   bash scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/installed.sha256
wanted=$(cat requirements.txt pyproject.toml | sha256sum)
if [[ -f $stamp && "$(cat $stamp)" == "$wanted" ]]; then
  exit 0
fi

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "setup: Python 3.11 or newer is needed, $("$python" --version) found; set PYTHON=/path/to/python" >&2
  exit 1
}
echo "setup: installing into .venv (several GB with torch; a few minutes)"
# A venv that failed half-way has a python but no pip.
.venv/bin/python -m pip --version > /dev/null 2>&1 || "$python" -m venv --clear .venv
# Without prebuilt ops: DeepSpeed builds what a run needs when it needs it.
DS_BUILD_OPS=0 .venv/bin/python -m pip install -qq --disable-pip-version-check \
  -r requirements.txt -e '.[dev]'
echo "$wanted" > "$stamp"
