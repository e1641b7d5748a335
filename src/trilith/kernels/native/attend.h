/* Attention of one token to its cache: one body in generic vectors, included after float_ops.h.
 *
 * Who includes it defines ATTENTION_OPS, the name of the table; FROM_UINT8(p), FROM_LOW(p) and
 * FROM_HIGH(p), which load LANES bytes, or their halves, as floats. Rows become floats a tile of up
 * to KEY_BLOCK tokens at a time, which all query heads of the head then share. */
#include "cache.h"

/* Tokens from `token` on that lie together, in one block. */
INLINE int64_t tile_length(const sequence *s, int64_t token, int64_t last) {
    if (token < s->sinks) return min64(KEY_BLOCK, min64(s->sinks, last) - token);
    int64_t at = token - s->sinks;
    int64_t in_block = KEY_BLOCK - at % KEY_BLOCK, in_ring = s->ring - at % s->ring;
    return min64(last - token, min64(in_block, in_ring));
}

INLINE int64_t slot_of(const sequence *s, int64_t token) {
    return token < s->sinks ? token : s->sinks + (token - s->sinks) % s->ring;
}

/* Is this key still, or for ever, in 16 bits? */
INLINE int is_near(const sequence *s, int64_t token) {
    return token < s->sinks ||
           token - s->sinks >= (s->length - s->sinks) / KEY_BLOCK * KEY_BLOCK;
}

INLINE int64_t near_row(const attention_job *j, int64_t token) {
    const sequence *s = j->s;
    int64_t at = token < s->sinks ? token : s->sinks + (token - s->sinks) % KEY_BLOCK;
    return j->head * (s->sinks + KEY_BLOCK) + at;
}

INLINE void widen(const uint16_t *from, int64_t count, float *out) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        floats wide = FROM_BF16(from + i);
        memcpy(out + i, &wide, sizeof wide);
    }
    for (; i < count; i++) out[i] = bf16_to_float(from[i]);
}

INLINE void codes_to_floats(const uint8_t *codes, int64_t bits, int64_t width, float *out) {
    int64_t i = 0, half = width / 2;
    if (bits == 8) {
        for (; i + LANES <= width; i += LANES) {
            floats wide = FROM_UINT8(codes + i);
            memcpy(out + i, &wide, sizeof wide);
        }
        for (; i < width; i++) out[i] = codes[i];
        return;
    }
    for (; i + LANES <= half; i += LANES) {
        floats low = FROM_LOW(codes + i), high = FROM_HIGH(codes + i);
        memcpy(out + i, &low, sizeof low);
        memcpy(out + half + i, &high, sizeof high);
    }
    for (; i < half; i++) {
        out[i] = codes[i] & 15;
        out[half + i] = codes[i] >> 4;
    }
}

/* Keys of `count` tokens as floats: where they lie, or in the tile. */
INLINE const float *keys_of(const attention_job *j, int64_t token, int64_t count) {
    const sequence *s = j->s;
    int64_t width = j->width, row = j->head * (s->sinks + s->ring) + slot_of(s, token);
    if (s->bits == 32) return (const float *)s->keys + row * width;
    if (s->bits == 16) {
        widen((const uint16_t *)s->keys + row * width, count * width, j->room);
        return j->room;
    }
    if (is_near(s, token)) {
        widen(s->near + near_row(j, token) * width, count * width, j->room);
        return j->room;
    }
    row = j->head * s->ring + (token - s->sinks) % s->ring;
    float *scale = j->room + KEY_BLOCK * width, *zero = scale + width;
    widen(s->key_scale + row / KEY_BLOCK * width, width, scale);
    widen(s->key_zero + row / KEY_BLOCK * width, width, zero);
    int64_t row_bytes = width * s->bits / 8;
    for (int64_t t = 0; t < count; t++) {
        float *out = j->room + t * width;
        codes_to_floats(s->keys + (row + t) * row_bytes, s->bits, width, out);
        for (int64_t i = 0; i < width; i++) out[i] = out[i] * scale[i] + zero[i];
    }
    return j->room;
}

