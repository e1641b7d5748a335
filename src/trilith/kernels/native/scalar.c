/* The portable kernel in plain C, and the plainest to read. */
#include "trilith.h"

static int digit_of(uint8_t byte, int plane) {
    for (; plane > 0; plane--) byte = (uint8_t)(byte * 3);
    return byte * 3 >> 8;
}

static int level_at(const weight *w, const uint8_t *tile, int plane, int byte) {
    if (w->layout == BITS2) return (tile[byte] >> (2 * plane)) & 3;
    if (w->layout == BASE3) return digit_of(tile[byte], plane);
    return w->levels[(tile[64 * (plane / 2) + byte] >> (4 * (plane % 2))) & 15];
}

static void add_plane(
    const weight *w, const uint8_t *tile, int plane, const int8_t *quad, int32_t *sums) {
    for (int o = 0; o < BLOCK; o++)
        for (int j = 0; j < QUAD; j++)
            sums[o] += level_at(w, tile, plane, QUAD * o + j) * quad[j];
}

static void add_group(
    const product *p, int64_t block, int64_t group, int64_t token, float *total) {
    const uint8_t *tile = tiles_of(p, block, group);
    const int8_t *values = values_of(p, token, group);
    int32_t sums[BLOCK] = {0};
    int planes = planes_of(p->weight.layout);
    for (int64_t i = 0; i < p->group_tiles; i++, tile += tile_bytes(p->weight.layout))
        for (int plane = 0; plane < planes; plane++)
            add_plane(&p->weight, tile, plane, quad_of(p, values, i * planes + plane), sums);
    int32_t shift = p->sums[token * p->weight.num_groups + group];
    const float *factor = p->weight.factor + (group * p->num_blocks + block) * BLOCK;
    for (int o = 0; o < BLOCK; o++) total[o] += (float)(sums[o] - shift) * factor[o];
}

void linear_scalar(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    (void)scratch;
    for (int64_t block = first; block < last; block++) {
        int64_t width = min64(BLOCK, p->weight.num_out - block * BLOCK);
        for (int64_t token = 0; token < p->num_tokens; token++) {
            float total[BLOCK] = {0};
            for (int64_t group = 0; group < p->weight.num_groups; group++)
                add_group(p, block, group, token, total);
            float *out = p->out + token * p->weight.num_out + block * BLOCK;
            for (int64_t o = 0; o < width; o++) out[o] = total[o] * p->scale[token];
        }
    }
}
