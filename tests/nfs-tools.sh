#!/usr/bin/env bash
# What people and Proxmox VE ask an NFS server with, as root in namespaces of its own: showmount,
# rpcinfo, libnfs's tools, QEMU's own NFS driver. Usage: nfs-tools.sh TRIVET.
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  INSIDE=1 exec unshare --net --mount "$0" "$(realpath "$1")"
fi
trivet=$1
PATH=$PATH:/usr/sbin:/sbin
ip link set lo up
# An address of its own, as a service address is.
ip addr add 10.77.0.1/32 dev lo
host=10.77.0.1
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-tools.XXXXXX")
pid= rpcbind= other=
say() { echo "tools: $*"; }
end() {
  local status=$?
  for p in $pid $other $rpcbind; do
    kill "$p" && wait "$p" || true
  done
  [ $status = 0 ] || { say "FAILED; its log:"; tail -20 "$work/log"; }
  rm -rf "$work"
}
trap end EXIT
# In the words of trap's exit status a failing test in the middle would be nameless.
trap 'say "line $LINENO failed"' ERR
"$trivet" up --dir "$work/data" --size 4G --nfs $host:2049 --export /srv/vm \
  --allow "10.77.0.0/24(rw,no_root_squash,insecure)" >"$work/log" 2>&1 &
pid=$!
for _ in $(seq 300); do
  grep -q SIGTERM "$work/log" && break
  sleep 0.1 # until it says that it runs
done

# Proxmox, NFSPlugin.pm: check_connection, at every activation, with 10 s; `pvesm scan nfs`.
timeout 10 showmount --no-headers --exports $host >"$work/exports"
perl -ne 'BEGIN { $bad = 1 } if (m!^(/\S+)\s+(.+)$!) { $bad = 0 if $1 eq "/srv/vm" && $2 eq "10.77.0.0/24" } END { exit $bad }' \
  "$work/exports"
# For a storage that says vers=4 it asks this, which must fail at once: there is no version 4.
! timeout 10 rpcinfo -T tcp $host nfs 4 >/dev/null 2>"$work/v4"
grep -q 'low version = 3, high version = 3' "$work/v4"
showmount -e $host | grep -q '^/srv/vm '
showmount -a $host | grep -q '^All mount points'
for what in "nfs 3" "mountd 3" "mountd 1" "nlockmgr 4" "status 1"; do
  rpcinfo -T tcp $host $what | grep -q 'ready and waiting'
done
for what in "mountd 3" "nlockmgr 4" "status 1" "portmapper 2" "portmapper 3" "portmapper 4"; do
  rpcinfo -T udp $host $what | grep -q 'ready and waiting'
done
rpcinfo -p $host >"$work/programs"
rpcinfo $host >"$work/universal"
for p in 100000 100003 100005 100021 100024; do
  awk -v p=$p '$1 == p { n++ } END { exit !n }' "$work/programs"
  awk -v p=$p '$1 == p { n++ } END { exit !n }' "$work/universal"
done
say "showmount and rpcinfo: ok"

url=nfs://$host/srv/vm
head -c 9000001 /dev/urandom >"$work/file"
nfs-cp "$work/file" $url/file >/dev/null
nfs-cp $url/file "$work/back" >/dev/null
cmp "$work/file" "$work/back"
nfs-cat $url/file | cmp - "$work/file"
nfs-ls $url | grep -q ' 9000001 file$'
nfs-ls -R "nfs://$host/srv/vm?version=3" | grep -q 'file$'
nfs-ls -D nfs://$host | grep -q /srv/vm || nfs-ls --discovery nfs://$host | grep -q /srv/vm
showmount -a $host | grep -q ':/srv/vm'
say "libnfs: ok"

