#!/bin/bash
# Hosts that serve the share and mount it, as Proxmox hosts do (docs/takeover.md): two guests, each
# with `trivet serve`, rpcbind, statd and Debian's kernel client; a third replica in a process here.
# The share is mounted on both through the service address, with locks, all along. Usage (root):
#   hosts.sh TRIVET [EVENT...]   events: move kill kill-both lose squeeze; move kill
#                  squeeze by default. SEED=n, MEMORY=MiB, WRITE=MiB (of `squeeze`), KEEP=MiB.
# FLUSHER=no has the daemons run without PR_SET_IO_FLUSHER, for comparison.
set -u
H=$(cd "$(dirname "$0")" && pwd); D=${TRIVET_VM:-$H/../../target/vm}
if [ "${INSIDE:-}" != 1 ]; then
  "$H/prepare.sh" "$D" || exit 1
  INSIDE=1 exec unshare -n -m -p --fork --kill-child --mount-proc "$0" "$@"
fi
SERVE=$(realpath "$1"); shift; D=$(cd "$D" && pwd); export PATH=$PATH:/usr/sbin:/sbin
W=$(mktemp -d "${TMPDIR:-/var/tmp}/trivet-hosts.XXXXXX"); N=10.77.0 SERVICE=10.77.0.100; cd "$W" || exit 1; export TMPDIR=$W
export SEED=${SEED:-$((RANDOM * 32768 + RANDOM))} MEMORY=${MEMORY:-384}
KEEP=${KEEP:-32} WRITE=${WRITE:-36} OOM=-950
CAPS=+net_admin,+sys_admin,+net_bind_service,+net_raw
[ "${FLUSHER:-}" = no ] || CAPS=$CAPS,+sys_resource
declare -A fd run; ids=0
ended() { jobs -p | while read -r p; do kill "$p" 2>/dev/null; done; wait; cd /; [ -n "${KEPT:-}" ] || rm -rf "$W"; }
trap ended EXIT; trap 'exit 130' INT TERM
say() { printf '%4d s: %s\n' "$SECONDS" "$*"; }
bad() {
  echo "hosts: FAILED after $SECONDS s (SEED=$SEED): $*"
  for h in "${!fd[@]}"; do
    echo "99999 hung" >&"${fd[$h]}"; sleep 3
    echo "--- $h:"; tr -d '+\r' < $h.out | tail -${LINES_SAID:-60}; tail -5 $h.err
    echo "--- $h, trivet serve:"; debugfs -R 'cat serve.log' $h.img 2>/dev/null | tail -25
  done
  echo "--- n3:"; tail -15 n3.log; trivet status 2>&1
  exit 1
}
trivet() { TRIVET_CONFIG=cfg/trivet.toml TRIVET_KEY=cfg/n3.key timeout 60 "$SERVE" "$@"; }
boot() { # host: with the disk that it has; returns at once
  local h=$1 n=${1#n}; rm -f $h.pid; : > $h.out
  mkfifo $h.ctl.in $h.ctl.out 2>/dev/null; [ -z "${fd[$h]:-}" ] || exec {fd[$h]}>&-
  exec {fd[$h]}<>$h.ctl.in
  CONTROL=$W/$h.ctl DISK=$W/$h.img PIDFILE=$W/$h.pid VARS="OOM=$OOM
CAPS=$CAPS" "$H/guest.sh" "$D" $h $N.1$n/24 tap$n $SERVICE 0 3600 "$H/job-hosts.sh" \
    "$W/trivet" cfg/trivet.toml cfg/$h.key "${libs[@]}" > $h.out 2> $h.err &
  run[$h]=$!
}
up() { until_said $1 '^## up' 120; }
until_said() { # host, expression, seconds
  local i; for ((i = 0; i < $3 * 10; i++)); do
    grep -aqE "$2" $1.out && return
    kill -0 ${run[$1]} 2>/dev/null || bad "$1 is gone"; sleep 0.1
  done; bad "$1: no $2 in $3 s"
}
on() { # host, seconds, command: runs it there, and fails if it does
  local h=$1 s=$2 id=$((++ids)); shift 2; echo "$id $*" >&"${fd[$h]}"
  until_said $h "^## $id " $s; grep -aqE "^## $id 0" $h.out || bad "$h: $*: $(grep -a "^## $id " $h.out)"
}
writes() { tr -cd + < $1.out | wc -c; }
serving() { # host that shall be active, or "" for any; the volume must be redundant
  local i; for ((i = 0; i < 90; i++)); do
    trivet status vms > status 2>&1 && { [ -z "$1" ] || [ "$(active)" = "$1" ]; } && return; sleep 1
  done; cat status; bad "not redundant on ${1:-any node} after 90 s"
}
active() { trivet status vms 2>/dev/null | sed -n 's/^vms: active on \([^ ]*\) .*/\1/p'; }
other() { [ $1 = n1 ] && echo n2 || echo n1; }
goes_on() { # event, hosts: each of them writes durably again, within a minute
  local what=$1 h i before from=$SECONDS waited=; shift
  for h in "$@"; do
    before=$(writes $h); for ((i = 0; i < 600; i++)); do [ $(writes $h) -gt $((before + 5)) ] && break; sleep 0.1; done
    [ $(writes $h) -gt $((before + 5)) ] || bad "$what: $h writes nothing for 60 s"
    waited+=" $h after $((SECONDS - from)) s"
  done
  ! grep -al '^## got the lock' n?.out || bad "$what: a lock that was held was given away"
  say "$what: it goes on:$waited"
}

take() { # host: what is active moves there, or is there already
  [ "$(active)" = $1 ] || trivet promote vms --node $1 --yes > said 2>&1 || bad "promote to $1: $(cat said)"
}
event() {
  local a b; a=$(active); b=$(other $a)
  case $1 in
  move) take $b; say "active on $b: $(sed -n 's/^  *last move//p' <(trivet status))"; goes_on "moved from $a to $b" $a $b ;;
  kill) on $a 60 'kill -9 $(daemon)'; goes_on "daemon of $a killed" $a $b; serving "" ;;
  kill-both) on $a 60 'kill -9 $(daemon) $(parent)'; goes_on "daemon of $a and its parent killed" $a $b; serving "" ;;
  lose) lose $a $b ;;
  squeeze) squeeze $a $b ;;
  *) bad "no event $1" ;;
  esac
}
lose() { # the active host loses power, and is back later
  local count before=$1-${rounds[$1]}
  kill -9 "$(cat $1.pid)"; wait ${run[$1]}; count=$(writes $1)
  goes_on "$1 is gone" $2
  # Whose lock nobody gets as long as that host is away: it may be cut off, and think that it has it.
  on $2 60 "try $1; durable --was $count /mnt/$before $SEED; rm -f /tmp/probing"
  lost=$((lost + 1)); boot $1; up $1; on $1 60 ': > /tmp/rebooted; share'; serving $2
  # It has told the server by SM_NOTIFY that it has no locks any more, and takes them anew.
  work $1; on $2 60 ': > /tmp/probing'; goes_on "$1 is back" $1 $2
}
squeeze() { # the active host has too little memory, and more to write than it has
  on $1 60 'daemon > /tmp/daemon'
  on $1 $((120 + 4 * WRITE)) "squeeze $KEEP $WRITE"; goes_on "$1 was short of memory" $1 $2
  on $1 60 '[ "$(daemon)" = "$(cat /tmp/daemon)" ] || ! echo "the daemon is another one"'
  say "$(tr -d '+\r' < $1.out | grep -aE '^(hog|pressure)' | tr '\n' ';')"
}
work() {
  rounds[$1]=$((${rounds[$1]:-0} + 1)); on $1 90 "work $1-${rounds[$1]} $(other $1)"
}

