// Names that must be made exactly once, by hosts that race for them:
//   once DIR END WHO      WHO is 0 to 7
//   once --check DIR
// Until the file END exists: creates DIR/0, DIR/1, ... exclusively, and writes WHO durably into each
// that it got, at a place of its own. Whoever is behind finds names taken and catches up. --check:
// no number is missing, and each was got by exactly one; how many have no name in them (a host was
// lost between the two, or a create was done and then refused to the one who did it) is printed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PACE 20000  // microseconds

static int check(void) {
    unsigned got[8] = {0}, empty = 0, n = 0, behind = 0;
    char name[32], who[9];
    for (; behind < 100; n++) {
        snprintf(name, sizeof name, "%u", n);
        int f = open(name, O_RDONLY);
        if (f < 0 && errno == ENOENT) {
            behind++;
            continue;
        }
        if (f < 0 || behind) {
            printf("name %u: %s\n", n, f < 0 ? strerror(errno) : "one before it is not there");
            return 1;
        }
        memset(who, 0, sizeof who);
        if (read(f, who, 8) < 0 || close(f)) {
            printf("read of %u: %s\n", n, strerror(errno));
            return 1;
        }
        unsigned makers = 0;
        for (int i = 0; i < 8; i++)
            if (who[i]) makers++, got[i]++;
        if (makers > 1) {
            printf("name %u was made by %u\n", n, makers);
            return 1;
        }
        empty += makers == 0;
    }
    printf("once: %u names, made by 1: %u, by 2: %u, by nobody who knows: %u\n", n - behind, got[1],
           got[2], empty);
    return 0;
}

int main(int argc, char **argv) {
    char name[32];
    if (argc == 3 && !strcmp(argv[1], "--check")) return chdir(argv[2]) ? 1 : check();
    if (argc != 4 || chdir(argv[1])) return 64;
    int who = atoi(argv[3]) & 7;
    unsigned got = 0, n = 0;
    for (; access(argv[2], F_OK); n++) {
        snprintf(name, sizeof name, "%u", n);
        int f = open(name, O_WRONLY | O_CREAT | O_EXCL | O_SYNC, 0644);
        if (f < 0 && errno == EEXIST) continue;
        if (f < 0 || pwrite(f, "x", 1, who) != 1 || close(f)) {
            printf("\nonce, name %u: %s\n", n, strerror(errno));
            return 1;
        }
        got++;
        usleep(PACE);
    }
    printf("\nonce: %u of %u names are mine: ok\n", got, n);
    return 0;
}