# As Proxmox makes, grows, snapshots, moves and checks disks, but through QEMU's own client.
image() { qemu-img "$@" >"$work/out" 2>&1 || { cat "$work/out"; return 1; }; }
io() { qemu-io "$@" >"$work/out" 2>&1 && ! grep -qi 'failed\|error' "$work/out" || { cat "$work/out"; return 1; }; }
image create -f qcow2 -o preallocation=metadata $url/disk.qcow2 1G
io -f qcow2 -c "write -P 0x5a 0 8M" -c "write -P 0xa5 512M 64k" -c "write -z 1M 1M" -c flush $url/disk.qcow2
image snapshot -c before $url/disk.qcow2
io -f qcow2 -t none -c "write -P 0x11 0 64k" -c flush -c "read -P 0x11 0 64k" -c "read -P 0 1M 1M" $url/disk.qcow2
image snapshot -a before $url/disk.qcow2
image snapshot -d before $url/disk.qcow2
io -f qcow2 -c "read -P 0x5a 0 1M" -c "read -P 0 1M 1M" -c "read -P 0xa5 512M 64k" $url/disk.qcow2
timeout 10 qemu-img resize -q $url/disk.qcow2 +1G
image check $url/disk.qcow2
image convert -O raw $url/disk.qcow2 $url/disk.raw
image compare $url/disk.qcow2 $url/disk.raw
image convert -f raw -O qcow2 $url/disk.raw "$work/disk.qcow2"
image compare "$work/disk.qcow2" $url/disk.raw
image create -f qcow2 -b $url/disk.qcow2 -F qcow2 -o extended_l2=on,cluster_size=128k $url/child.qcow2
io -f qcow2 -c "write -P 0x77 4k 4k" -c "read -P 0x5a 64k 64k" -c flush $url/child.qcow2
# (`qemu-img commit` is not for this driver: it cannot reopen a backing file for writing.)
image convert -O qcow2 $url/child.qcow2 $url/flat.qcow2
io -f qcow2 -c "read -P 0x77 4k 4k" -c "read -P 0x5a 8k 4k" $url/flat.qcow2
image check $url/flat.qcow2
image bench -w -f raw -c 500 -d 8 -s 4096 --flush-interval 16 -t none $url/disk.raw
say "QEMU's NFS driver: ok"
kill "$pid"
wait "$pid"
pid=
"$trivet" fsck --dir "$work/data" >"$work/out"

# Another server that is alive has the program numbers in the system's rpcbind: it keeps them, and
# is named; a mount of ours must then name its ports. What a killed one left behind is replaced.
mount -t tmpfs none /run
mkdir /run/rpcbind
rpcbind -f &
rpcbind=$!
for _ in $(seq 100); do
  rpcinfo -p 127.0.0.1 >/dev/null 2>&1 && break
  sleep 0.1 # until it answers
done
serve() { # name, address:port; its process is $!
  "$trivet" up --dir "$work/$1" --size 1G --nfs "$2" >"$work/$1.log" 2>&1 &
  local it=$!
  for _ in $(seq 300); do
    grep -q SIGTERM "$work/$1.log" && return
    kill -0 $it
    sleep 0.1 # until it says that it runs
  done
}
at() { rpcinfo -p 127.0.0.1 | awk '$1 == 100003 && $2 == 3 && $3 == "tcp" { print $4 }'; }
serve first 10.77.0.1:2049
other=$!
[ "$(at)" = 2049 ]
serve second 10.77.0.1:3049
pid=$!
grep -q 'program 100003 version 3 (nfs) is served by another program of this machine, at port 2049' \
  "$work/second.log"
grep -q 'port=3049,mountport=3049,nolock' "$work/second.log"
[ "$(at)" = 2049 ]
kill "$pid"
wait "$pid"
pid=
[ "$(at)" = 2049 ]
kill -9 "$other"
wait "$other" 2>/dev/null || true
other=
serve second 10.77.0.1:3049
pid=$!
! grep -q nolock "$work/second.log"
[ "$(at)" = 3049 ]
say "program numbers: ok"
say ok
