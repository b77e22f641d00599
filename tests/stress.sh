#!/usr/bin/env bash
# Load with its own checks on the mount of a `trivet up`: fio, which reads back and verifies what it
# wrote, and the file-system stressors of stress-ng, each for some seconds and each looking at what
# it gets (--verify); then fsck. Both are Debian's. Root, in namespaces of its own.
# Usage: stress.sh TRIVET (SECONDS_EACH=2: of each stressor; FIO_MB=64: of each job of fio)
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  INSIDE=1 exec unshare --net --mount "$0" "$(realpath "$1")"
fi
trivet=$1 each=${SECONDS_EACH:-2} mb=${FIO_MB:-64}
ip link set lo up
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-stress.XXXXXX")
mnt=$work/mnt pid=
say() { echo "stress: $*"; }
end() {
  local status=$?
  [ $status = 0 ] || { say "FAILED; the daemon's log:"; tail -20 "$work/log"; }
  [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } 2>/dev/null || true
  umount -l "$mnt" 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
"$trivet" up --dir "$work/data" --size 16G --no-nfs --mount "$mnt" >"$work/out" 2>"$work/log" &
pid=$!
for _ in $(seq 300); do
  grep -q SIGTERM "$work/out" && break
  kill -0 "$pid"
  sleep 0.1 # until it says that it runs
done

# --- fio: writes, then reads all of it back against the checksums in it -------------------------
fio_job() { # name, options...
  local name=$1
  shift
  timeout 300 fio --name="$name" --directory="$mnt" --size="${mb}m" --verify=crc32c --do_verify=1 \
    --verify_fatal=1 --verify_state_save=0 --randrepeat=1 --fallocate=none \
    --output="$work/fio" "$@" ||
    { say "fio $name"; cat "$work/fio"; exit 1; }
  rm -f "$mnt/$name".*
}
fio_job sequential --rw=write --bs=1m --end_fsync=1
fio_job random --rw=randwrite --bs=4k-64k --bs_unaligned
fio_job direct --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=32 --verify_backlog=512
fio_job durable --rw=randwrite --bs=4k --direct=1 --sync=dsync --ioengine=psync --numjobs=4 \
  --size=$((mb / 16))m --group_reporting
fio_job mapped --rw=randrw --bs=4k --ioengine=mmap --fsync=64
say "fio read back what it wrote"

# What is read through the page cache while somebody writes past it by io_submit must not stay
# there: an image copied after its guest had ended would be an older one in places.
shared=$mnt/shared
dd if=/dev/zero of="$shared" bs=640k count=1 status=none
for round in $(seq 8); do
  for _ in 1 2 3; do
    (while [ ! -e "$work/enough" ]; do cat "$shared" >/dev/null; done) &
  done
  timeout 60 fio --name=shared --filename="$shared" --rw=write --bs=640k --size=640k --direct=1 \
    --ioengine=libaio --time_based --runtime=1 --refill_buffers --output="$work/fio"
  touch "$work/enough"
  while [ "$(jobs -rp | wc -l)" -gt 1 ]; do wait -n; done
  rm "$work/enough"
  cmp "$shared" <(dd if="$shared" iflag=direct bs=640k status=none) ||
    { say "round $round: the page cache has what was there before"; exit 1; }
done
say "what was written past the page cache is read through it"

# --- stress-ng ------------------------------------------------------------------------------------
# Of its file-system class what works on one directory. Not lockf: it kills a child that waits for a
# lock of the parent's, and then waits for its end, which no signal can bring about (docs/design.md,
# section 7). Nor binderfs, procfs, sysfs (other file systems); verity, file-ioctl, inode-flags,
# chattr (ioctls that FUSE has not); lease, fanotify, dnotify, inotify, eventfd, dup, ioprio (the
# kernel's own).
stressors=(access chdir chmod chown copy-file dentry dir dirdeep dirmany fallocate fcntl
  fiemap filename flock fpunch fsize fstat getdent handle hdd io iomix link locka lockofd
  mknod open readahead rename revio seek sendfile splice symlink sync-file touch
  utime xattr mmap)
mkdir "$mnt/stress"
for s in "${stressors[@]}"; do
  more=() since=$SECONDS
  case $s in
    hdd) more=(--hdd-bytes 64m) ;;
    fallocate) more=(--fallocate-bytes 64m) ;;
    iomix) more=(--iomix-bytes 64m) ;;
    revio) more=(--revio-bytes 32m) ;;
    seek) more=(--seek-size 32m) ;;
    copy-file) more=(--copy-file-bytes 128m) ;;
    readahead) more=(--readahead-bytes 64m) ;;
    sync-file) more=(--sync-file-bytes 32m) ;;
    mmap) more=(--mmap-bytes 32m --mmap-file) ;;
    dentry) more=(--dentries 512) ;;
    dirdeep) more=(--dirdeep-inodes 2000) ;;
  esac
  timeout 120 stress-ng --temp-path "$mnt/stress" "--$s" 2 "${more[@]}" --timeout "$each" --verify \
    >"$work/stressor" 2>&1 || { say "stress-ng --$s"; cat "$work/stressor"; exit 1; }
  [ $((SECONDS - since)) -lt $((each + 10)) ] || say "$s took $((SECONDS - since)) s"
done
say "${#stressors[@]} stressors of stress-ng, $each s each"
left=$(find "$mnt/stress" -mindepth 1 | wc -l)
[ "$left" = 0 ] || { say "$left names stay behind"; exit 1; }

kill "$pid"
wait "$pid"
pid=
"$trivet" fsck --dir "$work/data" >/dev/null 2>>"$work/log"
say "ok, fsck is clean"
