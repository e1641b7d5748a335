/* Attention of new tokens to a cache and to each other: one body in generic vectors, included after
 * float_ops.h and cache_rows.h.
 *
 * Who includes it defines ATTENTION_OPS, the name of the table. Keys and values become floats a tile
 * at a time, which all queries then share; each query keeps its largest score, the sum of its shares
 * and their mix (FlashAttention, arXiv 2205.14135). Tiles begin where the cache has them, so that a
 * token gets the same bits alone and among others. */

enum { LINE_BYTES = 64 };

/* What queries carry from tile to tile. */
typedef struct {
    float *scores;         /* [rows, KEY_BLOCK], by place in the tile */
    float *largest, *sum;  /* [rows] */
} running;

/* Keys and values of tokens first .. last - 1 of one tile. */
typedef struct {
    const float *keys, *values; /* [last - first, width] */
    int64_t first, last, begin; /* `begin` is where the tile begins */
} tile;

/* Some of a tile, by their places in it, that a query sees. */
typedef struct {
    int64_t first, last;
} span;

INLINE float *out_of(const attention_job *j, int64_t row) {
    return j->out + row / j->repeats * j->out_stride + row % j->repeats * j->width;
}

/* What query `row` sees of a tile: sinks always, others while they are recent, none after itself. */
INLINE span span_of(const attention_job *j, const tile *t, int64_t row) {
    int64_t token = j->length + row / j->repeats, first = t->first;
    if (first >= j->s->sinks && first < first_recent(j->s, token))
        first = first_recent(j->s, token);
    return (span){first - t->begin, min64(t->last, token) - t->begin};
}

/* Eight keys at a time, so that their sums are taken together. */
INLINE void score_width(
    const float *query, const float *keys, int64_t count, int64_t width, float *scores) {
    float scale = 1.0f / sqrtf((float)width);
    int64_t t = 0;
    for (; t + 8 <= count; t += 8, keys += 8 * width) {
        floats lanes[8];
        float dots[8];
        int64_t done = 0;
        for (int k = 0; k < 8; k++)
            DOT_LANES(query, (keys + k * width), width, LOAD, lanes[k], done);
        SUM_EIGHT(lanes, dots);
        for (int k = 0; k < 8; k++) {
            for (int64_t i = done; i < width; i++) dots[k] += query[i] * keys[k * width + i];
            scores[t + k] = dots[k] * scale;
        }
    }
    for (; t < count; t++, keys += width) {
        float dot;
        DOT(query, keys, width, LOAD, , dot);
        scores[t] = dot * scale;
    }
}

INLINE void score(
    const float *query, const float *keys, int64_t count, int64_t width, float *scores) {
    /* As constants, usual widths keep the query in registers. */
    if (width == 64)
        score_width(query, keys, count, 64, scores);
    else if (width == 128)
        score_width(query, keys, count, 128, scores);
    else
        score_width(query, keys, count, width, scores);
}

/* out += sum of shares[t] * values[t], of N vectors of features in registers. */
#define MIX(N) \
    for (; i + N * LANES <= width; i += N * LANES) { \
        floats mixed[N]; \
        memcpy(mixed, out + i, sizeof mixed); \
        for (int64_t t = 0; t < count; t++) \
            _Pragma("GCC unroll 8") for (int n = 0; n < N; n++) \
                mixed[n] += shares[t] * LOAD(values + t * width + i + n * LANES); \
        memcpy(out + i, mixed, sizeof mixed); \
    }

INLINE void mix(
    const float *shares, const float *values, int64_t count, int64_t width, float *out) {
    int64_t i = 0;
    MIX(8)
    MIX(4)
    MIX(1)
    for (; i < width; i++)
        for (int64_t t = 0; t < count; t++) out[i] += shares[t] * values[t * width + i];
}

/* Scores of the places of `seen` become shares, of all others 0; returns their sum. */
INLINE float to_shares(float *scores, span seen, float largest) {
    floats sums = {0};
    float total;
    for (int64_t t = 0; t < KEY_BLOCK; t++) {
        float share = exponential(scores[t] - largest);
        scores[t] = t >= seen.first && t < seen.last ? share : 0.0f;
    }
    for (int64_t t = 0; t < KEY_BLOCK; t += LANES) sums += LOAD(scores + t);
    SUM(sums, total);
    return total;
}

/* Take in what one query sees of a tile, whose scores are there. */
INLINE void take_in(const attention_job *j, const running *r, const tile *t, span seen, int64_t row) {
    float *scores = r->scores + row * KEY_BLOCK, *out = out_of(j, row);
    float largest = r->largest[row];
    for (int64_t i = seen.first; i < seen.last; i++)
        largest = scores[i] > largest ? scores[i] : largest;
    if (largest > r->largest[row]) {
        float fade = exponential(r->largest[row] - largest);
        for (int64_t i = 0; i < j->width; i++) out[i] *= fade;
        r->sum[row] *= fade;
        r->largest[row] = largest;
    }
    r->sum[row] += to_shares(scores, seen, largest);
    const float *values = t->values + (t->begin + seen.first - t->first) * j->width;
    mix(scores + seen.first, values, seen.last - seen.first, j->width, out);
}

