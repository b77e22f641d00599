# nfstest, as tests/vm/nfstest.sh packed it. Guest b only lends itself to guest a, over ssh.
# TESTS: what to run, each a program and its arguments with `+` for a blank.
mount -t devpts devpts /dev/pts; chmod 777 /tmp
cd / && tar -xf /job/nfstest.tar && rm /job/nfstest.tar || exit 1
export PYTHONPATH=/nfstest PYTHONDONTWRITEBYTECODE=1 TERM=dumb
if [ "$NAME" = b ]; then
  dropbear -R -E || exit 1
  while [ ! -e /tmp/done ]; do sleep 1; done
  exit 0
fi
. /job/env; PEER=${IP%.*}.12 bad=0
echo 'tcpdump:x:103:65534::/tmp:/bin/false' >> /etc/passwd
# It finds its own address by the route to an address far away.
ip route add default via "$SERVER"; export HOSTNAME=$NAME
for _ in $(seq 60); do ssh "$PEER" true 2>/dev/null && break; sleep 1; done
for t in $TESTS; do
  set -- $(echo "$t" | tr + ' '); program=$1; shift
  since=$(date +%s)
  python3 /nfstest/test/nfstest_$program --server "$SERVER" --export /vm --nfsversion 3 --notty \
    "$@" 2>&1 | tee /tmp/out | if [ -n "${VERBOSE:-}" ]; then cat; else cat > /dev/null; fi
  tail -4 /tmp/out | grep -q '(.* passed, 0 failed)'; code=$?
  echo "nfstest_$program $*: $(($(date +%s) - since)) s, $(grep ' tests (' /tmp/out | tail -1)"
  grep -E '^ *(FAIL|WARN|BUG)' /tmp/out
  [ $code = 0 ] || bad=1
done
ssh "$PEER" touch /tmp/done
exit $bad