INLINE const float *values_of_tile(const attention_job *j, int64_t token, int64_t count) {
    const sequence *s = j->s;
    int64_t width = j->width, row = j->head * (s->sinks + s->ring) + slot_of(s, token);
    if (s->bits == 32) return (const float *)s->values + row * width;
    if (s->bits == 16) {
        widen((const uint16_t *)s->values + row * width, count * width, j->room);
        return j->room;
    }
    int64_t row_bytes = width * s->bits / 8;
    for (int64_t t = 0; t < count; t++) {
        float *out = j->room + t * width;
        float scale = bf16_to_float(s->value_scale[row + t]);
        float zero = bf16_to_float(s->value_zero[row + t]);
        codes_to_floats(s->values + (row + t) * row_bytes, s->bits, width, out);
        for (int64_t i = 0; i < width; i++) out[i] = out[i] * scale + zero;
    }
    return j->room;
}

INLINE void score(
    const attention_job *j, const float *q, const float *keys, int64_t count, float *scores,
    int64_t seen) {
    float scale = 1.0f / sqrtf((float)j->width);
    for (int64_t r = 0; r < j->repeats; r++)
        for (int64_t t = 0; t < count; t++) {
            const float *query = q + r * j->width, *key = keys + t * j->width;
            float dot;
            DOT(query, key, j->width, LOAD, , dot);
            scores[r * seen + t] = dot * scale;
        }
}

/* out += sum of shares[t] * values[t], in registers for 4 * LANES features at a time. */
INLINE void mix(
    const float *shares, const float *values, int64_t count, int64_t width, float *out) {
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        floats a = LOAD(out + i), b = LOAD(out + i + LANES);
        floats c = LOAD(out + i + 2 * LANES), d = LOAD(out + i + 3 * LANES);
        for (int64_t t = 0; t < count; t++) {
            const float *row = values + t * width + i;
            a += shares[t] * LOAD(row);
            b += shares[t] * LOAD(row + LANES);
            c += shares[t] * LOAD(row + 2 * LANES);
            d += shares[t] * LOAD(row + 3 * LANES);
        }
        memcpy(out + i, &a, sizeof a);
        memcpy(out + i + LANES, &b, sizeof b);
        memcpy(out + i + 2 * LANES, &c, sizeof c);
        memcpy(out + i + 3 * LANES, &d, sizeof d);
    }
    for (; i + LANES <= width; i += LANES) {
        floats a = LOAD(out + i);
        for (int64_t t = 0; t < count; t++) a += shares[t] * LOAD(values + t * width + i);
        memcpy(out + i, &a, sizeof a);
    }
    for (; i < width; i++)
        for (int64_t t = 0; t < count; t++) out[i] += shares[t] * values[t * width + i];
}

INLINE void softmax(float *scores, int64_t count) {
    float largest = -INFINITY, total;
    floats sums = {0};
    int64_t done = 0;
    for (int64_t i = 0; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < count; i++) scores[i] = exponential(scores[i] - largest);
    for (; done + LANES <= count; done += LANES) sums += LOAD(scores + done);
    SUM(sums, total);
    for (; done < count; done++) total += scores[done];
    for (int64_t i = 0; i < count; i++) scores[i] /= total;
}

TARGET static void attend(const attention_job *j) {
    const sequence *s = j->s;
    int64_t width = j->width, seen = num_seen(s), num_sinks = min64(s->sinks, s->length), at = 0;
    float *scores = j->room + (KEY_BLOCK + 2) * width;
    for (int64_t token = 0, count; token < num_sinks; token += count, at += count) {
        count = tile_length(s, token, num_sinks);
        score(j, j->q_sinks, keys_of(j, token, count), count, scores + at, seen);
    }
    for (int64_t token = first_recent(s), count; token < s->length; token += count, at += count) {
        count = tile_length(s, token, s->length);
        score(j, j->q, keys_of(j, token, count), count, scores + at, seen);
    }
    score(j, j->q, j->key, 1, scores + at, seen);
    memset(j->out, 0, (size_t)(j->repeats * width) * sizeof *j->out);
    for (int64_t r = 0; r < j->repeats; r++) softmax(scores + r * seen, seen);
    int64_t token = num_sinks ? 0 : first_recent(s);
    for (int64_t count, done = 0; done < seen - 1; done += count, token += count) {
        if (token == num_sinks) token = first_recent(s);
        count = tile_length(s, token, token < num_sinks ? num_sinks : s->length);
        const float *values = values_of_tile(j, token, count);
        for (int64_t r = 0; r < j->repeats; r++)
            mix(scores + r * seen + done, values, count, width, j->out + r * width);
    }
    for (int64_t r = 0; r < j->repeats; r++)
        mix(scores + r * seen + seen - 1, j->value, 1, width, j->out + r * width);
}

