/* Bytes a second that threads read from memory: sums over a buffer that no cache holds. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { LANES = 32, MAX_THREADS = 64, PAGE_BYTES = 2 << 20 };

typedef struct {
    const uint64_t *from;
    int64_t count; /* a multiple of LANES */
    uint64_t sum;
} part;

static void *read_part(void *argument) {
    part *own = argument;
    uint64_t sums[LANES] = {0};
    for (int64_t i = 0; i < own->count; i += LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += own->from[i + lane];
    for (int lane = 0; lane < LANES; lane++) own->sum += sums[lane];
    return NULL;
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* A buffer of so many bytes on large pages, all of them touched; it lives as long as the process. */
uint8_t *make_buffer(int64_t num_bytes) {
    uint8_t *memory = aligned_alloc(PAGE_BYTES, (size_t)num_bytes);
    if (!memory) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(memory, (size_t)num_bytes, MADV_HUGEPAGE);
#endif
    return memset(memory, 1, (size_t)num_bytes);
}

/* Read the buffer once, a part in each thread; returns seconds, or -1. */
double read_buffer(const uint8_t *buffer, int64_t num_bytes, int64_t threads) {
    pthread_t thread[MAX_THREADS];
    part parts[MAX_THREADS];
    int64_t count = num_bytes / 8 / threads / LANES * LANES;
    uint64_t expected = 0x0101010101010101u * (uint64_t)count, wrong = 0;
    double start = now_s();
    for (int64_t t = 0; t < threads; t++) {
        parts[t] = (part){(const uint64_t *)buffer + t * count, count, 0};
        if (t && pthread_create(thread + t, NULL, read_part, parts + t)) return -1;
    }
    read_part(parts);
    for (int64_t t = 1; t < threads; t++) pthread_join(thread[t], NULL);
    double seconds = now_s() - start;
    for (int64_t t = 0; t < threads; t++) wrong |= parts[t].sum ^ expected;
    return wrong ? -1 : seconds;
}
