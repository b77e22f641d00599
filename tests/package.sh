#!/usr/bin/env bash
# The package in a Debian made for the purpose: installed, three nodes out of its unit's ExecStart,
# a volume served over NFS, upgraded while active, restarted one after another, removed, purged.
# Usage: package.sh TRIVET (any build of it), as root. SUITES="bookworm trixie" for both Debians;
# ROOTS=DIR: roots made before by the debootstrap below, DIR/bookworm and so on, copied.
# At first without an init: the unit is checked by systemd-analyze and its command run by hand. Then
# with the root's own systemd, by package-init.sh, where the kernel lets it start.
set -euo pipefail
say() { echo "package: $*"; }
if [ "${INSIDE:-}" != 1 ]; then
  trivet=$(realpath "$1")
  [ "$(id -u)" = 0 ] || { say "needs root"; exit 77; }
  for tool in debootstrap lintian unshare; do
    command -v "$tool" >/dev/null || { say "needs $tool"; exit 77; }
  done
  cd "$(dirname "$0")/.."
  base=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-package.XXXXXX")
  group=
  trap '[ -z "$group" ] || rmdir "$group" 2>/dev/null; rm -rf --one-file-system "$base"' EXIT
  # The same root with its own systemd as init, in a control group of its own; see package-init.sh.
  with_init() {
    local groups root=$1
    groups=$(findmnt -n -t cgroup2 -o TARGET | head -1)
    group=$groups/trivet-package.$$
    if [ -z "$groups" ] || ! mkdir "$group"; then
      say "skipped: its own init (no control groups, version 2, for it)"
      group=
      return
    fi
    cp tests/package-init.sh "$root/"
    rm -rf "$root/etc/trivet" "${root:?}/var/lib/trivet" "$root"/init.*
    chroot "$root" apt-get install -y --no-install-recommends /first.deb >/dev/null 2>&1
    printf '[Service]\nType=oneshot\nExecStart=/package-init.sh\nTimeoutStartSec=180\n' \
      >"$root/etc/systemd/system/trial.service"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -s ../trial.service "$root/etc/systemd/system/multi-user.target.wants/"
    # shellcheck disable=SC2016 # for the shell inside
    timeout 240 bash -c 'echo $$ >"$1/cgroup.procs"
      exec unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child \
        tests/package-init.sh boot "$2"' - "$group" "$root" >"$base/boot.log" 2>&1 || true
    find "$group" -depth -type d -exec rmdir {} \;
    group=
    if [ ! -e "$root/init.end" ]; then
      tail "$base/boot.log" "$root/init.log" || true
      say "FAILED: its own init does not come up"
      exit 1
    fi
    cat "$root/init.log"
    grep -q 'ended with 0' "$root/init.end" || exit 1
  }
  first=$(deploy/deb/build "$trivet" "$base")
  number=$(dpkg-deb -f "$first" Version)
  next=$(VERSION=$number+1 deploy/deb/build "$trivet" "$base")
  say "made: $(stat -c %s "$first") bytes; $(dpkg-deb -f "$first" Depends)"
  lintian --allow-root --fail-on error,warning,info "$first"
  say "lintian: nothing to say"
  for suite in ${SUITES:-bookworm}; do
    since=$SECONDS
    if [ -d "${ROOTS:-/nowhere}/$suite" ]; then
      cp -a "$ROOTS/$suite" "$base/debian"
    else
      debootstrap --variant=minbase \
        --include=systemd,systemd-sysv,man-db,iproute2,libnfs-utils \
        "$suite" "$base/debian" >"$base/log" 2>&1 || { tail -5 "$base/log"; exit 1; }
    fi
    say "$suite: a root in $((SECONDS - since)) s"
    cp "$first" "$base/debian/first.deb"
    cp "$next" "$base/debian/next.deb"
    cp "$0" "$base/debian/package.sh"
    # shellcheck disable=SC2016 # for the shell inside
    INSIDE=1 unshare --mount --net --pid --fork --kill-child bash -eu -c '
      mount --bind "$0" "$0"
      mount -t proc proc "$0/proc"
      mount -t tmpfs tmpfs "$0/run"
      mount --rbind /dev "$0/dev"
      mkdir "$0/run/netns"
      ip link set lo up
      exec chroot "$0" /usr/bin/env -i INSIDE=1 TRACE="${TRACE:-}" HOME=/ PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive bash /package.sh
      ' "$base/debian"
    with_init "$base/debian"
    say "$suite: passed in $((SECONDS - since)) s"
    rm -rf --one-file-system "$base/debian"
  done
  exit 0
fi

# --- inside, in a network and among processes of its own --------------------------------------
fail() { say "FAILED: $*"; exit 1; }
trap '[ $? = 0 ] || tail -n 5 /tmp/*.log 2>/dev/null' EXIT
quietly() { "$@" >/tmp/quietly 2>&1 || { cat /tmp/quietly; fail "$*"; }; }
listed() {
  local not=()
  for dir in /var/lib/dpkg /var/lib/apt /var/cache /var/log /var/lib/trivet '/etc/*-'; do
    not+=(-path "$dir" -prune -o)
  done
  find /etc /usr /var -xdev "${not[@]}" -print | LC_ALL=C sort
}
[ -z "${TRACE:-}" ] || set -x
listed >/tmp/before

