#!/usr/bin/env bash
# A person's first hour with `trivet up`, as root in namespaces of its own: files, disk images,
# the export's discovery, kill -9, all of it there again. Usage: up.sh TRIVET.
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  INSIDE=1 exec unshare --net --mount "$0" "$(realpath "$1")"
fi
trivet=$1
ip link set lo up
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-up.XXXXXX")
mnt=$work/mnt pid= size=8G
say() { echo "up: $*"; }
end() {
  local status=$?
  [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } || true
  [ $status = 0 ] || { say "FAILED; its log:"; tail -20 "$work/log"; }
  umount -l "$mnt" 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
start() {
  : >"$work/out" # what the last one said is not this one's word
  "$trivet" up --dir "$work/data" --size "$size" --mount "$mnt" >"$work/out" 2>>"$work/log" &
  pid=$!
  for _ in $(seq 300); do
    grep -q SIGTERM "$work/out" && return
    kill -0 "$pid" || return 1
    sleep 0.1 # until it says that it runs
  done
  say "does not start"
  return 1
}
since() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f s", b - a }'; }

start
say "started: $(grep -c . "$work/out") lines printed"
mountpoint -q "$mnt"
mkdir "$mnt/tree"
tar -C "$(dirname "$0")/.." -cf - --exclude=./target --exclude=./var --exclude=./.git \
  --exclude=./fuzz/target . | tee "$work/tree.tar" | tar -C "$mnt/tree" -xf -
qemu-img create -q -f qcow2 "$mnt/disk.qcow2" 1G
qemu-io -f qcow2 -c "write -P 0x5a 0 8M" -c "write -P 0xa5 512M 64k" -c flush "$mnt/disk.qcow2" >"$work/qemu-io"
qemu-img convert -O raw "$mnt/disk.qcow2" "$mnt/disk.raw"
[ "$(stat -c %s "$mnt/disk.raw")" = $((1 << 30)) ]
[ "$(du -m "$mnt/disk.raw" | cut -f1)" -lt 64 ] || { say "holes were stored"; exit 1; }
sync "$mnt"/disk.*
find "$mnt/tree" -type f -exec sync {} +
say "files and images are written"

showmount --no-headers --exports 127.0.0.1 | grep -q '^/trivet '
nfs-ls nfs://127.0.0.1/trivet | grep -q disk.qcow2
nfs-cp "$work/tree.tar" nfs://127.0.0.1/trivet/over-nfs >/dev/null
cmp "$work/tree.tar" "$mnt/over-nfs"
say "the export is found, and what NFS writes is in the mount"

kill -9 "$pid"
wait "$pid" 2>/dev/null || true
region=$(dirname "$(find "$work/data/b" -name region.toml)")
"$trivet" fs ls --region "$region" / | grep -q disk.qcow2
"$trivet" fs cat --region "$region" /over-nfs | cmp - "$work/tree.tar"
"$trivet" fs cp --region "$region" /disk.qcow2 "$work/out.qcow2" >/dev/null
qemu-img check -q "$work/out.qcow2"
rm "$work/out.qcow2"
say "one replica alone gives files out"
size=9G
before=$(date +%s.%N)
start
say "up again $(since "$before") after kill -9"
[ "$(stat -f -c '%b * %S / 1073741824' "$mnt" | xargs -I{} awk 'BEGIN { printf "%d", {} }')" = 9 ]
mkdir "$work/again"
tar -C "$work/again" -xf "$work/tree.tar"
diff -r "$work/again" "$mnt/tree"
cmp "$work/tree.tar" "$mnt/over-nfs"
qemu-img check -q "$mnt/disk.qcow2"
qemu-img compare -q "$mnt/disk.qcow2" "$mnt/disk.raw"
qemu-io -f qcow2 -c "read -P 0x5a 0 8M" -c "read -P 0xa5 512M 64k" "$mnt/disk.qcow2" >"$work/qemu-io"
say "all of it is there"

kill "$pid"
wait "$pid"
pid=
! mountpoint -q "$mnt"
"$trivet" fsck --dir "$work/data"
say "ok"