strip -o trivet "$SERVE"
libs=("$(command -v ip)" "$(command -v setpriv)"); declare -A rounds; lost=0
mapfile -t -O 2 libs < <(ldd "${libs[@]}" "$SERVE" | awk '/=> \//{print $3}' | grep -v '/libc\.so' | sort -u)
ip link set lo up; ip link add br0 type bridge; ip link set br0 up; ip addr add $N.13/24 dev br0
for t in tap1 tap2; do ip tuntap add $t mode tap; ip link set $t master br0 up; done
"$SERVE" init --node n1=$N.11 --node n2=$N.12 --node n3=$N.13 --service $SERVICE/24 --pool /disk/pool --out cfg > /dev/null
sed -i '/^name = "n3"/,/^\[\[/{s|/disk/pool|'"$W"'/pool|;s|^roles = .*|roles = ["replica"]|}' cfg/trivet.toml
for h in n1 n2; do truncate -s 8G $h.img; mke2fs -q -t ext4 $h.img; boot $h; done
"$SERVE" pool create pool > /dev/null
"$SERVE" serve --config cfg/trivet.toml --key cfg/n3.key --node n3 --state n3 >> n3.log 2>&1 &
up n1; up n2; say "both are up"
for _ in $(seq 60); do trivet volume create vms --size 4G > said 2>&1 && break; sleep 0.5; done
serving ""; take n1; serving n1
for h in n1 n2; do on $h 60 share; work $h; done
goes_on "mounted on both, active on $(active)" n1 n2
# Protected, and IO flushers, both processes: nowhere else do tests have the right to that. It takes
# its time, in which other things happen; what is done first is done to n1.
on n2 60 '(trivet doctor > /tmp/doctor; : > /tmp/doctored) &'
for e in ${@:-move kill squeeze}; do event $e; done
[ "${FLUSHER:-}" = no ] || on n2 120 'until [ -e /tmp/rebooted ] || [ -e /tmp/doctored ]; do sleep 0.5; done; [ -e /tmp/rebooted ] || [ "$(grep -c "^ok *process " /tmp/doctor)" = 2 ]'
for h in n1 n2; do on $h 150 rest; done
for h in n1 n2; do on $h 60 let_go; done
on n1 60 "once --check /mnt/race"; tr -d '+\r' < n1.out | grep -a '^once: .*nobody'
[ "$(tr -d '+\r' < n1.out | sed -n 's/^once: .*by nobody who knows: //p')" -le $lost ] || bad "names that nobody knows to have made"
for h in n1 n2; do on $h 60 finish; echo "0 true" >&"${fd[$h]}"; tr -d '+\r' < $h.out | grep -a '^durable SEED'; done
for h in n1 n2; do wait ${run[$h]} || bad "$h: $(tail -5 $h.err)"; done
say "ok (SEED=$SEED)"
