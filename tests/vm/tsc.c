// The rate of this processor's time stamp counter in kHz, measured over half a second. A guest of
// QEMU without KVM has the same counter, and takes a wrong rate for it if this machine is busy while
// it boots: it was seen to run at four times the time that passed. So it is told (tsc_early_khz).
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static double now(unsigned long long *count) {
    struct timespec t, after;
    double best = 1, at = 0;
    for (int i = 0; i < 20; i++) {  // the reading that nothing came between
        clock_gettime(CLOCK_MONOTONIC, &t);
        unsigned long long c = __rdtsc();
        clock_gettime(CLOCK_MONOTONIC, &after);
        double took = (after.tv_sec - t.tv_sec) + (after.tv_nsec - t.tv_nsec) / 1e9;
        if (took < best) best = took, *count = c, at = t.tv_sec + t.tv_nsec / 1e9 + took / 2;
    }
    return at;
}

int main(void) {
    unsigned long long from = 0, to = 0;
    double began = now(&from);
    nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
    double ended = now(&to);
    printf("%.0f\n", (double)(to - from) / (ended - began) / 1000);
    return 0;
}
