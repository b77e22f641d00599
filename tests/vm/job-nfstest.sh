# nfstest, as tests/vm/nfstest.sh packed it. Guest b only lends itself to guest a, over ssh.
# TESTS: what to run, each a program and its arguments with `+` for a blank; `user:posix` runs it as an
# ordinary user, on a mount that root has made; what else it calls sudo for is tcpdump, which may.
mount -t devpts devpts /dev/pts; mkdir -p /dev/shm; mount -t tmpfs none /dev/shm; chmod 777 /tmp
cd / && tar -xf /job/nfstest.tar && rm /job/nfstest.tar || exit 1
export PYTHONPATH=/nfstest PYTHONDONTWRITEBYTECODE=1 TERM=dumb
if [ "$NAME" = b ]; then
  dropbear -R -E || exit 1
  while [ ! -e /tmp/done ]; do sleep 1; done
  exit 0
fi
. /job/env; PEER=${IP%.*}.12 bad=0
echo 'tcpdump:x:103:65534::/tmp:/bin/false' >> /etc/passwd
chmod 4755 /usr/bin/tcpdump; echo 'user:x:1000:1000::/tmp:/bin/sh' >> /etc/passwd; echo 'user:x:1000:' >> /etc/group
# It finds its own address by the route to an address far away.
ip route add default via "$SERVER"; export HOSTNAME=$NAME
for _ in $(seq 60); do ssh "$PEER" true 2>/dev/null && break; sleep 1; done
suite() { # program, arguments...
  program=$1; shift
  if [ "$program" = io ]; then # A load of random calls on files whose content it knows; no suite of tests.
    mount.nfs "$SERVER:/vm" /mnt/t -o vers=3 || return 1
    python3 /nfstest/test/nfstest_io --datadir /mnt/t/io --nprocs 3 --seed "${SEED:-1}" --exiterr "$@"; code=$?
    rm -rf /mnt/t/io; umount /mnt/t; return $code
  fi
  case $program in user:*)
    mount.nfs "$SERVER:/vm" /mnt/t -o vers=3 && mkdir /mnt/t/user && chown 1000:1000 /mnt/t/user || return 1
    su user -s /bin/sh -c "HOME=/tmp python3 /nfstest/test/nfstest_${program#user:} --server $SERVER --export /vm \
      --nfsversion 3 --notty --sudo env --nomount --mtpoint /mnt/t/user $*"; code=$?
    rm -rf /mnt/t/user; umount /mnt/t; return $code ;;
  esac
  python3 "/nfstest/test/nfstest_$program" --server "$SERVER" --export /vm --nfsversion 3 --notty "$@"
}
for t in $TESTS; do
  set -- $(echo "$t" | tr + ' ')
  since=$(date +%s)
  { suite "$@" 2>&1; echo "exit $?"; } | tee /tmp/out | if [ -n "${VERBOSE:-}" ]; then cat; else cat > /dev/null; fi
  tail -1 /tmp/out | grep -q 'exit 0'; code=$?
  echo "nfstest_$*: $(tail -1 /tmp/out), $(($(date +%s) - since)) s, $(grep ' tests (' /tmp/out | tail -1)"
  grep -E '^ *(FAIL|WARN|BUG)' /tmp/out
  [ $code = 0 ] || bad=1
done
ssh "$PEER" touch /tmp/done
exit $bad
