#!/usr/bin/env bash
# The exporter in a real unprivileged LXC container, driven by the hookscript that Proxmox calls: two
# hosts and a third one in network namespaces, each with a replica. Started: active, served. Stopped and
# started elsewhere, crashed and started elsewhere: the file is there, and no two are ever active.
# The container's root is what `trivet proxmox container-root` makes. Usage: container.sh TRIVET, as root.
# What Proxmox does is done here by hand, in its order: pre-start, lxc-start, post-start; pre-stop,
# lxc-stop; post-stop by LXC itself.
set -euo pipefail
say() { echo "container: $*"; }
skip() { say "skipped: $*"; exit 77; }
if [ "${INSIDE:-}" != 1 ]; then
  trivet=$(realpath "$1")
  [ "$(id -u)" = 0 ] || skip "needs root"
  for tool in lxc-start newuidmap nft nfs-cp; do
    command -v "$tool" >/dev/null || skip "needs $tool (lxc uidmap nftables libnfs-utils)"
  done
  cd "$(dirname "$0")/.."
  base=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-container.XXXXXX")
  trap 'rm -rf --one-file-system "$base"' EXIT
  chmod 755 "$base"
  "$trivet" proxmox container-root "$base/root"
  install -m 755 "$trivet" deploy/lxc/trivet-hookscript "$base/"
  mv "$base/$(basename "$trivet")" "$base/trivet" 2>/dev/null || true
  INSIDE=1 unshare --mount --net --pid --fork --kill-child "$0" "$base"
  exit
fi

base=$1
cd "$base"
export PATH=$base:$PATH TRIVET_CONFIG=$base/trivet.toml
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
fail() {
  say "FAILED: $*"
  tail -n 5 ./[a-k]*.log; grep -E "ERROR|WARN" lxc.log | head -20 2>/dev/null || true
  exit 1
}
on() { # host, command...: in that host's network and mounts, with its key
  local host=$1
  shift
  TRIVET_KEY=$base/$host.key TRIVET_CT_CONF=$base/ct.conf \
    nsenter -t "$(cat "$host.pid")" --net --mount --wd="$base" "$@"
}

# --- three hosts on one switch; the third one is this namespace --------------------------------
ip link add sw type bridge
ip link set sw up
ip addr add 10.99.0.3/24 dev sw
echo root:100000:65536 >subid
n=0
for host in a b; do
  n=$((n + 1))
  mkdir -p "lxc-$host"
  # Its own /var/lib/lxc, as on a host of its own.
  # shellcheck disable=SC2016 # for the shell inside
  unshare --net --mount bash -c '
    mount --make-rprivate /
    mount --bind "$0/lxc-$1" /var/lib/lxc
    mount --bind "$0/subid" /etc/subuid
    mount --bind "$0/subid" /etc/subgid
    # LXC looks for bridges in /sys, which shows those of whoever mounted it.
    mkdir "$0/groups-$1"
    mount --rbind /sys/fs/cgroup "$0/groups-$1"
    mount -t sysfs sysfs /sys
    mount --rbind "$0/groups-$1" /sys/fs/cgroup
    echo $$ >"$0/$1.pid"
    exec sleep infinity' "$base" $host &
  until [ -s "$host.pid" ]; do sleep 0.05; done # until its mounts are made
  ip link add "sw-$host" type veth peer name eth0 netns "$(cat "$host.pid")"
  ip link set "sw-$host" master sw up
  on $host ip link set lo up
  on $host ip link add vmbr0 type bridge
  on $host ip link set dev eth0 master vmbr0 up
  on $host ip link set vmbr0 up
  on $host ip addr add "10.99.0.$n/24" dev vmbr0
done
echo $$ >c.pid

# --- the cluster: replicas on the hosts, an exporter without a vote ----------------------------
trivet init --node a=10.99.0.1 --node b=10.99.0.2 --node c=10.99.0.3 --exporter vms=10.99.0.10 \
  --driver external --allow 10.99.0.0/24 --pool "$base/pool" --out . >/dev/null
for n in a b c; do
  sed -i "/^name = \"$n\"/,/^\[\[/s|/pool\"|/pool-$n\"|" trivet.toml
  trivet pool create "pool-$n" >/dev/null
done
for n in a b c; do
  on $n trivet serve --node $n --key $n.key --state "state-$n" >$n.log 2>&1 &
done
# The container: its root, configuration and key are the same on both hosts, its state is not.
install -d -m 700 conf
cp trivet.toml conf/
install -m 600 vms.key conf/node.key
echo VOLUME=vms >ct.conf
chown -R 100000:100000 conf
for host in a b; do
  mkdir -p "lxc-$host/101" "ct-$host"
  chown 100000:100000 "ct-$host"
  printf '#!/bin/sh\ncd %s\nPATH=%s TRIVET_CONFIG=%s TRIVET_KEY=%s TRIVET_CT_CONF=%s \\\n' \
    "$base" "$PATH" "$TRIVET_CONFIG" "$base/$host.key" "$base/ct.conf" >"post-stop-$host"
  # shellcheck disable=SC2016 # for the hook
  printf '  ./trivet-hookscript 101 post-stop >>hook.log 2>&1\necho $? >>post-stop.%s\n' \
    "$host" >>"post-stop-$host"
  chmod 755 "post-stop-$host"
  cat >"lxc-$host/101/config" <<CONFIG
