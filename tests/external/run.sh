#!/usr/bin/env bash
# External suites from checkouts of your own, on the mount of a `trivet up`; never part of the
# repository, and run by command only. Each variable that is set names a built checkout:
#   TRIVET_PJDFSTEST  github.com/pjd/pjdfstest (the one in C): all of it. `prove` runs it
#   TRIVET_XFSTESTS   xfstests: the group `generic/quick`, or TESTS="generic/001 ..."
# What may fail is listed with its reason in the files `pjdfstest` and `xfstests` beside this one.
# Root, in namespaces of its own. Usage: run.sh TRIVET (LOG=FILE keeps what xfstests says)
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  # Its own semaphores, too: generic/478 finds its by a number that may stand in others' lines.
  INSIDE=1 exec unshare --net --mount --ipc "$0" "$(realpath "$1")"
fi
trivet=$1 here=$(cd "$(dirname "$0")" && pwd)
[ -n "${TRIVET_PJDFSTEST:-}${TRIVET_XFSTESTS:-}" ] || {
  echo "set TRIVET_PJDFSTEST or TRIVET_XFSTESTS to a built checkout"
  exit 2
}
ip link set lo up
# Other mounts of this kind would be taken for the suite's; in this namespace they are not needed.
{ findmnt -rn -o TARGET -S trivet || true; } | while read -r m; do umount -l "$m"; done
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-external.XXXXXX")
chmod 755 "$work" # the suites change users
mnt=$work/mnt failed=0 log=${LOG:-$work/xfs}
mkdir "$mnt"
say() { echo "external: $*"; }
# As a mount helper has it: goes on when the mount is there, with the daemon in the background.
cat >"$work/mount.fuse.trivet" <<HELPER
#!/bin/bash
# Called by mount(8): SOURCE DIRECTORY ...; the daemon before this one is ended first.
if [ -s $work/pid ]; then
  kill \$(cat $work/pid) 2>/dev/null
  while kill -0 \$(cat $work/pid) 2>/dev/null; do sleep 0.05; done
fi
setsid $trivet up --dir $work/data --size 16G --no-nfs --mount \$2 >$work/out 2>>$work/log </dev/null &
echo \$! >$work/pid
for _ in \$(seq 300); do
  grep -q SIGTERM $work/out && exit 0
  kill -0 \$(cat $work/pid) || exit 32
  sleep 0.1
done
exit 32
HELPER
chmod 755 "$work/mount.fuse.trivet"
end() {
  umount -l "$mnt" 2>/dev/null || true
  [ ! -s "$work/pid" ] || {
    kill "$(cat "$work/pid")" && while kill -0 "$(cat "$work/pid")"; do sleep 0.1; done
  } 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT

if [ -n "${TRIVET_PJDFSTEST:-}" ]; then
  "$work/mount.fuse.trivet" trivet "$mnt"
  mkdir "$mnt/pjd"
  (cd "$mnt/pjd" && prove -r -j4 "$(realpath "$TRIVET_PJDFSTEST")/tests") >"$work/pjd" 2>&1 || true
  tail -2 "$work/pjd"
  bad=$(sed -nE 's!^.*/tests/([a-z_]+/[0-9]+\.t) .*(Failed|Dubious|Wstat).*!\1!p' "$work/pjd" | sort -u)
  new=$(comm -23 <(echo "$bad") <(sed 's/ .*//' "$here/pjdfstest" | sort -u) | grep . || true)
  grep -q '^Result: ' "$work/pjd" || { say "pjdfstest did not come to its end"; failed=1; }
  [ -z "$new" ] || { say "pjdfstest fails: $new"; failed=1; }
  umount "$mnt"
fi

if [ -n "${TRIVET_XFSTESTS:-}" ]; then
  # Seen by this namespace only: the helper where mount(8) looks, and the users of the suite.
  mkdir "$work/upper" "$work/overlay" "$work/scratch"
  cp "$work/mount.fuse.trivet" "$work/upper/"
  mount -t overlay -o "lowerdir=/usr/sbin,upperdir=$work/upper,workdir=$work/overlay" none /usr/sbin
  for f in passwd group; do cp "/etc/$f" "$work/$f"; done
  n=60000
  for u in fsgqa fsgqa2 123456-fsgqa; do
    n=$((n + 1))
    grep -q "^$u:" /etc/passwd || echo "$u:*:$n:$n::/tmp:/bin/bash" >>"$work/passwd"
    grep -q "^$u:" /etc/group || echo "$u:x:$n:" >>"$work/group"
  done
  for f in passwd group; do mount --bind "$work/$f" "/etc/$f"; done
  export HOST_OPTIONS=$work/config RESULT_BASE=$work/results
  printf '%s\n' "export FSTYP=fuse FUSE_SUBTYP=.trivet" "export TEST_DEV=trivet TEST_DIR=$mnt" \
    "export TEST_FS_MOUNT_OPTS= MOUNT_OPTIONS=" >"$work/config"
  sed 's/ .*//' "$here/xfstests" | grep . >"$work/exclude" || true
  (cd "$TRIVET_XFSTESTS" && ./check -fuse -E "$work/exclude" ${TESTS:--g generic/quick}) \
    >"$log" 2>&1 || failed=1
  grep -vE '^generic/[0-9]+ .*(\[not run\]|\[expunged\]| [0-9]+s)' "$log" | tail -60
  umount "$mnt" 2>/dev/null || true
fi
if [ -s "$work/pid" ]; then
  kill "$(cat "$work/pid")"
  while kill -0 "$(cat "$work/pid")" 2>/dev/null; do sleep 0.1; done
fi
"$trivet" fsck --dir "$work/data" >/dev/null 2>>"$work/log"
say "fsck is clean"
exit $failed
