/* From the bytes of a file straight to tiles: codes row after row, as quant/codec.py packs them. */
#include <stdatomic.h>

#include "tile.h"

enum codec { CODEC_BITS1 = 1, CODEC_BITS2 = 2, CODEC_BITS3 = 3, CODEC_BASE3 = 5, CODEC_PLANES = 10 };
/* Room in front of and behind the codes of a row: whole units are unpacked. */
enum { SLACK = 32, NO_CODE = 255, MAX_UNIT = 8 };

typedef struct {
    const weight *w;
    const uint8_t *packed;
    int64_t codec;
    uint8_t tile_code[256]; /* of a code, or NO_CODE */
    uint8_t digits[256][MAX_UNIT]; /* of a byte, as codes */
    uint8_t byte_of[NUM_DIGIT_SETS];
    uint8_t *tiles;
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

static void repack_block(void *context, int64_t block, int worker) {
    repacking *r = context;
    const weight *w = r->w;
    (void)worker;
    int64_t bytes = w->num_groups * tiles_of_group(w) * tile_bytes(w->layout);
    int64_t room = w->num_in + 2 * SLACK;
    uint8_t *tiles = r->tiles + block * bytes, *memory = malloc((size_t)(2 * room));
    int64_t num_rows = min64(BLOCK, w->num_out - block * BLOCK);
    if (!memory) {
        r->failed = 1;
        return;
    }
    if (num_rows < BLOCK) memset(tiles, 0, (size_t)bytes);
    for (int64_t o = 0; o < num_rows; o++) {
        uint8_t *codes = memory + SLACK;
        if (unpack_row(r, block * BLOCK + o, codes, codes + room)) r->failed = 1;
        put_row(r, codes, tiles + o * QUAD);
    }
    free(memory);
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
    run_chunks((int)threads, ceil_div(w->num_out, BLOCK), repack_block, &r);
    return r.failed ? -1 : 0;
}
