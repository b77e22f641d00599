#!/bin/bash
# A real Linux kernel's NFS client against our server, in a network namespace of its own (root).
# Usage: nfs.sh TRIVET [CASE...]; TRIVET is the program, cases are files verify proxmox locks fight
# restart rpcbind fsx pjdfstest (these by default), and deaf pjdfstest-nolock cthon nfstest (long, or from
# a checkout). The server is `trivet up`: three replicas, the file system, NFS.
# cthon wants TRIVET_CTHON, nfstest TRIVET_NFSTEST (and TESTS, what of it; NFSTEST_SECONDS).
# SEED=n repeats what verify and fsx did; STEPS, OPS and SEEDS say how much.
set -u
H=$(cd "$(dirname "$0")" && pwd); D=${TRIVET_VM:-$H/../../target/vm}
if [ "${INSIDE:-}" != 1 ]; then
  "$H/prepare.sh" "$D" || exit 1
  INSIDE=1 exec unshare -n -m "$0" "$@"
fi
SERVE=$1; shift; D=$(cd "$D" && pwd)
W=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-vm.XXXXXX"); N=10.77.0; PID=
start() {
  "$SERVE" up --dir "$W/data" --size 8G --nfs $N.1:2049 --export /vm --allow "$N.0/24(rw,no_root_squash)" >> "$W/log" 2>&1 & PID=$!
  for _ in $(seq 150); do showmount --no-headers --exports $N.1 >/dev/null 2>&1 && return; sleep 0.1; done
  echo "the server does not answer:"; cat "$W/log"; exit 1
}
stop() { [ -n "$PID" ] && { kill $PID; wait $PID || { echo "the server ended badly"; tail -5 "$W/log"; failed=1; }; }; PID=; }
crash() { kill -9 $PID; wait $PID 2>/dev/null; PID=; }
trap 'stop; rm -rf "$W"' EXIT
ip link set lo up; ip link add br0 type bridge; ip link set br0 up; ip addr add $N.1/24 dev br0
for t in tap0 tap1; do ip tuntap add $t mode tap; ip link set $t master br0 up; done
failed=0
guest() { # name, last byte of its address, tap, seconds, job, files of the job...
  local name=$1 byte=$2 tap=$3 secs=$4 job=$5; shift 5
  "$H/guest.sh" "$D" "$name" "$N.$byte/24" "tap$tap" $N.1 1 "$secs" "$H/$job" "$@"
}
pjd() {
  VARS=OPTIONS=$1 guest a 11 0 "${PJD_SECONDS:-300}" job-pjdfstest.sh "$D/pjdfstest" \
    "$H/../../fs/tests/suites/pjdfstest.toml" "$H/pjdfstest-known"
}
registered() {
  [ "$(rpcinfo -p "$1" 2>/dev/null | awk '$4 == 2049 {print $1 "v" $2 $3}' | sort | tr '\n' ' ')" = \
    "100003v3tcp 100005v1tcp 100005v1udp 100005v2tcp 100005v2udp 100005v3tcp 100005v3udp 100021v4tcp 100021v4udp 100024v1tcp 100024v1udp " ]
}
result() {
  if [ "$2" = 0 ]; then echo "vm $1: ok, $((SECONDS - since)) s"
  else echo "vm $1: FAILED ($2), $((SECONDS - since)) s"; failed=1; tail -5 "$W/log"; fi
}
for c in ${@:-files verify proxmox locks fight restart rpcbind fsx pjdfstest}; do
  rm -rf "$W/data"; since=$SECONDS
  [ $c = rpcbind ] && { mount -t tmpfs none /run; mkdir /run/rpcbind; rpcbind -w -f & RPCBIND=$!; sleep 1; }
  start
  case $c in
  files) guest a 11 0 240 job-files.sh; result files $? ;;
  proxmox) guest a 11 0 120 job-proxmox.sh; result proxmox $? ;;
  nfstest) # Two guests: a runs it, b is the second client of those cases that want one.
         "$H/nfstest.sh" "$W/nfstest.tar" || { failed=1; break; }
         export MEMORY=${MEMORY:-1024}; vars="TESTS='${TESTS:-posix dio io+--runtime+60 cache+--client+10.77.0.12 lock+--client+10.77.0.12,10.77.0.12:mtpoint=/mnt/u}'
VERBOSE=${VERBOSE:-}"
         VARS=$vars guest b 12 1 "${NFSTEST_SECONDS:-340}" job-nfstest.sh "$W/nfstest.tar" & two=$!
         VARS=$vars guest a 11 0 "${NFSTEST_SECONDS:-340}" job-nfstest.sh "$W/nfstest.tar"; result nfstest $?
         kill $two 2>/dev/null; wait $two ;;
  cthon) "$H/cthon.sh" "$W/cthon.tar" && guest a 11 0 400 job-cthon.sh "$W/cthon.tar"; result cthon $? ;;
  verify) guest a 11 0 240 job-verify.sh; result verify $? ;;
  fsx) guest a 11 0 300 job-fsx.sh "$D/fsx" "$H/fsx.toml"; result fsx $? ;;
  pjdfstest) pjd vers=3; result pjdfstest $? ;;
  pjdfstest-nolock) pjd vers=3,nolock,nconnect=4; result pjdfstest-nolock $? ;;
  locks) guest a 11 0 90 job-locks.sh; result locks $? ;;
  fight | deaf) guest a 11 0 180 job-$c.sh & one=$!; guest b 12 1 180 job-$c.sh; two=$?
         wait $one; one=$?; result $c $((one + two)) ;;
  restart) guest a 11 0 240 job-restart.sh & one=$!
         for round in 1 2; do sleep 9; crash; sleep 2; start; done
         wait $one; result restart $? ;;
  rpcbind) # The system has port 111: we are registered there, also after it was restarted.
         registered $N.1; one=$?; kill $RPCBIND; wait $RPCBIND; rpcbind -f & RPCBIND=$!
         rpcbind_forgot=1; for _ in $(seq 40); do sleep 0.5; registered $N.1 && { rpcbind_forgot=0; break; }; done
         result rpcbind $((one + rpcbind_forgot)); stop; rpcinfo -p $N.1 | grep -q 2049 && { echo "entries stay behind"; failed=1; }
         kill $RPCBIND ;;
  *) echo "no case $c" >&2; failed=1 ;;
  esac
  stop
done
exit $failed
