#!/usr/bin/env bash
# make-venv.sh PYTHON DIRECTORY: a virtual environment. Debian's Python comes without what makes one.
set -euo pipefail
python=$1 directory=$2
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  bash "$(dirname "$0")/packages.sh" "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
fi
exec "$python" -m venv "$directory"
