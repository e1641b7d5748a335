/* Tiles by table: one addition for each byte of the file, instead of some steps for each code. */
#include "words.h"

#include "tile.h"

/* Tiles whose words are made before they are put to their places. */
enum { BATCH = 64 };

/* What a code of input `i` of a tile adds. */
static uint32_t word_of(int64_t layout, uint8_t code, int64_t i) {
    uint32_t plane = (uint32_t)(i / QUAD), value = code;
    if (layout == BITS2) {
        value <<= 2 * plane;
    } else {
        for (; plane < 4; plane++) value *= 3;
    }
    return value << (8 * (i % QUAD));
}

void fill_words(
    word_table *table, int64_t layout, int unit, uint8_t digits[NUM_BYTES][MAX_UNIT]) {
    int64_t tile_in = planes_of(layout) * QUAD;
    table->layout = layout;
    table->unit = unit;
    table->num_bytes = (int)ceil_div(tile_in + unit - 1, unit);
    memset(table->added, 0, sizeof table->added);
    for (int64_t begin = 0; begin < unit; begin++)
        for (int64_t i = 0; i < tile_in; i++) {
            uint32_t *added = table->added[begin][(begin + i) / unit];
            for (int byte = 0; byte < NUM_BYTES; byte++)
                added[byte] += word_of(layout, digits[byte][(begin + i) % unit], i);
        }
}

static inline void add_words(
    const word_table *table, const uint8_t *packed, int64_t first, int64_t count, uint32_t *words,
    int num_bytes) {
    int64_t tile_in = planes_of(table->layout) * QUAD;
    int unit = table->unit, begin = (int)(first % unit), rest = (int)(tile_in % unit);
    const uint8_t *byte = packed + first / unit;
    for (int64_t tile = 0; tile < count; tile++) {
        const uint32_t(*added)[NUM_BYTES] = table->added[begin];
        uint32_t word = 0;
        for (int k = 0; k < num_bytes; k++) word += added[k][byte[k]];
        words[tile] = word;
        begin += rest;
        byte += tile_in / unit + (begin >= unit);
        begin -= begin >= unit ? unit : 0;
    }
}

void put_words(
    const word_table *table, const uint8_t *packed, int64_t first, int64_t num_tiles, uint8_t *at) {
    uint32_t words[BATCH];
    int64_t tile_in = planes_of(table->layout) * QUAD;
    for (int64_t done = 0; done < num_tiles; done += BATCH, first += BATCH * tile_in) {
        int64_t count = min64(BATCH, num_tiles - done);
        /* Written out for each number, the inner loop is one addition a byte. */
        switch (table->num_bytes) {
        case 3: add_words(table, packed, first, count, words, 3); break;
        case 4: add_words(table, packed, first, count, words, 4); break;
        case 5: add_words(table, packed, first, count, words, 5); break;
        default: add_words(table, packed, first, count, words, 6);
        }
        uint8_t *bytes = (uint8_t *)words;
        if (table->layout == BASE3)
            for (int64_t i = 0; i < count * QUAD; i++) bytes[i] = byte_of_number(bytes[i]);
        for (int64_t tile = 0; tile < count; tile++)
            memcpy(at + (done + tile) * STEP, &words[tile], QUAD);
    }
}
