# Connectathon (cthon04): basic, special and lock, as tests/vm/cthon.sh built them. `general` is
# left out: it compiles and formats on the share, and the guest has no compiler, make or nroff.
cd /tmp && tar -xf /job/cthon.tar || exit 1
bad=0
for o in vers=3 vers=3,nolock,nconnect=4; do
  mount.nfs "$SERVER:/vm" /mnt -o $o || exit 1
  run() { # name, command...
    name=$1; shift
    if "$@" > /tmp/out 2>&1; then echo "cthon $name ($o): ok"
    else echo "cthon $name ($o): FAILED"; tail -15 /tmp/out; bad=1; fi
  }
  basic() { cd /tmp/cthon/basic && NFSTESTDIR=/mnt/basic sh ./runtests -f; }
  special() { cp -r /tmp/cthon/special /mnt/special && cd /mnt/special && sh runtests.wrk FROM_RUNTESTS; }
  locks() { mkdir -p /mnt/lock && cd /tmp/cthon/lock && for t in tlocklfs tlock64; do ./$t /mnt/lock || return 1; done; }
  run basic basic; cd /; run special special; cd /; run lock locks; cd /
  rm -rf /mnt/*; umount /mnt || exit 1
done
[ $bad = 0 ] && echo cthon-ok; exit $bad
