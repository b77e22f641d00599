# Two clients: b's own rpcbind is gone, so the server cannot find b to say that its lock is granted.
# b gets it all the same, at its next question (Linux asks every 30 s), and nothing hangs for a.
set -e
mount.nfs "$SERVER:/vm" /mnt -o vers=3,actimeo=1,lookupcache=none; cd /mnt
until_there() { n=0; while [ ! -e "$1" ]; do n=$((n + 1)); [ $n -lt 120 ]; sleep 1; done; }
if [ "$NAME" = a ]; then
  lock shared 0:ofd:w:0:10 0:sleep:u:8:0 > /tmp/a & sleep 1; : > a-holds; wait
  grep -q 'ofd w 0 10 = ok' /tmp/a
  # While the server tries in vain to reach b, others' locks are taken and given back at once.
  start=$(cut -d. -f1 /proc/uptime)
  for i in 1 2 3 4 5; do [ "$(lock other$i 0:ofd:w:0:1)" = '0 ofd w 0 1 = ok' ]; done
  [ $(($(cut -d. -f1 /proc/uptime) - start)) -lt 5 ]; until_there b-got
else
  until_there a-holds; lock warm 0:ofd:w:0:1 > /tmp/warm; killall rpcbind
  start=$(cut -d. -f1 /proc/uptime)
  [ "$(lock shared 0:ofdw:w:0:10)" = '0 ofdw w 0 10 = ok' ]
  waited=$(($(cut -d. -f1 /proc/uptime) - start))
  echo "granted without rpcbind after $waited s"; [ $waited -lt 70 ]; : > b-got
fi
cd /; umount -l /mnt; echo "deaf-ok $NAME"
