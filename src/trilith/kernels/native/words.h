/* A tile's words as sums: each byte of a file adds what its codes are in the tile. */
#ifndef TRILITH_WORDS_H
#define TRILITH_WORDS_H

#include "trilith.h"

enum { MAX_UNIT = 8, MAX_BYTES = 6, NUM_BYTES = 256 };

typedef struct {
    int64_t layout; /* BITS2 or BASE3: the four bytes of a tile that an output has are one word */
    int unit;       /* codes of a byte */
    int num_bytes;  /* in which a tile's inputs lie, wherever the first of them begins */
    /* By the place of the first input in its byte, the number of the byte, and the byte. */
    uint32_t added[MAX_UNIT][MAX_BYTES][NUM_BYTES];
} word_table;

/* `digits` are the codes of each byte as the tiles have them. */
void fill_words(
    word_table *table, int64_t layout, int unit, uint8_t digits[NUM_BYTES][MAX_UNIT]);

/* Put inputs of one output, from code `first` of `packed`, into so many whole tiles from `at` on.
 * Reads num_bytes from the byte in which the last tile begins. */
void put_words(
    const word_table *table, const uint8_t *packed, int64_t first, int64_t num_tiles, uint8_t *at);

#endif
