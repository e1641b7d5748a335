/* Every kernel that this processor runs against the scalar one, on random shapes; a hash of all
 * outputs lets two processors be compared. The argument is the number of shapes. */
#include <stdio.h>

#include "trilith.h"

int trilith_supports(int isa);
int trilith_linear(
    const weight *w, const float *x, float *out, int64_t num_tokens, int isa, int64_t threads);
void trilith_tile(
    const weight *w, const int8_t *numerators, const uint8_t *code_of, uint8_t *tiles,
    int64_t threads);

static const char *const names[NUM_ISAS] = {"scalar", "avx2", "vnni", "amx", "neon"};
static const int layouts[] = {BITS2, BASE3, BITS4};
static const int tokens[] = {1, 1, 2, 3, 4, 5, 9, 16, 17, 33, 70};
/* Numerators of a grid with seven levels, in the order of their codes. */
static const int primes[] = {0, 2, 3, 5, -2, -3, -5};

static uint64_t state = 1;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void *room(int64_t bytes) {
    void *memory = aligned_alloc(64, (size_t)ceil_div(bytes, 64) * 64);
    if (!memory) exit(2);
    return memory;
}

typedef struct {
    weight w;
    int64_t num_tokens;
    float *x;
} example;

static example draw_example(void) {
    int layout = layouts[draw(3)], offset = layout == BITS4 ? 5 : 1;
    int64_t groups = 1 + (int64_t)draw(4), group_in = 1 + (int64_t)draw(200);
    weight w = {.num_out = 1 + (int64_t)draw(90), .num_in = groups * group_in,
                .num_groups = groups, .layout = layout, .offset = offset};
    int64_t blocks = ceil_div(w.num_out, BLOCK), count = w.num_out * w.num_in;
    uint8_t *levels = calloc(16, 1), code_of[11] = {0};
    for (int i = 0; i < 7; i++) levels[i] = (uint8_t)(primes[i] + 5);
    for (int i = 0; i < 7; i++) code_of[primes[i] + 5] = (uint8_t)i;
    for (int i = 0; i < 3 && offset == 1; i++) code_of[i] = (uint8_t)i;
    int8_t *numerators = room(count);
    for (int64_t i = 0; i < count; i++)
        numerators[i] = (int8_t)(offset == 1 ? (int)draw(3) - 1 : primes[draw(7)]);
    float *factor = room(groups * blocks * BLOCK * 4);
    for (int64_t i = 0; i < groups * blocks * BLOCK; i++) factor[i] = (float)(1 + draw(999)) / 997;
    uint8_t *tiles = room(blocks * groups * tiles_of_group(&w) * tile_bytes(layout));
    w.levels = levels;
    w.factor = factor;
    trilith_tile(&w, numerators, code_of, tiles, 1);
    w.codes = tiles;
    free(numerators);
    example e = {w, tokens[draw(sizeof tokens / sizeof *tokens)], NULL};
    e.x = room(e.num_tokens * w.num_in * 4);
    for (int64_t i = 0; i < e.num_tokens * w.num_in; i++)
        e.x[i] = (float)((int)draw(20001) - 10000) / 3001;
    return e;
}

static uint64_t hash_of(uint64_t hash, const float *values, int64_t count) {
    const uint8_t *bytes = (const uint8_t *)values;
    for (int64_t i = 0; i < count * 4; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

int main(int count, char **words) {
    uint64_t hash = 14695981039346656037u;
    for (int shape = 0; count > 1 && shape < atoi(words[1]); shape++) {
        example e = draw_example();
        int64_t size = e.num_tokens * e.w.num_out;
        float *expected = room(size * 4), *found = room(size * 4);
        if (trilith_linear(&e.w, e.x, expected, e.num_tokens, SCALAR, 1)) return 2;
        hash = hash_of(hash, expected, size);
        for (int isa = 0; isa < NUM_ISAS; isa++)
            for (int threads = 1; threads <= 2 && trilith_supports(isa); threads++) {
                memset(found, 0xff, (size_t)size * 4);
                if (trilith_linear(&e.w, e.x, found, e.num_tokens, isa, threads)) return 2;
                if (!memcmp(found, expected, (size_t)size * 4)) continue;
                printf("%s differs: shape %d, layout %d\n", names[isa], shape, (int)e.w.layout);
                return 1;
            }
        free((void *)e.w.codes);
        free((void *)e.w.levels);
        free((void *)e.w.factor);
        free(e.x);
        free(expected);
        free(found);
    }
    for (int isa = 0; isa < NUM_ISAS; isa++)
        if (trilith_supports(isa)) printf("%s ", names[isa]);
    printf("%016llx\n", (unsigned long long)hash);
    return 0;
}
