# A host as Proxmox has them (hosts.sh): a bridge, a disk, rpcbind, statd and the kernel's NFS client,
# and `trivet serve` beside them. Does what is told at the port `control`, line by line, "ID COMMAND":
# each is run in the background, and answered by "## ID STATUS".
PATH=/job:$PATH LD_LIBRARY_PATH=/lib/x86_64-linux-gnu:/job
export TRIVET_CONFIG=/job/trivet.toml TRIVET_KEY=/job/$NAME.key
ip link add vmbr0 type bridge; ip addr flush dev eth0
ip link set eth0 master vmbr0; ip link set vmbr0 up; ip addr add "$IP" dev vmbr0
# What NFS remembers of its locks is on the disk, as on a host: statd tells the server at each boot.
mkdir -p /disk /run/netns; mount -t ext4 /dev/vda /disk || exit 1
[ -d /disk/nfs ] || cp -a /var/lib/nfs /disk/nfs
mount --bind /disk/nfs /var/lib/nfs; rpcbind -w; rpc.statd
echo 1 > /proc/sys/kernel/sysrq

serve() { # as the unit has it: protected, with its capabilities, started again whatever ended it
  [ -d /disk/pool ] || trivet pool create /disk/pool > /dev/null
  while :; do
    sh -c 'echo $0 > /proc/$$/oom_score_adj; exec "$@"' "$OOM" \
      /job/setpriv --no-new-privs --inh-caps=-all "--bounding-set=-all,$CAPS" \
      trivet serve --node "$NAME" --state /disk/state >> /disk/serve.log 2>&1
    echo "ended: $?" >> /disk/serve.log; sleep 1
  done
}
parent() { ps | awk '$3 == "trivet" && $4 == "serve" {print $1}'; }
daemon() { ps | awk '$3 == "{exe}" && $5 == "serve" {print $1}'; } # it is started as /proc/self/exe
share() { mount.nfs "$SERVER:/vms" /mnt -o vers=3,hard; }
work() { # run, the other host: durable writes, a race for names, a lock held, and the other's tried
  rm -f /tmp/end /tmp/*.status; mkdir -p "/mnt/$1" /mnt/race || return
  lock "/mnt/held-$NAME" 0:posixw:w:0:100 0:sleep:u:1000000:0 > /tmp/held & echo $! > /tmp/holder
  n=0; until grep -q 'posixw w 0 100 = ok' /tmp/held; do n=$((n + 1)); [ $n -lt 300 ] || return; sleep 0.1; done
  (durable "/mnt/$1" /tmp/end "$SEED"; echo $? > /tmp/durable.status) &
  (once /mnt/race /tmp/end "${NAME#n}"; echo $? > /tmp/once.status) &
  : > /tmp/probing
  (got=0; while [ ! -e /tmp/end ]; do
    [ ! -e /tmp/probing ] || try "$2" || { got=1; echo "## got the lock that $2 holds"; break; }
    sleep 0.5
  done; echo $got > /tmp/probe.status) &
}
try() { # fails if the lock of that host is to be had
  [ ! -e "/mnt/held-$1" ] || [ "$(lock "/mnt/held-$1" 0:posix:w:0:100)" = '0 posix w 0 100 = EAGAIN' ]
}
rest() { # ends the work, and says whether all of it was well
  : > /tmp/end; n=0
  for what in durable once probe; do
    until [ -e /tmp/$what.status ]; do n=$((n + 1)); [ $n -lt 1200 ] || { echo "$what does not end"; return 1; }; sleep 0.1; done
    [ "$(cat /tmp/$what.status)" = 0 ] || { echo "$what ended with $(cat /tmp/$what.status)"; return 1; }
  done
}
let_go() { # of the lock, which is held until then
  try "$NAME" && kill "$(cat /tmp/holder)"
}
squeeze() { # MiB to be left, MiB to be written: too little memory, and more to write than it holds
  rm -f /tmp/relief; pressure hog "$1" /tmp/relief &
  pressure write /mnt/big-$NAME "$2"; wrote=$?
  : > /tmp/relief; wait $!
  echo 3 > /proc/sys/vm/drop_caches
  [ $wrote = 0 ] && pressure check /mnt/big-$NAME "$2" && rm /mnt/big-$NAME
}
hung() { echo w > /proc/sysrq-trigger; dmesg | tail -150; grep -E 'Mem|Dirty|Writeback|NFS' /proc/meminfo; ps | grep trivet; }
finish() { umount /mnt && kill "$SERVING" && kill "$(parent)" && : > /tmp/finished; }

serve & SERVING=$!
exec 3< /dev/virtio-ports/control; echo; echo "## up"
while [ ! -e /tmp/finished ] && read -r id line <&3; do
  (eval "$line"; s=$?; echo; echo "## $id $s") &
done
