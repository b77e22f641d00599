// Too little memory, for the guest:
//   pressure hog KEEP END       takes and keeps changing memory, until only KEEP MiB are available;
//                               as long as there is no file END; says how much it has
//   pressure write FILE MIB     writes through the page cache, in rounds over a file of that size,
//   pressure check FILE MIB     and reads it back: 1 with the first place that is not as written
// Each 1 MiB of a file has content of its own. The killer of processes takes a hog first.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1 << 20)
#define MOST 65536

static int fail(const char *what, long at) {
    printf("\npressure, %s, %ld: %s\n", what, at, strerror(errno));
    return 1;
}

static void fill(uint64_t *out, uint64_t n) {
    uint64_t word = n * 0x9e3779b97f4a7c15ull + 1;
    for (int i = 0; i < MIB / 8; i++) out[i] = word = word * 6364136223846793005ull + 1442695040888963407ull;
}

static long available(void) {
    char line[128];
    long kib = -1;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && kib < 0 && fgets(line, sizeof line, f)) sscanf(line, "MemAvailable: %ld", &kib);
    if (f) fclose(f);
    return kib < 0 ? -1 : kib / 1024;
}

static int hog(long keep, const char *end) {
    static char *taken[MOST];
    long n = 0, told = 0;
    int f = open("/proc/self/oom_score_adj", O_WRONLY);
    if (f < 0 || write(f, "1000", 4) != 4 || close(f)) return fail("oom_score_adj", 0);
    for (unsigned round = 0; access(end, F_OK); round++) {
        while (n < MOST && available() > keep) {
            taken[n] = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (taken[n] == MAP_FAILED) return fail("mmap", n);
            memset(taken[n++], 1, MIB);
        }
        if (!told) printf("\nhog: has %ld MiB, %ld are left\n", told = n, available()), fflush(stdout);
        for (long i = 0; i < n; i++)
            for (long at = 0; at < MIB; at += 4096) taken[i][at] = (char)round;
        usleep(500000);
    }
    printf("\nhog: had %ld MiB\n", n);
    return 0;
}

int main(int argc, char **argv) {
    static uint64_t want[MIB / 8], got[MIB / 8];
    if (argc != 4) return 64;
    if (!strcmp(argv[1], "hog")) return hog(atol(argv[2]), argv[3]);
    int writes = !strcmp(argv[1], "write");
    long mib = atol(argv[3]);
    int f = open(argv[2], writes ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0644);
    if (f < 0) return fail(argv[2], 0);
    for (long n = 0; n < mib; n++) {
        fill(want, n);
        if (writes) {
            if (write(f, want, MIB) != MIB) return fail("write", n);
            continue;
        }
        for (long at = 0, more; at < MIB; at += more)
            if ((more = read(f, (char *)got + at, MIB - at)) <= 0) return fail("read", n);
        if (memcmp(got, want, MIB)) return errno = 0, fail("is not what was written", n);
    }
    if (writes && (fsync(f) || close(f))) return fail("fsync", mib);
    printf("\npressure %s: %ld MiB: ok\n", argv[1], mib);
    return 0;
}
