#!/usr/bin/env bash
# Work that a person does on the mount, while the daemon is killed with -9 in the middle of it: tar
# x, git clone, a compile. After each kill `trivet up` goes on, what is there is looked at, and the
# work is done again; the result must be the same to the bit as on the local disk. Meanwhile one
# replica is away for a while, and the pools of another run are so small that they fill up.
# Root, in namespaces of its own. Usage: work.sh TRIVET (KILLS=3: kills per job; SEED=n)
set -euo pipefail
if [ "${INSIDE:-}" != 1 ]; then
  INSIDE=1 exec unshare --net --mount "$0" "$(realpath "$1")"
fi
trivet=$1 kills=${KILLS:-3} seed=${SEED:-$RANDOM}
RANDOM=$seed
ip link set lo up
work=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-work.XXXXXX")
here=$(cd "$(dirname "$0")/.." && pwd)
mnt=$work/mnt data=$work/data size=4G pid=
say() { echo "work: $*"; }
end() {
  local status=$?
  [ -z "$pid" ] || { kill "$pid" && wait "$pid"; } 2>/dev/null || true
  [ $status = 0 ] || { say "FAILED (SEED=$seed); its log:"; tail -20 "$work/log"; }
  umount -l "$mnt" 2>/dev/null || true
  umount "$work"/small/? 2>/dev/null || true
  rm -rf "$work"
}
trap end EXIT
start() {
  : >"$work/out"
  "$trivet" up --dir "$data" --size "$size" --no-nfs --mount "$mnt" >"$work/out" 2>>"$work/log" &
  pid=$!
  for _ in $(seq 600); do
    grep -q SIGTERM "$work/out" && return
    kill -0 "$pid" || return 1
    sleep 0.1 # until it says that it runs
  done
  say "does not start"
  return 1
}
stop() {
  kill "$pid"
  wait "$pid"
  pid=
}
# Runs a job that will not live to see its end: the daemon dies some time into it.
interrupted() {
  "$@" >/dev/null 2>&1 &
  local job=$!
  sleep "0.$((RANDOM % 9))$((RANDOM % 9))" # some time, any time
  kill -9 "$pid"
  wait "$pid" 2>/dev/null || true
  wait "$job" 2>/dev/null || true
  pid=
  start
}

# --- the jobs, each from the beginning, over whatever an earlier attempt left --------------------
untar() { mkdir -p "$mnt/tree" && tar -C "$mnt/tree" -xf "$work/tree.tar"; }
clone() { rm -rf "$mnt/clone" && git clone -q "$work/origin.git" "$mnt/clone"; }
compile() {
  rm -rf "$mnt/build" && cp -r "$work/source" "$mnt/build" && cd "$mnt/build" &&
    for c in *.c; do cc -O1 -c "$c" || return 1; done && ar rcD lib.a ./*.o
}

tar -C "$here" -cf "$work/tree.tar" --exclude=./target --exclude=./var --exclude=./.git \
  --exclude=./fuzz/target .
mkdir "$work/tree" "$work/source"
tar -C "$work/tree" -xf "$work/tree.tar"
git -c init.defaultBranch=main init -q "$work/origin"
cp -r "$work/tree"/. "$work/origin"
git -C "$work/origin" add -A
git -C "$work/origin" -c user.name=t -c user.email=t@example.com commit -qm all
git clone -q --bare "$work/origin" "$work/origin.git"
for i in $(seq 40); do
  printf 'int f%d(int x) { int s = 0; for (int i = 0; i < x; i++) s += i * %d; return s; }\n' \
    "$i" "$i" >"$work/source/f$i.c"
done
cp -r "$work/source" "$work/build"
(cd "$work/build" && for c in *.c; do cc -O1 -c "$c"; done && ar rcD lib.a ./*.o)

start
echo "kept since the beginning" >"$mnt/witness"
sync "$mnt/witness"
region=$(dirname "$(find "$data/c" -name region.toml)")
for job in untar clone compile; do
  for n in $(seq "$kills"); do
    if [ "$job$n" = clone1 ]; then
      mv "$region" "$work/away" # its disk is gone until the next job
    elif [ "$job$n" = compile1 ]; then
      mv "$work/away" "$region"
    fi
    interrupted "$job"
    grep -q beginning "$mnt/witness"
  done
  ("$job")
  stop
  "$trivet" fsck --dir "$data" >/dev/null 2>>"$work/log"
  start
  case $job in
    untar) diff -r "$work/tree" "$mnt/tree" ;;
    clone)
      git -C "$mnt/clone" fsck --strict --no-dangling
      [ -z "$(git -C "$mnt/clone" status --porcelain)" ]
      diff -r --exclude=.git "$work/tree" "$mnt/clone"
      ;;
    compile) diff -r "$work/build" "$mnt/build" ;;
  esac
  say "$job: the same after $kills kills"
done
grep -q 'is lost: there is no region' "$work/log" || { say "nobody missed the replica"; exit 1; }
stop

# --- pools that fill up --------------------------------------------------------------------------
data=$work/small
for r in a b c; do
  mkdir -p "$data/$r"
  mount -t tmpfs -o size=600m tmpfs "$data/$r"
done
start
head -c 32M /dev/urandom >"$work/kept"
cp "$work/kept" "$mnt/kept"
sync "$mnt/kept"
! head -c 900M /dev/urandom >"$mnt/big" 2>/dev/null
[ "$(stat -c %s "$mnt/big")" -gt 50000000 ]
sync "$mnt/big"
# What is written may be written over, also now.
head -c 32M /dev/urandom >"$work/kept"
dd if="$work/kept" of="$mnt/kept" bs=1M conv=notrunc,fsync status=none
cmp "$work/kept" "$mnt/kept"
rm "$mnt/big"
for _ in $(seq 100); do
  [ "$(df --output=avail -k "$mnt" | tail -1)" -gt 150000 ] && break
  sleep 0.1 # the room comes back with a checkpoint
done
head -c 100M /dev/urandom >"$work/again"
cp "$work/again" "$mnt/again"
sync "$mnt/again"
cmp "$work/again" "$mnt/again"
cmp "$work/kept" "$mnt/kept"
stop
"$trivet" fsck --dir "$data" >/dev/null 2>>"$work/log"
say "a full pool says so, keeps what it has, and takes more after a deletion"
say "ok"
