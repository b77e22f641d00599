# Two clients (a, b) of one server: a lock of one is a conflict for the other, and a wait is
# granted when the holder lets go. Files on the share say how far the other is.
set -e
mount.nfs "$SERVER:/vm" /mnt -o vers=3,actimeo=1,lookupcache=none; cd /mnt
until_there() { n=0; while [ ! -e "$1" ]; do n=$((n + 1)); [ $n -lt 60 ]; sleep 1; done; }
if [ "$NAME" = a ]; then
  lock shared 0:ofd:w:0:10 0:sleep:u:12:0 > /tmp/a & sleep 1; : > a-holds; until_there b-saw
  wait; grep -q 'ofd w 0 10 = ok' /tmp/a; until_there b-got
else
  until_there a-holds
  [ "$(lock shared 0:ofd:w:5:1)" = '0 ofd w 5 1 = EAGAIN' ]
  [ "$(lock shared 0:ofd:w:10:5)" = '0 ofd w 10 5 = ok' ]
  [ "$(lock shared 0:test:r:0:1)" = '0 test r 0 1 = w' ]
  : > b-saw; start=$(cut -d. -f1 /proc/uptime)
  [ "$(lock shared 0:ofdw:w:0:10)" = '0 ofdw w 0 10 = ok' ]
  waited=$(($(cut -d. -f1 /proc/uptime) - start))
  # Linux asks again every 30 s by itself: sooner means that the server called back.
  echo "granted after $waited s"; [ $waited -lt 25 ]; : > b-got
fi
cd /; umount /mnt; echo "fight-ok $NAME"
