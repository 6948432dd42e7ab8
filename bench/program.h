/* What both programs of the benchmark share: options, the clock, the limit of open files, exit on errors. */
#ifndef AIRY_TRIO_BENCH_PROGRAM_H
#define AIRY_TRIO_BENCH_PROGRAM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000LL
#define NS_PER_MS 1000000LL
/* The key and the answer that RFC 6455 gives as its example (section 1.3). */
#define WS_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

_Noreturn static void fail(const char *what) {
    perror(what);
    exit(1);
}

_Noreturn static void refuse(const char *what, const char *detail) {
    fprintf(stderr, "%s: %s\n", what, detail);
    exit(1);
}

/* CLOCK_MONOTONIC, which Python's time.monotonic_ns() also reads: comparable between processes of one machine. */
static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * NS_PER_S + time.tv_nsec;
}

static void raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) fail("getrlimit");
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) fail("setrlimit");
}

struct option_of {
    const char *name;
    long *number;      /* one of the two is set */
    const char **text;
};

/* Read "--name value" pairs into the places of a table that ends with a row without a name. */
static void read_options(int count, char **words, const struct option_of *known) {
    for (int i = 1; i < count; i += 2) {
        const struct option_of *option = known;
        while (option->name && (strncmp(words[i], "--", 2) || strcmp(words[i] + 2, option->name))) option++;
        if (!option->name) refuse("unknown option", words[i]);
        if (i + 1 == count) refuse("option without value", words[i]);
        if (option->text) {
            *option->text = words[i + 1];
            continue;
        }
        char *end;
        *option->number = strtol(words[i + 1], &end, 10);
        if (*end || end == words[i + 1]) refuse("not a whole number", words[i]);
    }
}

#endif
