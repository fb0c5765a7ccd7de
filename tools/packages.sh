#!/usr/bin/env bash
# packages.sh NAME...: system packages, installed when root on apt, otherwise named (status 2).
set -euo pipefail
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq "$@" >/dev/null
else
  echo "robosteer: missing system packages: $*; install them, e.g. sudo apt-get install $*" >&2
  exit 2
fi
