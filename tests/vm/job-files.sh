# One client: files, directories, attributes; buffered and O_DIRECT; plain options, nconnect.
set -e
check() { mount.nfs "$SERVER:/vm" /mnt -o "$1"; cd /mnt; }
done_() { cd /; umount /mnt; }
showmount --no-headers --exports "$SERVER" | grep -qE '^(/\S+)\s+(.+)$'
dd if=/dev/urandom of=/tmp/r bs=1M count=24 2>/dev/null
for o in vers=3 vers=3,nolock,nconnect=4 vers=3,hard,proto=tcp,noatime,rsize=65536,wsize=65536; do
  check "$o"
  mkdir d
  cp /tmp/r d/buffered; cmp d/buffered /tmp/r
  dd if=/tmp/r of=d/direct bs=4k count=500 oflag=direct conv=notrunc 2>/dev/null
  dd if=/tmp/r of=d/large bs=4M oflag=direct 2>/dev/null
  echo 3 > /proc/sys/vm/drop_caches
  cmp -n 2048000 d/direct /tmp/r; cmp d/large /tmp/r
  # A hole, the far end, a truncation.
  dd if=/tmp/r of=d/sparse bs=1 count=1 seek=1099511627776 2>/dev/null
  [ "$(stat -c %s d/sparse)" = 1099511627777 ]; [ "$(du -k d/sparse | cut -f1)" -lt 100 ]
  truncate -s 10 d/sparse; [ "$(stat -c %s d/sparse)" = 10 ]
  # An open file that is removed goes on (silly rename), and is gone after.
  exec 3< d/direct; rm d/direct; head -c 10 <&3 | cmp - -n 10 /tmp/r; exec 3<&-
  ln d/large d/link; [ "$(stat -c %h d/large)" = 2 ]
  ln -s nowhere d/sym; [ "$(readlink d/sym)" = nowhere ]
  mkfifo d/fifo; mknod d/null c 1 3; [ "$(stat -c %t:%T d/null)" = 1:3 ]
  i=0; while [ $i -lt 300 ]; do : > "d/file$i"; i=$((i + 1)); done
  [ "$(ls d | wc -l)" = 307 ] || { ls d | wc -l; exit 1; }
  chmod 4755 d/large; chown 7:8 d/large; touch -d 2031-02-03 d/large
  [ "$(stat -c %u:%g d/large)" = 7:8 ]
  mv d e; rm -r e; [ -z "$(ls)" ]
  done_
done
echo files-ok
