#!/usr/bin/env bash
# Installs the services that tests need (Slurm, PostgreSQL, Chromium), those that are missing. On Debian, as root.
set -euo pipefail

missing=()
for package in slurmctld slurmd slurm-client munge postgresql; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
done
command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || missing+=(chromium)
if [ ${#missing[@]} -gt 0 ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
fi
