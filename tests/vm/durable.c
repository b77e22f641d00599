// One stream of durable writes, for the guest, while the server moves from host to host:
//   durable DIR END SEED
//   durable --was COUNT DIR SEED
// Until the file END exists: writes 4 KiB blocks of one file, one after the other, through O_DIRECT,
// write and fsync, or O_SYNC, and prints a + for each when it is durable; reads blocks back, past the
// cache and through it; makes, renames and removes names, each of which must work exactly once. Any
// error is the end. At last everything is read again. Prints what was done, and the longest time
// between two durable writes by this guest's own clock; 1 with what was wrong.
// --was: the guest that wrote there is gone, and had printed COUNT times +. Each block must hold what
// was durable by then, or one of the few writes after it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCKS 256
#define SIZE 4096
#define PACE 5000  // microseconds
#define AFTER 16   // writes that may have happened without their + having been seen

static uint64_t state, seed;
static uint64_t number[BLOCKS];
static unsigned char *buf, want[SIZE];
static const char *ways[] = {"O_DIRECT", "write and fsync", "O_SYNC"};
static int fd[3];

static unsigned below(unsigned n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(state >> 33) % n;
}

static void content(unsigned char *out, uint64_t block, uint64_t n) {
    uint64_t word = seed ^ block << 40 ^ n;
    if (n == 0) {
        memset(out, 0, SIZE);
        return;
    }
    for (int i = 0; i < SIZE / 8; i++) {
        word = word * 6364136223846793005ull + 1442695040888963407ull;
        memcpy(out + 8 * i, &word, 8);
    }
}

static int fail(const char *what, uint64_t at) {
    printf("\n%s, %llu: %s\n", what, (unsigned long long)at, strerror(errno));
    exit(1);
}

static void check(int way, unsigned block) {
    ssize_t got = pread(fd[way], buf, SIZE, (off_t)block * SIZE);
    if (got < 0) fail("read", block);
    memset(buf + got, 0, SIZE - got);  // past the end nothing was written
    content(want, block, number[block]);
    if (memcmp(buf, want, SIZE)) {
        printf("\nblock %u, read by %s, is not its number %llu\n", block, ways[way],
               (unsigned long long)number[block]);
        exit(1);
    }
}

static void names(unsigned n) {
    char made[64], moved[64];
    snprintf(made, sizeof made, "made%u", n);
    snprintf(moved, sizeof moved, "moved%u", n);
    int f = open(made, O_RDWR | O_CREAT | O_EXCL, 0644);
    if (f < 0) fail("exclusive create", n);
    if (close(f) || rename(made, moved)) fail("rename", n);
    if (!access(made, F_OK) || errno != ENOENT) fail("a name that was renamed is there", n);
    errno = 0;
    if (access(moved, F_OK)) fail("a name that was made is not there", n);
    if (unlink(moved)) fail("unlink", n);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

// The same choices as in main, without doing anything.
static void was(unsigned count) {
    static uint64_t last[BLOCKS];
    for (unsigned steps = 0; steps < count + AFTER; steps++) {
        below(3);
        unsigned block = below(BLOCKS);
        last[block]++;
        if (steps < count) number[block]++;
        if (steps % 2 == 0) below(BLOCKS);
    }
    for (unsigned block = 0; block < BLOCKS; block++) {
        ssize_t got = pread(fd[0], buf, SIZE, (off_t)block * SIZE);
        if (got < 0) fail("read", block);
        memset(buf + got, 0, SIZE - got);
        uint64_t n = number[block];
        for (content(want, block, n); memcmp(buf, want, SIZE); content(want, block, n))
            if (n++ == last[block]) {
                printf("block %u is neither its number %llu, which was durable, nor a later one\n",
                       block, (unsigned long long)number[block]);
                exit(1);
            }
    }
    printf("durable: all of %u writes are there: ok\n", count);
}

int main(int argc, char **argv) {
    int then = argc == 5 && !strcmp(argv[1], "--was");
    if (argc != 4 && !then) return 64;
    if (then) {
        seed = state = strtoull(argv[4], NULL, 10);
        if (posix_memalign((void **)&buf, SIZE, SIZE) || chdir(argv[3])) fail(argv[3], 0);
        if ((fd[0] = open("blocks", O_RDONLY | O_DIRECT)) < 0) fail("open", 0);
        was((unsigned)strtoul(argv[2], NULL, 10));
        return 0;
    }
    seed = state = strtoull(argv[3], NULL, 10);
    unsigned steps = 0, reads = 0, changes = 0;
    double worst = 0;
    if (posix_memalign((void **)&buf, SIZE, SIZE) || chdir(argv[1])) fail(argv[1], 0);
    int flags[] = {O_DIRECT, 0, O_SYNC};
    for (int i = 0; i < 3; i++)
        if ((fd[i] = open("blocks", O_RDWR | O_CREAT | flags[i], 0644)) < 0) fail("open", i);
    for (double last = now(); access(argv[2], F_OK); steps++) {
        int way = below(3);
        unsigned block = below(BLOCKS);
        content(buf, block, number[block] + 1);
        if (pwrite(fd[way], buf, SIZE, (off_t)block * SIZE) != SIZE) fail("write", block);
        if (way == 1 && fsync(fd[way])) fail("fsync", block);
        number[block]++;
        double gap = now() - last;
        last += gap;
        if (gap > worst) worst = gap;
        if (write(1, "+", 1) != 1) return 1;
        if (steps % 4 == 0) check(0, below(BLOCKS)), reads++;
        if (steps % 4 == 2) check(1, below(BLOCKS)), reads++;
        if (steps % 16 == 0) names(steps), changes += 3;
        usleep(PACE);
    }
    int c = open("/proc/sys/vm/drop_caches", O_WRONLY);
    if (c < 0 || write(c, "3", 1) != 1) fail("drop_caches", 0);
    for (unsigned block = 0; block < BLOCKS; block++) check(1, block), check(0, block);
    printf("\ndurable SEED=%s: %u writes, %u reads, %u changes of names, longest pause %.2f s: ok\n",
           argv[3], steps, reads + 2 * BLOCKS, changes, worst);
    return 0;
}
