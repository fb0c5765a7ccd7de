#!/usr/bin/env bash
# OSMesa (MuJoCo without a screen) and Chromium (browser tests): installed when root on apt, otherwise named.
set -euo pipefail
missing=()
ldconfig -p | grep -qE 'libOSMesa\.so|libEGL\.so' || missing+=(libosmesa6)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq "${missing[@]}" >/dev/null
else
  echo "robosteer: missing system packages: ${missing[*]}; install them, e.g. sudo apt-get install ${missing[*]}" >&2
  [[ " ${missing[*]} " == *" libosmesa6 "* ]] && exit 2 || exit 0  # Chromium is for browser tests only
fi
