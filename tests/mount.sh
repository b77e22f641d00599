#!/usr/bin/env bash
# mount(8) and fstab(5) with the program as mount.trivet, in mounts, a network and processes of their
# own: three daemons, a volume, `mount -t trivet`, `mount -a`, `umount`. Usage: mount.sh TRIVET, as root.
set -euo pipefail
say() { echo "mount: $*"; }
if [ "${INSIDE:-}" != 1 ]; then
  [ "$(id -u)" = 0 ] && [ -e /dev/fuse ] || { say "needs root and /dev/fuse"; exit 77; }
  INSIDE=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$(realpath "$1")"
fi
fail() { say "FAILED: $*"; exit 1; }
ip link set lo up
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-mount.XXXXXX")
end() {
  local daemons
  daemons=$(jobs -p)
  [ -z "$daemons" ] || xargs kill <<<"$daemons"
  wait
  cd /
  for at in "$work/mnt" /usr/sbin "$work/layer"; do umount -l "$at" 2>/dev/null || true; done
  rm -rf --one-file-system "$work"
}
trap end EXIT
cd "$work"
# Where mount(8) looks for it, as the package puts it there: in this namespace alone.
mkdir layer mnt
mount -t tmpfs tmpfs layer
mkdir layer/new layer/work
mount -t overlay -o "lowerdir=/usr/sbin,upperdir=$work/layer/new,workdir=$work/layer/work" \
  overlay /usr/sbin || { say "needs overlay mounts"; exit 77; }
ln -s "$1" /usr/sbin/mount.trivet
trivet=$1
trivet() { "$trivet" "$@"; }
export TRIVET_CONFIG=$work/trivet.toml TRIVET_KEY=$work/a.key
trivet init --node a=127.0.0.1 --node b=127.0.0.2 --node c=127.0.0.3 --driver manual \
  --allow 127.0.0.0/8 --pool "$work/pool" --out . >/dev/null
for n in a b c; do
  sed -i "/^name = \"$n\"/,/^\[\[/s|/pool\"|/pool-$n\"|" trivet.toml
  trivet pool create "pool-$n" >/dev/null
  "$trivet" serve --node $n --key $n.key --state "state-$n" >"$n.log" 2>&1 &
done
tries=0
until trivet volume create vms --size 1G >create 2>&1; do
  [ $((tries += 1)) -lt 200 ] || { cat create; fail "the volume is not made"; }
  sleep 0.1 # until the daemons answer
done
free() { # until nobody has it
  local tries=0
  while trivet status -o json | tr -d ' \n' | grep -q '"standing":"active"'; do
    [ $((tries += 1)) -lt 200 ] || fail "it stays active after umount"
    sleep 0.1 # a flush, and the lease handed back
  done
}

[ -z "$(mount -t trivet -o nosuid vms "$work/mnt")" ] || fail "mount is silent when it works"
grep " $work/mnt fuse rw,nosuid" /proc/mounts >/dev/null || fail "not mounted as asked"
echo hello >mnt/file
umount mnt
free
echo "vms $work/mnt trivet defaults,_netdev,nofail,config=$work/trivet.toml,key=$work/a.key 0 0" >fstab
mount -a -T "$work/fstab"
[ "$(cat mnt/file)" = hello ] || fail "the file is not there again"
mount -a -T "$work/fstab" # mounted already: nothing to do
[ "$(grep -c " $work/mnt " /proc/mounts)" = 1 ] || fail "mounted twice"
code=0
mount -t trivet -o "key=$work/b.key" vms "$work/layer" 2>said || code=$?
# By the reports of the nodes, or, where those are late, by the members' word.
[ $code = 32 ] && grep -Eq 'is (active on|held by) a\b' said || fail "elsewhere: code $code, $(cat said)"
code=0
mount -t trivet -o acl vms "$work/layer" 2>said || code=$?
[ $code = 1 ] && grep -q 'acl is no option' said || fail "an option: code $code, $(cat said)"
umount mnt
free
say "mount -t trivet, mount -a, umount: passed"