lxc.uts.name = vms
lxc.rootfs.path = dir:$base/root
lxc.rootfs.options = ro
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.init.cmd = /usr/bin/trivet serve --node vms
lxc.signal.halt = SIGTERM
lxc.mount.entry = $base/ct-$host var/lib/trivet none bind 0 0
lxc.mount.entry = $base/conf etc/trivet none bind,ro 0 0
lxc.mount.auto = proc:mixed sys:ro
lxc.net.0.type = veth
lxc.net.0.link = vmbr0
lxc.net.0.veth.pair = veth101i0
lxc.net.0.flags = up
lxc.net.0.name = eth0
lxc.net.0.ipv4.address = 10.99.0.10/24
lxc.hook.post-stop = $base/post-stop-$host
CONFIG
done
for _ in $(seq 100); do
  on c trivet volume create vms --size 1G >create.log 2>&1 && break
  sleep 0.1 # until the daemons answer
done

hook() { on "$1" ./trivet-hookscript 101 "$2" >>hook.log 2>&1; }
start() { # as `pct start`
  hook "$1" pre-start || return 1
  on "$1" lxc-start -n 101 -o lxc.log || fail "lxc-start on $1"
  hook "$1" post-start
}
down() { # waits until LXC has run the hook, whose code it gives
  for _ in $(seq 200); do
    [ -s "post-stop.$1" ] && break
    sleep 0.1 # a lease runs out
  done
  [ "$(cat "post-stop.$1")" = 0 ] || fail "post-stop on $1: $(cat "post-stop.$1")"
  rm "post-stop.$1"
}
code() { # expected exit code, command...
  local expected=$1 got=0
  shift
  "$@" >code.log 2>&1 || got=$?
  [ $got = "$expected" ] || { cat code.log; fail "$got instead of $expected: $*"; }
}
url='nfs://10.99.0.10/vms'
same() {
  rm -f again
  timeout 30 nfs-cp "$url/file?version=3" again >/dev/null || fail "the export does not answer"
  cmp file again || fail "the file is not the same"
}
end() {
  for h in a b; do on $h lxc-stop -k -n 101 2>/dev/null || true; done
  rmdir /sys/fs/cgroup/*/lxc.pivot 2>/dev/null || true # which LXC leaves
}
trap end EXIT

code 2 on a ./trivet-hookscript 101
code 2 on a ./trivet-hookscript x pre-start
TRIVET_CT_CONF=none code 1 on a env TRIVET_CT_CONF=none ./trivet-hookscript 101 pre-start

start a || { cat hook.log; fail "does not start on a"; }
first=$(on a lxc-info -n 101 -p -H)
read -r _ outer _ <"/proc/$first/uid_map"
[ "$outer" = 100000 ] || fail "the container is privileged"
on c trivet status || true
# The daemon and its parent are protected, or the log says that this machine lets nobody do that.
inside=$(readlink "/proc/$first/ns/pid") all=0 told=$(grep -c 'its OOM score stays' hook.log || true)
for dir in /proc/[0-9]*; do
  [ "$(readlink "$dir/ns/pid" 2>/dev/null)" = "$inside" ] || continue
  all=$((all + 1))
  [ "$(cat "$dir/oom_score_adj")" != -950 ] || told=$((told + 1))
done
if [ $all -lt 2 ] || [ "$told" != $all ]; then
  cat hook.log
  fail "$told of $all processes protected"
fi
on c trivet doctor --node c >doctor.log || true
grep 'trivet in a container' doctor.log >/dev/null || { cat doctor.log; fail "doctor"; }
head -c 20000000 /dev/urandom >file
nfs-cp file "$url/file?version=3" >/dev/null || fail "copying onto the export"
same
showmount --no-headers --exports 10.99.0.10 | grep /vms >/dev/null || fail "showmount"
say "started on a, unprivileged: active, served, showmount answers"
code 1 hook b pre-start
say "b refuses to start a second one"

hook a pre-stop || fail "pre-stop"
code 7 on a trivet driver monitor vms --node vms
on a lxc-stop -n 101 --timeout 20
down a
began=$SECONDS
start b || { cat hook.log; fail "does not start on b"; }
same
say "stopped on a, started on b in $((SECONDS - began)) s: the file is the same"

on b lxc-stop -k -n 101
down b
began=$SECONDS
start a || { cat hook.log; fail "does not start on a after a crash"; }
same
say "crashed on b, started on a in $((SECONDS - began)) s: the file is the same"

# A start that comes to nothing ends the container: without a majority nobody is active.
hook a pre-stop
on a lxc-stop -n 101 --timeout 20
down a
echo 'TIMEOUT=3' >>ct.conf
kill "$(pgrep -f "serve --node b" | head -1)" "$(pgrep -f "serve --node c" | head -1)"
code 1 start a
for _ in $(seq 100); do
  [ "$(on a lxc-info -n 101 -s -H)" = STOPPED ] && break
  sleep 0.1 # lxc-stop and the hook
done
[ "$(on a lxc-info -n 101 -s -H)" = STOPPED ] || fail "a container that serves nothing runs on"
say "without a majority: post-start gives 1 and the container has ended"
