/* From the bytes of a file straight to tiles: codes row after row, as quant/codec.py packs them. */
#include <stdatomic.h>

#include "tile.h"
#include "words.h"

enum codec { CODEC_BITS1 = 1, CODEC_BITS2 = 2, CODEC_BITS3 = 3, CODEC_BASE3 = 5, CODEC_PLANES = 10 };
/* Room in front of and behind the codes of a row: whole units are unpacked. */
enum { SLACK = 32, NO_CODE = 255 };

typedef struct {
    const weight *w;
    const uint8_t *packed;
    int64_t codec, num_bytes;
    uint8_t tile_code[256]; /* of a code, or NO_CODE */
    uint8_t digits[NUM_BYTES][MAX_UNIT]; /* codes of a byte; for words, as the tiles have them */
    uint8_t is_wrong[NUM_BYTES];         /* bytes that hold what is no code */
    int first_wrong;                     /* of these bytes, or NUM_BYTES */
    uint8_t byte_of[NUM_DIGIT_SETS];
    uint8_t *tiles;
    word_table *words; /* or NULL: codes are unpacked one by one */
    atomic_int failed;
} repacking;

static int codes_a_unit(int64_t codec) {
    if (codec == CODEC_BITS1 || codec == CODEC_BITS3) return 8;
    return codec == CODEC_BITS2 ? 4 : 5;
}

static void fill_digits(repacking *r) {
    int base = r->codec == CODEC_BITS1 ? 2 : r->codec == CODEC_BITS2 ? 4 : 3;
    for (int byte = 0; byte < 256; byte++) {
        int left = byte;
        for (int i = 0; i < codes_a_unit(r->codec); i++, left /= base)
            r->digits[byte][i] = (uint8_t)(left % base);
        if (left) r->digits[byte][0] = NO_CODE; /* no value of base 3 */
    }
}

/* True if what a byte holds goes to tiles of one word an output. */
static int makes_words(const repacking *r) {
    int has_bytes = r->codec == CODEC_BITS1 || r->codec == CODEC_BITS2 || r->codec == CODEC_BASE3;
    return has_bytes && r->w->layout != BITS4;
}

/* Prepare put_words; returns 0, or -1 without memory. */
static int prepare_words(repacking *r) {
    int unit = codes_a_unit(r->codec);
    for (int byte = 0; byte < NUM_BYTES; byte++)
        for (int i = 0; i < unit; i++) {
            uint8_t digit = r->digits[byte][i], code = digit == NO_CODE ? NO_CODE : r->tile_code[digit];
            r->is_wrong[byte] |= code == NO_CODE;
            r->digits[byte][i] = code == NO_CODE ? 0 : code;
        }
    while (r->first_wrong < NUM_BYTES && !r->is_wrong[r->first_wrong]) r->first_wrong++;
    r->words = malloc(sizeof *r->words);
    if (!r->words) return -1;
    fill_words(r->words, r->w->layout, unit, r->digits);
    return 0;
}

/* Unpack whole units from code `first` of the stream, whose unit's first code may lie before it;
 * codes[0] is code `first`. */
static void unpack_bytes(
    const repacking *r, const uint8_t *packed, int64_t first, int64_t count, uint8_t *codes) {
    int unit = codes_a_unit(r->codec);
    const uint8_t *byte = packed + first / unit;
    for (int64_t i = -(first % unit); i < count; i += unit, byte++)
        memcpy(codes + i, r->digits[*byte], MAX_UNIT);
}

static void unpack_bits3(const uint8_t *packed, int64_t first, int64_t count, uint8_t *codes) {
    const uint8_t *bytes = packed + first / 8 * 3;
    for (int64_t i = -(first % 8); i < count; i += 8, bytes += 3) {
        uint32_t word = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16;
        for (int j = 0; j < 8; j++) codes[i + j] = word >> (3 * j) & 7;
    }
}

/* The codes of a row as the tiles have them; 0, or -1 if one of them is none. */
static int unpack_row(const repacking *r, int64_t row, uint8_t *codes, uint8_t *second) {
    const weight *w = r->w;
    int64_t first = row * w->num_in;
    if (r->codec == CODEC_BITS3) {
        unpack_bits3(r->packed, first, w->num_in, codes);
    } else {
        unpack_bytes(r, r->packed, first, w->num_in, codes);
    }
    uint8_t highest = 0;
    if (r->codec == CODEC_PLANES) {
        int64_t plane_bytes = ceil_div(w->num_out * w->num_in, 5);
        unpack_bytes(r, r->packed + plane_bytes, first, w->num_in, second);
        for (int64_t i = 0; i < w->num_in; i++) {
            uint8_t bad = codes[i] > second[i] ? codes[i] : second[i];
            highest = highest > bad ? highest : bad;
            codes[i] = (uint8_t)(3 * codes[i] + second[i]);
        }
        if (highest > 2) return -1;
    }
    for (int64_t i = 0; i < w->num_in; i++) {
        codes[i] = r->tile_code[codes[i]];
        highest = highest > codes[i] ? highest : codes[i];
    }
    return highest == NO_CODE ? -1 : 0;
}

