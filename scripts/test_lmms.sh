#!/usr/bin/env bash
# Run the tests of the lmms-eval adapter against lmms-eval itself. Extra words go to pytest.
#
#   bash scripts/test_lmms.sh
#
# The environment .venv/lmms holds what the extra `lmms` adds, or wants in other versions; all else
# it takes from .venv, which stays as it is. Made the first time, and when requirements.txt or
# pyproject.toml change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh

site_packages() {
  "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
}

venv=.venv/lmms
wanted=$(cat requirements.txt pyproject.toml | sha256sum)
if [[ ! -f $venv/installed.sha256 || "$(cat $venv/installed.sha256)" != "$wanted" ]]; then
  echo "test_lmms: installing lmms-eval into $venv (1 GB; a few minutes)"
  .venv/bin/python -m venv --clear "$venv"
  # What pip finds here it counts as installed, and leaves alone where it wants another version.
  site_packages .venv > "$(site_packages "$venv")/venv.pth"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check -e '.[lmms]'
  echo "$wanted" > "$venv/installed.sha256"
fi
exec "$venv/bin/python" -m pytest tests/eval/test_lmms.py "$@"
