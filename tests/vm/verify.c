// Writes in every way that programs write, checked against a copy in memory, for the guest:
//   verify FILE SEED STEPS
// Three open descriptions of one file (buffered, O_DIRECT, O_SYNC); each step writes at a random
// place through one of them, or truncates, syncs, drops the caches, or reads back through one.
// At the end everything is read through each. Prints the seed and what was checked; 1 with the
// place if the file is not what was written.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE (6u << 20)
#define MOST (1200u << 10)  // beyond one WRITE of 1 MiB

static uint64_t state;
static unsigned char *model, *buf;
static unsigned length;
static const char *ways[] = {"buffered", "O_DIRECT", "O_SYNC"};
static int fd[3];

static unsigned below(unsigned n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(state >> 33) % n;
}

static int fail(const char *what, int way, unsigned at) {
    printf("%s (%s) at %u: %s\n", what, ways[way], at, strerror(errno));
    exit(1);
}

static void drop_caches(void) {
    int c = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (c < 0 || fsync(fd[0]) || write(c, "3", 1) != 1) fail("drop_caches", 0, 0);
    close(c);
}

static void check(int way, unsigned at, unsigned n) {
    if (at >= length) return;
    if (n > length - at) n = length - at;
    unsigned got = 0, want = way == 1 ? (n + 511) & ~511u : n;
    while (got < n) {
        ssize_t r = pread(fd[way], buf + got, want - got, at + got);
        if (r < 0) fail("read", way, at + got);
        if (r == 0) { errno = 0; fail("early end", way, at + got); }
        got += r;
    }
    for (unsigned i = 0; i < n; i++)
        if (buf[i] != model[at + i]) {
            printf("%s read at %u of %u: %02x instead of %02x at %u\n", ways[way], at, length,
                   buf[i], model[at + i], at + i);
            exit(1);
        }
}

int main(int argc, char **argv) {
    if (argc != 4) return 64;
    state = strtoull(argv[2], NULL, 10);
    unsigned steps = strtoul(argv[3], NULL, 10), writes = 0, reads = 0;
    model = calloc(1, SIZE);
    if (!model || posix_memalign((void **)&buf, 4096, SIZE)) return 1;
    int flags[] = {0, O_DIRECT, O_SYNC};
    for (int i = 0; i < 3; i++)
        if ((fd[i] = open(argv[1], O_RDWR | O_CREAT | flags[i], 0644)) < 0) fail("open", i, 0);
    for (unsigned s = 0; s < steps; s++) {
        int way = below(3), what = below(16);
        unsigned most = below(6) ? 32u << 10 : MOST, at = below(SIZE - 1), n = 1 + below(most);
        if (way == 1) at &= ~511u, n = (n + 511) & ~511u;
        if (n > SIZE - at) n = SIZE - at;
        if (what < 9) {
            for (unsigned i = 0; i < n; i++) buf[i] = model[at + i] = (unsigned char)below(256);
            for (unsigned done = 0; done < n;) {
                ssize_t r = pwrite(fd[way], buf + done, n - done, at + done);
                if (r <= 0) fail("write", way, at + done);
                done += r;
            }
            if (at + n > length) length = at + n;
            writes++;
        } else if (what < 13) {
            check(way, at, n);
            reads++;
        } else if (what == 13) {
            unsigned to = below(SIZE);
            if (ftruncate(fd[way], to)) fail("truncate", way, to);
            if (to < length) memset(model + to, 0, length - to);
            length = to;
        } else if (what == 14) {
            if (fsync(fd[way])) fail("fsync", way, 0);
        } else {
            drop_caches();
        }
    }
    for (int i = 0; i < 3; i++) {
        drop_caches();
        check(i, 0, SIZE);
    }
    printf("verify SEED=%s: %u writes, %u reads, %u bytes at the end: ok\n", argv[2], writes, reads,
           length);
    return 0;
}
