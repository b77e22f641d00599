// Locks as programs take them, for the guest: each command line is a list of steps, done in order
// by one process with up to four open descriptions of one file.
//   lock FILE STEP...      STEP is N:WHAT:KIND:START:LEN
//   N     which open description, 0 to 3
//   WHAT  ofd | ofdw (waits) | posix | posixw | test (OFD F_GETLK) | flock | flockw | sleep (START s)
//   KIND  r | w | u
// Prints one line per step: "N WHAT KIND START LEN = ok|EAGAIN|..." or, for test, who is in the way.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

static const char *name(short t) {
    return t == F_RDLCK ? "r" : t == F_WRLCK ? "w" : "free";
}

int main(int argc, char **argv) {
    int fd[4] = {-1, -1, -1, -1};
    if (argc < 3) return 64;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 2; i < argc; i++) {
        int n;
        char what[16], kind;
        long start, len;
        if (sscanf(argv[i], "%d:%15[^:]:%c:%ld:%ld", &n, what, &kind, &start, &len) != 5) return 64;
        if (n < 0 || n > 3) return 64;
        if (fd[n] < 0 && (fd[n] = open(argv[1], O_RDWR | O_CREAT, 0644)) < 0) {
            perror(argv[1]);
            return 1;
        }
        short type = kind == 'r' ? F_RDLCK : kind == 'w' ? F_WRLCK : F_UNLCK;
        struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
        int flags = kind == 'r' ? LOCK_SH : kind == 'w' ? LOCK_EX : LOCK_UN;
        int r = 0;
        if (!strcmp(what, "ofd")) r = fcntl(fd[n], F_OFD_SETLK, &l);
        else if (!strcmp(what, "ofdw")) r = fcntl(fd[n], F_OFD_SETLKW, &l);
        else if (!strcmp(what, "posix")) r = fcntl(fd[n], F_SETLK, &l);
        else if (!strcmp(what, "posixw")) r = fcntl(fd[n], F_SETLKW, &l);
        else if (!strcmp(what, "test")) r = fcntl(fd[n], F_OFD_GETLK, &l);
        else if (!strcmp(what, "flock")) r = flock(fd[n], flags | LOCK_NB);
        else if (!strcmp(what, "flockw")) r = flock(fd[n], flags);
        else if (!strcmp(what, "sleep")) sleep((unsigned)start);
        else return 64;
        const char *out = r == 0 ? "ok" : errno == EAGAIN || errno == EACCES ? "EAGAIN" : strerror(errno);
        if (r == 0 && !strcmp(what, "test")) out = name(l.l_type);
        printf("%d %s %c %ld %ld = %s\n", n, what, kind, start, len, out);
    }
    return 0;
}
