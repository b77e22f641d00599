# One client, plain options: the locks that programs take, QEMU's pattern among them.
set -e
mount.nfs "$SERVER:/vm" /mnt -o vers=3; cd /mnt
got=$(lock image 0:ofd:r:100:1 1:test:w:100:1 1:ofd:r:100:1 1:ofd:w:200:1 0:ofd:w:200:1 0:test:w:201:1 \
           1:ofd:u:200:1 0:ofd:w:200:1 2:flock:w:0:0)
want='0 ofd r 100 1 = ok
1 test w 100 1 = r
1 ofd r 100 1 = ok
1 ofd w 200 1 = ok
0 ofd w 200 1 = EAGAIN
0 test w 201 1 = free
1 ofd u 200 1 = ok
0 ofd w 200 1 = ok
2 flock w 0 0 = EAGAIN'
[ "$got" = "$want" ] || { echo "$got"; exit 1; }
# Everything was given back when the process ended.
[ "$(lock image 0:posix:w:0:0)" = '0 posix w 0 0 = ok' ]
cd /; umount /mnt; echo locks-ok