quietly apt-get install -y --no-install-recommends /first.deb
trivet --version
man trivet-volume-create | col -b | grep -- --size >/dev/null || fail "no man page of trivet volume create"
bash -n /usr/share/bash-completion/completions/trivet
[ ! -e /etc/systemd/system/multi-user.target.wants/trivet.service ] || fail "enabled by itself"
daemons() { grep -lx trivet /proc/[0-9]*/comm 2>/dev/null | sort | tr '\n' ' '; }
[ -z "$(daemons)" ] || fail "started by itself"
id trivet >/dev/null

unit=/lib/systemd/system/trivet.service
verified() { # what it is, and the most that `security` may give it (tenths)
  systemd-analyze verify --man=yes $unit 2>/tmp/verify || { cat /tmp/verify; fail "verify: $1"; }
  grep trivet /tmp/verify && fail "verify: $1"
  local exposure
  systemd-analyze security --offline=true --threshold="$2" $unit >/tmp/verify ||
    { tail -1 /tmp/verify; fail "security: $1"; }
  exposure=$(sed -n 's/.*Overall exposure level for trivet.service: //p' /tmp/verify)
  say "unit, $1: verified, exposure $exposure"
}
verified "as installed" 50
mkdir $unit.d
cp /usr/share/doc/trivet/examples/replica-only.conf $unit.d/
verified "with replica-only.conf" 20
rm -r $unit.d

# Three nodes on one machine, each by the unit's command.
nodes=(--node a=127.0.0.1:7101 --node b=127.0.0.1:7102 --node c=127.0.0.1:7103)
quietly trivet init "${nodes[@]}" --allow 127.0.0.0/8 --pool /var/lib/trivet/pool --out /etc/trivet
cp /etc/trivet/a.key /etc/trivet/node.key
command=$(sed -n 's/^ExecStart=//p' $unit)
declare -A pids
start() {
  # shellcheck disable=SC2034 # the command names it
  local TRIVET_SERVE="--node $1 --key /etc/trivet/$1.key --state /var/lib/trivet/$1"
  eval "exec $command" >"/tmp/$1.log" 2>&1 &
  pids[$1]=$!
  for _ in $(seq 300); do
    grep -qs "^ready" "/tmp/$1.log" && return
    kill -0 "${pids[$1]}" || fail "node $1 does not start"
    sleep 0.1 # until it says that it serves
  done
  fail "node $1 does not get ready"
}
stop() {
  kill "${pids[$1]}"
  wait "${pids[$1]}" || fail "node $1 did not end in order"
}
for n in a b c; do
  sed -i "/^name = \"$n\"/,/^\[\[/s|/var/lib/trivet/pool|/var/lib/trivet/pool-$n|" \
    /etc/trivet/trivet.toml
  quietly trivet pool create "/var/lib/trivet/pool-$n"
done
for n in a b c; do start "$n"; done
quietly trivet volume create vms --size 1G
served() { # waits until status says redundant: after a restart a resync comes first
  for _ in $(seq 300); do
    trivet status >/tmp/status 2>&1 && return
    sleep 0.1 # the resync's own time
  done
  cat /tmp/status
  fail "not redundant"
}
active() { trivet status -o json | tr -d ' \n' | grep -o '"standing":"active"' | wc -l; }
# The nodes decide by themselves; one has it already, or is told to.
trivet promote vms >/tmp/promote 2>&1 || [ "$(active)" = 1 ] || { cat /tmp/promote; fail promote; }
served
cat /tmp/status
url='nfs://127.0.0.1/vms?version=3'
head -c 20000000 /dev/urandom >/tmp/file
quietly nfs-cp /tmp/file "nfs://127.0.0.1/vms/file?version=3"
same() {
  quietly nfs-cp "nfs://127.0.0.1/vms/file?version=3" /tmp/again
  cmp /tmp/file /tmp/again
  rm /tmp/again
}
nfs-ls "$url" | grep file >/dev/null || fail "the file is not on the export"
same
say "three nodes, a volume, a file on its export"

# An upgrade leaves what runs alone, and says what is left to do.
was=$(daemons)
quietly apt-get install -y --no-install-recommends /next.deb
grep -q 'trivet drain NODE' /tmp/quietly || { cat /tmp/quietly; fail "it does not say to drain"; }
[ "$(daemons)" = "$was" ] || fail "an upgrade touched a daemon"
served
same
for n in a b c; do
  quietly trivet drain "$n"
  stop "$n"
  start "$n"
  quietly trivet undrain "$n"
  served
  same
done
say "upgraded while active, then restarted one after another: the file is the same at each step"

for n in c b a; do stop "$n"; done
quietly apt-get remove -y trivet
[ ! -e /usr/bin/trivet ] || fail "removed, and its program is there"
[ -e /etc/trivet/trivet.toml.example ] || fail "removing took configuration away"
quietly apt-get purge -y trivet
[ -d /var/lib/trivet/pool-a ] || fail "purging took data away"
listed >/tmp/after
left=$(comm -13 /tmp/before /tmp/after | tr '\n' ' ')
[ "$left" = "/etc/trivet /etc/trivet/a.key /etc/trivet/b.key /etc/trivet/c.key /etc/trivet/node.key \
/etc/trivet/trivet.toml " ] || fail "purging left: $left"
say "removed and purged: what is left is /var/lib/trivet and the files that trivet init wrote"
