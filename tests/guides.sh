#!/usr/bin/env bash
# Runs every command of the guides that can run on one machine, as they stand there (each block of
# `sh`), in an empty directory, a network and a set of processes of their own. Usage: guides.sh
# TRIVET [GUIDE...], as root.
# A first line `<!-- guides.sh: three -->` asks for nodes to be there already: pve1 to pve3 with the
# volume vms, pve4 as a spare; `witness`: pve1 and pve2 with it, pve3 votes. In those guides `ssh HOST
# systemctl VERB trivet` starts and ends a real daemon of that node; there is no ssh and no systemd in it.
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  [ "$(id -u)" = 0 ] || { echo "guides: needs root"; exit 77; }
  trivet=$(realpath "$1")
  shift
  INSIDE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$trivet" "$@"
fi
ip link set lo up
guides=$(realpath "$(dirname "$0")/../docs/guides")
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-guides.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
ln -s "$1" "$work/bin/trivet"
export PATH=$work/bin:$PATH
cat >"$work/nodes.sh" <<'NODES'
start() {
  trivet serve --node "$1" --key "$1.key" --state "state-$1" >>"$1.log" 2>&1 &
  echo $! >"$1.pid"
}
ssh() { # HOST systemctl VERB ... trivet
  local pid
  pid=$(cat "$1.pid")
  case "$2 $3" in
    "systemctl start") start "$1" ;;
    "systemctl stop") kill "$pid" && { wait "$pid" || true; } ;;
    "systemctl restart") kill "$pid" && { wait "$pid" || true; } && start "$1" ;;
    "apt-get install") : ;; # all run the same program; package-upgrade.sh has two
    "systemctl kill") # of the whole service: parent and daemon
      # shellcheck disable=SC2046 # two process ids
      kill -KILL "$pid" $(pgrep -P "$pid") && { wait "$pid" || true; } ;;
    *) echo "no such command here: $*" && return 1 ;;
  esac
}
nodes() { # which nodes keep the volume, arguments of init...
  local kept=$1 n
  shift
  trivet init "$@" --allow 127.0.0.0/8 --pool "$PWD/pool" --out .
  export TRIVET_CONFIG=$PWD/trivet.toml TRIVET_KEY=$PWD/pve1.key
  for n in *.key; do
    n=${n%.key}
    sed -i "/^name = \"$n\"/,/^\[\[/s|/pool\"|/pool-$n\"|" trivet.toml
    trivet pool create "pool-$n"
  done
  for n in *.key; do start "${n%.key}"; done
  until trivet status >/dev/null 2>&1 || [ $? = 2 ]; do sleep 0.2; done
  # shellcheck disable=SC2086 # nothing, or two words
  trivet volume create vms --size 10G $kept
  trivet wait vms --for redundant
}
three() {
  nodes "--nodes pve1,pve2,pve3" --node pve1=127.0.0.1 --node pve2=127.0.0.2 \
    --node pve3=127.0.0.3 --node pve4=127.0.0.4
}
witness() {
  nodes "" --node pve1=127.0.0.1 --node pve2=127.0.0.2 --witness pve3=127.0.0.3
}
NODES
if [ $# -gt 1 ]; then
  all=("${@:2}")
else
  mapfile -t all < <(cd "$guides" && grep -l '^```sh$' ./*.md | xargs -n1 basename -s .md)
fi
for guide in "${all[@]}"; do
  since=$SECONDS
  mkdir "$work/$guide"
  {
    echo 'set -eu'
    needs=$(sed -n '1s/^<!-- guides.sh: \(.*\) -->$/\1/p' "$guides/$guide.md")
    [ -z "$needs" ] || printf '. ../nodes.sh\n%s\n' "$needs"
    awk '/^```sh$/ { on = 1; next } /^```$/ { on = 0 } on' "$guides/$guide.md"
    # shellcheck disable=SC2016 # for the guide's shell
    [ -z "$needs" ] || echo 'for n in *.pid; do kill "$(cat "$n")" 2>/dev/null || true; done; wait'
  } >"$work/$guide.sh"
  (cd "$work/$guide" && timeout 240 bash -x "../$guide.sh") >"$work/log" 2>&1 || {
    tail -25 "$work/log"
    echo "guides: FAILED: $guide.md, at the command above"
    exit 1
  }
  echo "guides: $guide.md: $(grep -c . "$work/$guide.sh") lines run in $((SECONDS - since)) s"
done
