/* How codes of one output lie in the tiles of trilith.h. */
#ifndef TRILITH_TILE_H
#define TRILITH_TILE_H

#include "trilith.h"

enum { NUM_DIGIT_SETS = 243 };

/* The byte of a number that five digits make. */
static inline uint8_t byte_of_number(uint8_t number) {
    return (uint8_t)((uint16_t)(number * 256 + NUM_DIGIT_SETS - 1) / NUM_DIGIT_SETS);
}

/* The byte of each number that five digits make. */
static inline void fill_byte_of(uint8_t byte_of[NUM_DIGIT_SETS]) {
    for (int n = 0; n < NUM_DIGIT_SETS; n++) byte_of[n] = byte_of_number((uint8_t)n);
}

/* Put the codes of a tile's inputs to place `at`: four codes a word, whose shifts and sums stay
 * within bytes, so that all four move at once. Reads 20 codes. */
static inline void put_codes(
    int64_t layout, const uint8_t *byte_of, const uint8_t *codes, uint8_t *at) {
    uint32_t plane[5];
    memcpy(plane, codes, sizeof plane);
    if (layout == BITS2) {
        uint32_t word = plane[0] | plane[1] << 2 | plane[2] << 4 | plane[3] << 6;
        memcpy(at, &word, sizeof word);
    } else if (layout == BASE3) {
        uint32_t number = (((plane[0] * 3 + plane[1]) * 3 + plane[2]) * 3 + plane[3]) * 3 + plane[4];
        uint8_t bytes[QUAD];
        memcpy(bytes, &number, sizeof number);
        for (int j = 0; j < QUAD; j++) at[j] = byte_of[bytes[j]];
    } else {
        uint32_t words[2] = {plane[0] | plane[1] << 4, plane[2] | plane[3] << 4};
        memcpy(at, &words[0], sizeof words[0]);
        memcpy(at + STEP, &words[1], sizeof words[1]);
    }
}

#endif
