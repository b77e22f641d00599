#!/usr/bin/env bash
# docs/guides/upgrade.md as it stands there, from packages: three hosts, each a Debian with its own
# systemd; a client that writes durably through the service address and checks what it wrote, and a
# guest whose kernel has the export mounted (tests/vm/takeover-client.sh); all three hosts to the next
# version and back. Usage: package-upgrade.sh TRIVET TAKEOVER, as root.
# SUITE=trixie, and ROOTS=DIR as for package.sh. The next version is this tree with the protocol and
# the package one version higher, built here: until there is a release there is no other.
set -euo pipefail
say() { echo "upgrade: $*"; }
skip() {
  say "skipped: $*"
  [ -z "${TRIVET_SKIPS:-}" ] || echo "upgrade: $*" >>"$TRIVET_SKIPS"
  exit 77
}
if [ "${INSIDE:-}" != 1 ]; then
  trivet=$(realpath "$1") takeover=$(realpath "$2")
  [ "$(id -u)" = 0 ] || skip "needs root"
  for tool in debootstrap unshare nsenter cargo; do
    command -v "$tool" >/dev/null || skip "needs $tool"
  done
  groups=$(findmnt -n -t cgroup2 -o TARGET | head -1)
  group=$groups/trivet-upgrade.$$
  { [ -n "$groups" ] && mkdir "$group"; } || skip "no control groups, version 2, for systemd"
  cd "$(dirname "$0")/.."
  # What the guest boots; where it cannot be made, the rest is run without.
  guest=${TRIVET_VM:-$PWD/target/vm}
  if said=$(tests/vm/prepare.sh "$guest" 2>&1); then
    guest=$(realpath "$guest")
  else
    say "skipped: the kernel's client: $said"
    [ -z "${TRIVET_SKIPS:-}" ] || echo "upgrade: the kernel's client: $said" >>"$TRIVET_SKIPS"
    guest=
  fi
  base=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-upgrade.XXXXXX")
  built=target/debug/trivet
  # The build of the next version takes the place of this one's.
  restore() { [ ! -e "$base/kept" ] || { rm -f "$built" && mv "$base/kept" "$built"; }; }
  # shellcheck disable=SC2317 # by the trap
  end() {
    # In the order in which they can go: what is beneath first.
    find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
    restore
    rm -rf --one-file-system "$base"
  }
  trap end EXIT

  since=$SECONDS
  cp "$trivet" "$base/trivet"
  # The same path and times each run, so that cargo builds again only what has changed.
  tree=$PWD/target/upgrade
  rm -rf "$tree"
  mkdir -p "$tree"
  tar -cf - --exclude=./target --exclude=./var --exclude=./.git --exclude=./fuzz/target . |
    tar -C "$tree" -xf -
  number=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
  IFS=. read -r major minor _ <<<"$number"
  next=$major.$((minor + 1)).0
  changed() { # file, expression: changed once, its time is what it was
    sed -i "$2" "$tree/$1"
    [ "$(diff "$1" "$tree/$1" | grep -c '^>')" = 1 ] || { say "FAILED: $1 is not as it was"; exit 1; }
    touch -r "$1" "$tree/$1"
  }
  changed Cargo.toml "s/^version = \"$number\"/version = \"$next\"/"
  changed replica/protocol/src/frame.rs 's/^pub const VERSION: u16 = \(.*\);/pub const VERSION: u16 = \1 + 1;/'
  [ ! -e "$built" ] || cp -l "$built" "$base/kept" 2>/dev/null || cp -p "$built" "$base/kept"
  CARGO_TARGET_DIR=$PWD/target cargo build --quiet --offline --manifest-path "$tree/Cargo.toml" \
    --bin trivet
  cp "$built" "$base/next"
  restore
  "$base/next" --version
  mkdir "$base/packages"
  old=$(deploy/deb/build "$base/trivet" "$base/packages")
  new=$("$tree/deploy/deb/build" "$base/next" "$base/packages")
  mv "$old" "$base/old.deb"
  mv "$new" "$base/new.deb"
  rm -r "$tree"
  say "$number and $next, built and packed in $((SECONDS - since)) s"

  since=$SECONDS
  suite=${SUITE:-bookworm}
  if [ -d "${ROOTS:-/nowhere}/$suite" ]; then
    ln -s "$(realpath "$ROOTS/$suite")" "$base/debian"
  else
    debootstrap --variant=minbase --include=systemd,systemd-sysv,iproute2 "$suite" "$base/debian" \
      >"$base/log" 2>&1 || { tail -5 "$base/log"; exit 1; }
  fi
  say "$suite: a root in $((SECONDS - since)) s"
  since=$SECONDS
  INSIDE=1 unshare --mount --net --pid --fork --kill-child "$0" "$base" "$takeover" "$group" "$guest"
  say "passed in $((SECONDS - since)) s"
  exit 0