INLINE void see(const attention_job *j, const running *r, const tile *t) {
    int64_t width = j->width;
    const float *q = t->first < j->s->sinks ? j->q_sinks : j->q;
    for (int64_t row = 0; row < j->num_new * j->repeats; row++) {
        span seen = span_of(j, t, row);
        if (seen.first >= seen.last) continue;
        const float *keys = t->keys + (t->begin + seen.first - t->first) * width;
        float *scores = r->scores + row * KEY_BLOCK + seen.first;
        score(q + row * width, keys, seen.last - seen.first, width, scores);
        take_in(j, r, t, seen, row);
    }
}

/* Values of a tile are on their way while its keys are scored. */
INLINE void fetch_values(const attention_job *j, int64_t first, int64_t last) {
    const sequence *s = j->s;
    int64_t row = j->head * (s->sinks + s->ring) + slot_of(s, first);
    int64_t row_bytes = j->width * s->bits / 8;
    const uint8_t *values = s->values + row * row_bytes;
    for (int64_t at = 0; at < (last - first) * row_bytes; at += LINE_BYTES)
        __builtin_prefetch(values + at);
}

INLINE void see_cached(const attention_job *j, const running *r, int64_t first, int64_t last) {
    if (j->num_new == 1) fetch_values(j, first, last);
    float *keys = j->room, *values = keys + (KEY_BLOCK + 2) * j->width;
    tile t = {
        .keys = cached_keys(j, first, last - first, keys),
        .values = cached_values(j, first, last - first, values),
        .first = first, .last = last, .begin = tile_first(j->s, first),
    };
    see(j, r, &t);
}

/* The tile of the new tokens: what is stored of it, and all new ones but the last. */
INLINE void see_newest(const attention_job *j, const running *r) {
    int64_t begin = tile_first(j->s, j->length), first = begin, width = j->width;
    if (begin >= j->s->sinks && first < first_recent(j->s, j->length))
        first = min64(first_recent(j->s, j->length), j->length);
    int64_t num_stored = j->length - first, num_kept = j->num_new - 1;
    float *keys = j->room, *values = keys + (KEY_BLOCK + 2) * width;
    tile t = {keys, values, first, j->length + num_kept, begin};
    if (num_stored) {
        t.keys = cached_keys(j, first, num_stored, keys);
        t.values = cached_values(j, first, num_stored, values);
    }
    if (num_kept) {
        size_t bytes = (size_t)(num_stored * width) * sizeof *keys;
        if (t.keys != keys) memcpy(keys, t.keys, bytes);
        if (t.values != values) memcpy(values, t.values, bytes);
        t.keys = keys;
        t.values = values;
        keep_rows(j, num_kept, keys + num_stored * width, values + num_stored * width);
    }
    see(j, r, &t);
}

/* Each token sees itself, as it is. */
INLINE void see_themselves(const attention_job *j, const running *r) {
    for (int64_t row = 0; row < j->num_new * j->repeats; row++) {
        int64_t at = row / j->repeats * j->stride;
        tile own = {j->key + at, j->value + at, 0, 1, 0};
        score(j->q + row * j->width, own.keys, 1, j->width, r->scores + row * KEY_BLOCK);
        take_in(j, r, &own, (span){0, 1}, row);
    }
}

TARGET static void attend(const attention_job *j) {
    const sequence *s = j->s;
    int64_t rows = j->num_new * j->repeats, newest = tile_first(s, j->length);
    float *free_room = j->room + (2 * KEY_BLOCK + 2) * j->width;
    running r = {free_room, free_room + rows * KEY_BLOCK, free_room + rows * (KEY_BLOCK + 1)};
    for (int64_t row = 0; row < rows; row++) {
        memset(out_of(j, row), 0, (size_t)j->width * sizeof *j->out);
        r.largest[row] = -INFINITY;
        r.sum[row] = 0;
    }
    int64_t last_sink = min64(s->sinks, newest);
    for (int64_t token = 0; token < last_sink; token = tile_end(s, token))
        see_cached(j, &r, token, min64(tile_end(s, token), last_sink));
    for (int64_t token = first_recent(s, j->length); token < newest; token = tile_end(s, token))
        see_cached(j, &r, token, tile_end(s, token));
    see_newest(j, &r);
    see_themselves(j, &r);
    for (int64_t row = 0; row < rows; row++) {
        float *out = out_of(j, row);
        for (int64_t i = 0; i < j->width; i++) out[i] /= r.sum[row];
    }
}

const attention_ops ATTENTION_OPS = {attend, store};