INLINE uint8_t code_of(float x, float scale, float zero, float steps) {
    float code = rintf((x - zero) / scale);
    return (uint8_t)(code < 0.0f ? 0.0f : code > steps ? steps : code);
}

INLINE void put_code(uint8_t *row, int64_t bits, int64_t width, int64_t i, uint8_t code) {
    if (bits == 8)
        row[i] = code;
    else if (i < width / 2)
        row[i] = code;
    else
        row[i - width / 2] |= (uint8_t)(code << 4);
}

/* Scale and zero of numbers between two, as quantize_range has them. */
INLINE void fit_range(float least, float most, float steps, uint16_t *scale, uint16_t *zero) {
    *zero = bfloat16_of(least);
    *scale = bfloat16_of((most - bf16_to_float(*zero)) / steps);
    if (!(bf16_to_float(*scale) > 0.0f)) *scale = bfloat16_of(1.0f);
}

INLINE void quantize_value(const attention_job *j, int64_t row) {
    const sequence *s = j->s;
    float steps = (float)((1 << s->bits) - 1), least = j->value[0], most = j->value[0];
    for (int64_t i = 1; i < j->width; i++) {
        least = j->value[i] < least ? j->value[i] : least;
        most = j->value[i] > most ? j->value[i] : most;
    }
    fit_range(least, most, steps, s->value_scale + row, s->value_zero + row);
    float scale = bf16_to_float(s->value_scale[row]), zero = bf16_to_float(s->value_zero[row]);
    uint8_t *codes = s->values + row * (j->width * s->bits / 8);
    for (int64_t i = 0; i < j->width; i++)
        put_code(codes, s->bits, j->width, i, code_of(j->value[i], scale, zero, steps));
}

/* The newest block of keys is full: quantize it by channel. */
INLINE void close_block(const attention_job *j) {
    const sequence *s = j->s;
    int64_t width = j->width, row_bytes = width * s->bits / 8;
    int64_t block = (s->length - s->sinks) % s->ring / KEY_BLOCK;
    int64_t scales = (j->head * (s->ring / KEY_BLOCK) + block) * width;
    const uint16_t *full = s->near + (j->head * (s->sinks + KEY_BLOCK) + s->sinks) * width;
    uint8_t *codes = s->keys + (j->head * s->ring + block * KEY_BLOCK) * row_bytes;
    float steps = (float)((1 << s->bits) - 1);
    for (int64_t i = 0; i < width; i++) {
        float least = bf16_to_float(full[i]), most = least;
        for (int64_t t = 1; t < KEY_BLOCK; t++) {
            float x = bf16_to_float(full[t * width + i]);
            least = x < least ? x : least;
            most = x > most ? x : most;
        }
        fit_range(least, most, steps, s->key_scale + scales + i, s->key_zero + scales + i);
        float scale = bf16_to_float(s->key_scale[scales + i]);
        float zero = bf16_to_float(s->key_zero[scales + i]);
        for (int64_t t = 0; t < KEY_BLOCK; t++) {
            float x = bf16_to_float(full[t * width + i]);
            put_code(codes + t * row_bytes, s->bits, width, i, code_of(x, scale, zero, steps));
        }
    }
}

INLINE void narrow(const float *from, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = bfloat16_of(from[i]);
}

TARGET static void store(const attention_job *j) {
    const sequence *s = j->s;
    int64_t width = j->width, row = j->head * (s->sinks + s->ring) + slot_of(s, s->length);
    if (s->bits == 32) {
        memcpy((float *)s->keys + row * width, j->key, (size_t)width * sizeof *j->key);
        memcpy((float *)s->values + row * width, j->value, (size_t)width * sizeof *j->value);
    } else if (s->bits == 16) {
        narrow(j->key, width, (uint16_t *)s->keys + row * width);
        narrow(j->value, width, (uint16_t *)s->values + row * width);
    } else {
        narrow(j->key, width, s->near + near_row(j, s->length) * width);
        quantize_value(j, row);
        int64_t at = s->length - s->sinks;
        if (at >= 0 && at % KEY_BLOCK == KEY_BLOCK - 1) close_block(j);
    }
}

const attention_ops ATTENTION_OPS = {attend, store};