fi

# --- inside: a switch, and the client on it ------------------------------------------------------
base=$1 takeover=$2 group=$3 guest=$4
tests=$(realpath "$(dirname "$0")")
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir /run/netns
ip link set lo up
ip link add sw type bridge
ip link set sw up
ip addr add 10.99.0.21/24 dev sw
hosts=(pve1 pve2 pve3)
declare -A inits
on() { # host, command...: typed there, in /srv
  local host=$1
  shift
  nsenter -t "${inits[$host]}" --mount --uts --ipc --net --pid --cgroup --root --wd \
    env -i -C /srv HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive "$@"
}
fail() {
  say "FAILED: $*"
  tail -n 8 "$base"/*.log
  for h in "${!inits[@]}"; do
    say "$h:"
    on "$h" journalctl -u trivet -n 8 --no-pager || true
  done
  exit 1
}
until_so() { # seconds, command...
  local until=$((SECONDS + $1))
  shift
  until "$@" >"$base/until.log" 2>&1; do
    [ $SECONDS -lt $until ] || { cat "$base/until.log"; fail "not so in time: $*"; }
    sleep 0.2 # what is waited for says nothing by itself
  done
}
booted() {
  case $(on "$1" systemctl is-system-running) in running | degraded) ;; *) return 1 ;; esac
}

for n in 1 2 3; do
  host=pve$n root=$base/pve$n
  ip netns add $host
  ip link add $host type veth peer name eth0 netns $host
  ip link set $host master sw up
  ip -n $host link set lo up
  ip -n $host link add vmbr0 type bridge
  ip -n $host link set eth0 master vmbr0 up
  ip -n $host link set vmbr0 up
  ip -n $host addr add 10.99.0.1$n/24 dev vmbr0
  mkdir "$root" "$base/$host-upper" "$base/$host-work" "$group/$host"
  mount -t overlay overlay "$root" \
    -o "lowerdir=$base/debian,upperdir=$base/$host-upper,workdir=$base/$host-work"
  echo $host >"$root/etc/hostname"
  cp "$base/old.deb" "$root/srv/trivet_OLD_amd64.deb"
  cp "$base/new.deb" "$root/srv/trivet_NEW_amd64.deb"
  # shellcheck disable=SC2016 # for the shell inside
  bash -c 'echo $$ >"$1/cgroup.procs"
    exec nsenter --net="/run/netns/$2" unshare --mount --pid --uts --ipc --cgroup --fork \
      --kill-child "$3/package-init.sh" boot "$4"' - "$group/$host" $host "$tests" "$root" \
    >"$base/$host.log" 2>&1 &
  outer=$!
  until_so 10 grep -q . "/proc/$outer/task/$outer/children"
  inits[$host]=$(tr -d ' ' <"/proc/$outer/task/$outer/children")
done
for host in "${hosts[@]}"; do until_so 60 booted "$host"; done
say "three hosts are up"

# --- installed as docs/packages.md says ---------------------------------------------------------
"$base/trivet" init --node pve1=10.99.0.11 --node pve2=10.99.0.12 --node pve3=10.99.0.13 \
  --service 10.99.0.100/24 --out "$base/cfg" >/dev/null
for host in "${hosts[@]}"; do
  on "$host" apt-get install -y --no-install-recommends ./trivet_OLD_amd64.deb >"$base/apt.log" 2>&1 ||
    fail "apt-get install on $host"
  cp "$base/cfg/trivet.toml" "$base/$host/etc/trivet/trivet.toml"
  install -m 600 "$base/cfg/$host.key" "$base/$host/etc/trivet/node.key"
  on "$host" trivet pool create /var/lib/trivet/pool >/dev/null
  on "$host" systemctl enable --now trivet 2>"$base/enable.log" || fail "the unit on $host"
done
# What an operator types on pve1, with the program that is installed there.
trivet() { on pve1 trivet "$@"; }
ssh() { on "$@"; }
until_so 30 trivet volume create vms --size 1G
trivet promote vms --node pve1 >"$base/promote.log" 2>&1 || true # it may be there already
trivet wait vms --for redundant
trivet status

# --- under load, watched with the program that is installed on pve3 ------------------------------
contend=()
if [ -n "$guest" ]; then
  mkfifo "$base/until"
  mkdir "$base/guest"
  SWITCH=/proc/self/ns/net BRIDGE=sw ADDRESS=10.99.0.31/24 SERVICE=10.99.0.100 EXPORT=/vms SEED=1 \
    SCRATCH=$base/guest TRIVET_VM=$guest "$tests/vm/takeover-client.sh" \
    <"$base/until" >"$base/guest.log" 2>&1 &
  guest=$!
  exec 7>"$base/until" # as long as it is open, the guest works
  until_so 180 grep -q "^ready" "$base/guest.log"
  say "a guest's kernel has the export mounted, and writes"
  contend=(--contend kernel-held)
fi
"$takeover" load --server 10.99.0.100 --export /vms "${contend[@]}" >"$base/load.log" 2>&1 7>&- &
load=$!
until_so 30 grep -q "^under load" "$base/load.log"
while :; do
  on pve3 trivet status || true
  sleep 0.5 # a rate
done >"$base/watch" 2>&1 &
watch=$!
block() { # of the guide, by number
  awk -v n="$1" '/^```sh$/ { on = ++i == n; next } /^```$/ { on = 0 } on' \
    "$tests/../docs/guides/upgrade.md"
}
guide() { # number of its block, what it does
  local since=$SECONDS
  block "$1" >"$base/guide.sh"
  grep -q . "$base/guide.sh" || fail "the guide has no block $1"
  # Functions stand for ssh and for pve1's trivet; each command must succeed, for which the shell
  # must not be part of a condition.
  local status
  set +e
  (
    set -eu
    # shellcheck source=/dev/null # the guide's
    . "$base/guide.sh"
  ) >"$base/guide.log" 2>&1
  status=$?
  set -e
  [ $status = 0 ] || fail "$2: exit code $status"
  kill -0 $load || fail "the client ended by itself: $2"
  [ -z "$guest" ] || kill -0 "$guest" || fail "the guest ended by itself: $2"
  say "$2: $((SECONDS - since)) s"
}
spoken() { # the version that all know, and that the active node speaks with each of its members
  local all
  all=$(trivet status -o json | tr -d ' \n' | grep -o '"protocol":[0-9]*' | sort | uniq -c | tr -s ' ')
  echo "protocols:$all"
  [ "$all" = " 6 \"protocol\":$1" ]
}
until_so 10 spoken 1
guide 1 "before"
guide 2 "upgraded, one host after another"
until_so 10 spoken 2 # nodes hear of each other a few times a second
trivet status
grep -q "VERSIONS DIFFER: .*(protocol 1).*(protocol 2)" "$base/watch" ||
  fail "status never said that versions differ"
grep -m1 "VERSIONS DIFFER" "$base/watch"
! trivet status | grep "VERSIONS DIFFER" || fail "status says that versions still differ"
guide 3 "back to the older version"
until_so 10 spoken 1
kill $watch
kill $load
wait $load || fail "the client's load found something"
cat "$base/load.log"
if [ -n "$guest" ]; then
  exec 7>&-
  # shellcheck disable=SC2317 # by until_so
  ended() { ! kill -0 "$guest"; }
  until_so 240 ended # it reads everything again
  wait "$guest" || fail "the guest's kernel found something"
  say "the guest's kernel: $(tr -d '+\r' <"$base/guest.log" | sed '1,/^ready/d; /^Terminated$/d' | grep . | paste -sd' ')"
fi

# --- removed while it runs: the package ends the daemon first --------------------------------------
for host in pve3 pve2 pve1; do
  on "$host" apt-get remove -y trivet >"$base/apt.log" 2>&1 || fail "apt-get remove on $host"
  ! on "$host" sh -c 'cat /proc/[0-9]*/comm' | grep -x trivet || fail "a daemon of $host is still there"
  [ -d "$base/$host/var/lib/trivet/pool" ] || fail "removing took the data of $host away"
done
say "removed while it ran; the data stays"