static void put_row(const repacking *r, const uint8_t *codes, uint8_t *at) {
    const weight *w = r->w;
    int64_t group_in = w->num_in / w->num_groups, tile_in = planes_of(w->layout) * QUAD;
    for (int64_t group = 0; group < w->num_groups; group++, codes += group_in)
        for (int64_t i = 0; i < group_in; i += tile_in, at += tile_bytes(w->layout)) {
            uint8_t last[SLACK] = {0};
            const uint8_t *from = codes + i;
            if (i + tile_in > group_in || tile_in < 20) {
                memcpy(last, from, (size_t)min64(tile_in, group_in - i));
                from = last;
            }
            put_codes(w->layout, r->byte_of, from, at);
        }
}

/* Put a group of an output, from code `first` on; 20 zeros follow the codes of its last tile. */
static void put_group(const repacking *r, int64_t first, int64_t group_in, uint8_t *at) {
    int unit = r->words->unit;
    int64_t tile_in = planes_of(r->w->layout) * QUAD, whole = group_in / tile_in;
    /* Behind the last byte there may be no memory. */
    while (whole && (first + (whole - 1) * tile_in) / unit + r->words->num_bytes > r->num_bytes)
        whole--;
    put_words(r->words, r->packed, first, whole, at);
    at += whole * STEP;
    for (int64_t i = whole * tile_in; i < group_in; i += tile_in, at += STEP) {
        uint8_t codes[SLACK] = {0};
        for (int64_t j = 0; j < min64(tile_in, group_in - i); j++)
            codes[j] = r->digits[r->packed[(first + i + j) / unit]][(first + i + j) % unit];
        put_codes(r->w->layout, r->byte_of, codes, at);
    }
}

/* -1 if one of these bytes holds what is no code, else 0. */
static int look_at_bytes(const repacking *r, const uint8_t *bytes, int64_t count) {
    uint8_t highest = 0, wrong = 0;
    for (int64_t i = 0; i < count; i++) highest = highest > bytes[i] ? highest : bytes[i];
    /* Of base 3 the highest one tells; to look all of them up takes as long as half the rest. */
    if (highest < r->first_wrong) return 0;
    for (int64_t i = 0; i < count; i++) wrong |= r->is_wrong[bytes[i]];
    return wrong ? -1 : 0;
}

static int put_rows_of_words(const repacking *r, int64_t row, int64_t num_rows, uint8_t *tiles) {
    const weight *w = r->w;
    int64_t group_in = w->num_in / w->num_groups, group_bytes = tiles_of_group(w) * STEP;
    int64_t first = row * w->num_in, first_byte = first / r->words->unit;
    int64_t end_byte = ceil_div(first + num_rows * w->num_in, r->words->unit);
    for (int64_t o = 0; o < num_rows; o++)
        for (int64_t group = 0; group < w->num_groups; group++, first += group_in)
            put_group(r, first, group_in, tiles + group * group_bytes + o * QUAD);
    return look_at_bytes(r, r->packed + first_byte, end_byte - first_byte);
}

static int put_rows_of_codes(const repacking *r, int64_t row, int64_t num_rows, uint8_t *tiles) {
    int64_t room = r->w->num_in + 2 * SLACK;
    uint8_t *memory = malloc((size_t)(2 * room)), *codes = memory + SLACK;
    int wrong = memory ? 0 : -1;
    for (int64_t o = 0; memory && o < num_rows; o++) {
        wrong |= unpack_row(r, row + o, codes, codes + room);
        put_row(r, codes, tiles + o * QUAD);
    }
    free(memory);
    return wrong;
}

static void repack_block(void *context, int64_t block, int worker) {
    repacking *r = context;
    const weight *w = r->w;
    (void)worker;
    int64_t bytes = w->num_groups * tiles_of_group(w) * tile_bytes(w->layout);
    uint8_t *tiles = r->tiles + block * bytes;
    int64_t row = block * BLOCK, num_rows = min64(BLOCK, w->num_out - row);
    if (num_rows < BLOCK) memset(tiles, 0, (size_t)bytes);
    int failed = r->words ? put_rows_of_words(r, row, num_rows, tiles)
                          : put_rows_of_codes(r, row, num_rows, tiles);
    if (failed) r->failed = 1;
}

/* Put packed codes [num_out, num_in] into tiles, all of whose bytes are written. `tile_code` [256]
 * says what each code is there, and 255 where there is no such code; for planes it is asked for
 * 3 a + b. Returns 0, or -1 if a byte or a code is none that the codec writes, or without memory;
 * what pads the last unit is left to the caller. */
int trilith_repack(
    const weight *w, const uint8_t *packed, int64_t codec, const uint8_t *tile_code,
    uint8_t *tiles, int64_t threads) {
    repacking r = {.w = w, .packed = packed, .codec = codec, .tiles = tiles};
    memcpy(r.tile_code, tile_code, sizeof r.tile_code);
    fill_digits(&r);
    fill_byte_of(r.byte_of);
    r.num_bytes = ceil_div(w->num_out * w->num_in, codes_a_unit(codec));
    if (makes_words(&r) && prepare_words(&r)) return -1;
    run_chunks((int)threads, ceil_div(w->num_out, BLOCK), repack_block, &r);
    free(r.words);
    return r.failed ? -1 : 0;
}
