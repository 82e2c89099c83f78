#!/usr/bin/env bash
# Compose itself (docker-compose 2, whose `config` needs no engine) from Debian 13, unpacked into FOLDER, not installed: the parser
# that compose.yaml is written for. Says so and ends with 0 where apt-get or the mirror is missing; the test is then skipped.
#
#   tests/user/compose_parser.sh FOLDER
set -euo pipefail
folder=$(realpath -m "${1:?the folder}")
command -v apt-get >/dev/null || { echo "left out: no apt-get, so no docker-compose; put one into $folder"; exit 0; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" >"$work/sources.list"
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists" \
        -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o Acquire::http::Timeout=30 "$@"
}
cd "$work"
if apt update && apt download docker-compose && dpkg-deb -x docker-compose_*.deb unpacked; then
    mkdir -p "$folder"
    mv "$(find unpacked/usr/libexec unpacked/usr/bin -type f -name docker-compose 2>/dev/null | head -n 1)" "$folder/docker-compose"
    "$folder/docker-compose" version
else
    echo "left out: docker-compose could not be fetched from Debian"
fi
