#!/usr/bin/env bash
# OSMesa (MuJoCo without a screen) and Chromium (browser tests).
set -euo pipefail
missing=()
ldconfig -p | grep -qE 'libOSMesa\.so|libEGL\.so' || missing+=(libosmesa6)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
[ ${#missing[@]} -eq 0 ] && exit 0
bash "$(dirname "$0")/packages.sh" "${missing[@]}" || {
  status=$?
  [[ " ${missing[*]} " == *" libosmesa6 "* || $status != 2 ]] && exit $status || exit 0  # Chromium is for browser tests only
}
