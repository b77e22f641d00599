#!/bin/bash
# A real Linux kernel's NFS client beside takeovers: trivet-takeover takeovers --beside THIS, which
# says by environment and standard input what is to be done (tests/takeover/src/beside.rs). A guest
# is attached to the lab's switch by tap, mounts the export there, and does job-takeover.sh.
# On another switch (tests/package-upgrade.sh): BRIDGE is its name, ADDRESS that of the guest.
set -eu
H=$(cd "$(dirname "$0")" && pwd); D=${TRIVET_VM:-$H/../../target/vm}
"$H/prepare.sh" "$D"; D=$(cd "$D" && pwd)
exec 3<&0 # of which a command in the background would get nothing
switch() { nsenter --net="$SWITCH" "$@"; }
switch ip tuntap add dev guest mode tap; switch ip link set guest master "${BRIDGE:-br0}" up
mkfifo "$SCRATCH/control.in" "$SCRATCH/control.out"
(while read -r _; do :; done; echo end > "$SCRATCH/control.in") <&3 &
CONTROL=$SCRATCH/control VARS="EXPORT=$EXPORT" TMPDIR=$SCRATCH \
  switch "$H/guest.sh" "$D" kernel "${ADDRESS:-10.77.0.31/24}" guest "$SERVICE" 1 7200 "$H/job-takeover.sh"
