/* Weights into the tiles of trilith.h. */
#include "tile.h"

enum { CODES = 32 };

typedef struct {
    const weight *w;
    const int8_t *numerators; /* [num_out, num_in] */
    const uint8_t *code_of;   /* [numerator + offset] */
    uint8_t *tiles;
    uint8_t byte_of[NUM_DIGIT_SETS]; /* of the number that five digits make */
} tiling;

/* Codes of up to `tile_in` inputs of one output; zeros behind them. */
static inline void codes_of(
    const tiling *t, const int8_t *numerators, int64_t count, int64_t tile_in, uint8_t *codes) {
    memset(codes, 0, CODES);
    if (t->w->layout != BITS4 && count == tile_in)
        for (int64_t i = 0; i < tile_in; i++) codes[i] = (uint8_t)(numerators[i] + 1);
    else
        for (int64_t i = 0; i < count; i++) codes[i] = t->code_of[numerators[i] + t->w->offset];
}

static void tile_block(void *context, int64_t block, int worker) {
    const tiling *t = context;
    const weight *w = t->w;
    (void)worker;
    int64_t group_in = w->num_in / w->num_groups, group_tiles = tiles_of_group(w);
    int64_t tile_in = planes_of(w->layout) * QUAD, num_tiles = w->num_groups * group_tiles;
    uint8_t *tiles = t->tiles + block * num_tiles * tile_bytes(w->layout);
    uint8_t codes[CODES];
    for (int64_t o = 0; o < BLOCK; o++) {
        int64_t row = block * BLOCK + o;
        for (int64_t tile = 0; tile < num_tiles; tile++) {
            int64_t i = tile % group_tiles * tile_in;
            int64_t at = row * w->num_in + tile / group_tiles * group_in + i;
            int64_t count = row < w->num_out ? min64(tile_in, group_in - i) : 0;
            codes_of(t, t->numerators + (count ? at : 0), count, tile_in, codes);
            put_codes(w->layout, t->byte_of, codes, tiles + tile * tile_bytes(w->layout) + o * QUAD);
        }
    }
}

/* Put numerators [num_out, num_in] into tiles, all of whose bytes are written. */
void trilith_tile(
    const weight *w, const int8_t *numerators, const uint8_t *code_of, uint8_t *tiles,
    int64_t threads) {
    tiling t = {.w = w, .numerators = numerators, .code_of = code_of, .tiles = tiles};
    fill_byte_of(t.byte_of);
    run_chunks((int)threads, ceil_div(w->num_out, BLOCK), tile_block, &t);
}
