# The server is killed and restarted under load: no error, nothing lost, no stale handle, locks stay.
set -e
mount.nfs "$SERVER:/vm" /mnt -o vers=3,hard,nconnect=2; cd /mnt
dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null
lock held 0:ofd:w:0:1 0:sleep:u:30:0 > /tmp/l &
exec 3<> open; echo before >&3
: > ready; sync
n=0; end=$(($(cut -d. -f1 /proc/uptime) + 25))
while [ "$(cut -d. -f1 /proc/uptime)" -lt $end ]; do
  dd if=/tmp/r of="direct$n" bs=64k oflag=direct 2>/dev/null
  cp /tmp/r "buffered$n"; mkdir "dir$n"; mv "dir$n" "moved$n"
  n=$((n + 1)); [ $n -lt 40 ]
done
[ "$(lock held 0:ofd:w:0:1)" = '0 ofd w 0 1 = EAGAIN' ]
echo after >&3; exec 3>&-; [ "$(cat open | tail -1)" = after ]
echo 3 > /proc/sys/vm/drop_caches
i=0; while [ $i -lt $n ]; do
  cmp "direct$i" /tmp/r; cmp "buffered$i" /tmp/r; [ -d "moved$i" ]; [ ! -e "dir$i" ]; i=$((i + 1))
done
wait; cd /; umount /mnt; echo "restart-ok $n rounds"
