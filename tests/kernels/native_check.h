/* Random numbers and weights for programs that compare kernels: the same on every processor. */
#ifndef NATIVE_CHECK_H
#define NATIVE_CHECK_H

#include <stdio.h>

#include "trilith.h"

int trilith_supports(int isa);
void trilith_tile(
    const weight *w, const int8_t *numerators, const uint8_t *code_of, uint8_t *tiles,
    int64_t threads);

static const char *const names[NUM_ISAS] = {"scalar", "avx2", "vnni", "amx", "neon"};
/* Numerators of a grid with seven levels, in the order of their codes. */
static const int primes[] = {0, 2, 3, 5, -2, -3, -5};

static uint64_t state = 1;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void *room(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)ceil_div(bytes + 1, 64) * 64);
    if (!memory) exit(2);
    return memory;
}

static float *draw_floats(int64_t count, float most) {
    float *values = room(count * 4);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)((int)draw(20001) - 10000) / 10000 * most;
    return values;
}

static weight draw_weight(int layout, int64_t num_out, int64_t num_groups, int64_t group_in) {
    int offset = layout == BITS4 ? 5 : 1;
    weight w = {.num_out = num_out, .num_in = num_groups * group_in, .num_groups = num_groups,
                .layout = layout, .offset = offset};
    int64_t blocks = ceil_div(w.num_out, BLOCK), count = w.num_out * w.num_in;
    uint8_t *levels = calloc(16, 1), code_of[11] = {0};
    for (int i = 0; i < 7; i++) levels[i] = (uint8_t)(primes[i] + 5);
    for (int i = 0; i < 7; i++) code_of[primes[i] + 5] = (uint8_t)i;
    for (int i = 0; i < 3 && offset == 1; i++) code_of[i] = (uint8_t)i;
    int8_t *numerators = room(count);
    for (int64_t i = 0; i < count; i++)
        numerators[i] = (int8_t)(offset == 1 ? (int)draw(3) - 1 : primes[draw(7)]);
    float *factor = room(num_groups * blocks * BLOCK * 4);
    for (int64_t i = 0; i < num_groups * blocks * BLOCK; i++)
        factor[i] = (float)(1 + draw(999)) / 997;
    uint8_t *tiles = room(blocks * num_groups * tiles_of_group(&w) * tile_bytes(layout));
    w.levels = levels;
    w.factor = factor;
    trilith_tile(&w, numerators, code_of, tiles, 1);
    w.codes = tiles;
    free(numerators);
    return w;
}

static void free_weight(weight *w) {
    free((void *)w->codes);
    free((void *)w->levels);
    free((void *)w->factor);
}

static uint64_t hash_of(uint64_t hash, const float *values, int64_t count) {
    const uint8_t *bytes = (const uint8_t *)values;
    for (int64_t i = 0; i < count * 4; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

/* The instruction sets that run here, then the hash of what was computed. */
static void tell(uint64_t hash) {
    for (int isa = 0; isa < NUM_ISAS; isa++)
        if (trilith_supports(isa)) printf("%s ", names[isa]);
    printf("%016llx\n", (unsigned long long)hash);
}

#endif
