#!/usr/bin/env bash
# Runs every command of the guides that can run on one machine, as they stand there (each block of
# `sh`), in an empty directory, a network and a set of processes of their own. Usage: guides.sh
# TRIVET, as root.
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  [ "$(id -u)" = 0 ] || { echo "guides: needs root"; exit 77; }
  INSIDE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$(realpath "$1")"
fi
ip link set lo up
guides=$(realpath "$(dirname "$0")/../docs/guides")
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-guides.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$1" "$work/bin/trivet"
export PATH=$work/bin:$PATH
for guide in "$guides"/*.md; do
  guide=$(basename "$guide" .md) since=$SECONDS
  mkdir "$work/$guide"
  {
    echo 'set -eu'
    awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$guides/$guide.md"
  } >"$work/$guide.sh"
  (cd "$work/$guide" && timeout 120 bash -x "../$guide.sh") >"$work/log" 2>&1 || {
    tail -25 "$work/log"
    echo "guides: FAILED: $guide.md, at the command above"
    exit 1
  }
  echo "guides: $guide.md: $(grep -c . "$work/$guide.sh") lines run in $((SECONDS - since)) s"
done
