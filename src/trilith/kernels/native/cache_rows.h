/* Keys and values of a tile as floats, and new ones stored: included after float_ops.h.
 *
 * Who includes it defines FROM_UINT8(p), FROM_LOW(p) and FROM_HIGH(p), which load LANES bytes, or
 * their halves, as floats. */
#include "cache.h"

INLINE int64_t slot_of(const sequence *s, int64_t token) {
    return token < s->sinks ? token : s->sinks + (token - s->sinks) % s->ring;
}

/* Is this key still, or for ever, in 16 bits, once `length` tokens are stored? */
INLINE int is_near(const sequence *s, int64_t token, int64_t length) {
    return token < s->sinks || token - s->sinks >= (length - s->sinks) / KEY_BLOCK * KEY_BLOCK;
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

INLINE void narrow(const float *from, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = bfloat16_of(from[i]);
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

/* Keys of tokens of one tile as floats: where they lie, or in `room` [KEY_BLOCK + 2, width]. */
INLINE const float *cached_keys(const attention_job *j, int64_t token, int64_t count, float *room) {
    const sequence *s = j->s;
    int64_t width = j->width, row = j->head * (s->sinks + s->ring) + slot_of(s, token);
    if (s->bits == 32) return (const float *)s->keys + row * width;
    if (s->bits == 16) {
        widen((const uint16_t *)s->keys + row * width, count * width, room);
        return room;
    }
    if (is_near(s, token, j->length)) {
        widen(s->near + near_row(j, token) * width, count * width, room);
        return room;
    }
    row = j->head * s->ring + (token - s->sinks) % s->ring;
    float *scale = room + KEY_BLOCK * width, *zero = scale + width;
    widen(s->key_scale + row / KEY_BLOCK * width, width, scale);
    widen(s->key_zero + row / KEY_BLOCK * width, width, zero);
    int64_t row_bytes = width * s->bits / 8;
    for (int64_t t = 0; t < count; t++) {
        float *out = room + t * width;
        codes_to_floats(s->keys + (row + t) * row_bytes, s->bits, width, out);
        for (int64_t i = 0; i < width; i++) out[i] = out[i] * scale[i] + zero[i];
    }
    return room;
}

/* The same of values; `room` is [KEY_BLOCK, width]. */
INLINE const float *cached_values(
    const attention_job *j, int64_t token, int64_t count, float *room) {
    const sequence *s = j->s;
    int64_t width = j->width, row = j->head * (s->sinks + s->ring) + slot_of(s, token);
    if (s->bits == 32) return (const float *)s->values + row * width;
    if (s->bits == 16) {
        widen((const uint16_t *)s->values + row * width, count * width, room);
        return room;
    }
    int64_t row_bytes = width * s->bits / 8;
    for (int64_t t = 0; t < count; t++) {
        float *out = room + t * width;
        float scale = bf16_to_float(s->value_scale[row + t]);
        float zero = bf16_to_float(s->value_zero[row + t]);
        codes_to_floats(s->values + (row + t) * row_bytes, s->bits, width, out);
        for (int64_t i = 0; i < width; i++) out[i] = out[i] * scale + zero;
    }
    return room;
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

INLINE void fit_value(
    const float *value, int64_t width, float steps, uint16_t *scale, uint16_t *zero) {
    float least = value[0], most = value[0];
    for (int64_t i = 1; i < width; i++) {
        least = value[i] < least ? value[i] : least;
        most = value[i] > most ? value[i] : most;
    }
    fit_range(least, most, steps, scale, zero);
}

/* A new value as the cache will give it back. */
INLINE void keep_value(const sequence *s, const float *value, int64_t width, float *out) {
    uint16_t bits_of_scale, bits_of_zero;
    float steps = (float)((1 << s->bits) - 1);
    fit_value(value, width, steps, &bits_of_scale, &bits_of_zero);
    float scale = bf16_to_float(bits_of_scale), zero = bf16_to_float(bits_of_zero);
    for (int64_t i = 0; i < width; i++)
        out[i] = (float)code_of(value[i], scale, zero, steps) * scale + zero;
}

/* New tokens as the cache will give them back before their block is full: keys and values, rows of
 * [width]. */
INLINE void keep_rows(const attention_job *j, int64_t count, float *keys, float *values) {
    int64_t width = j->width;
    for (int64_t t = 0; t < count; t++) {
        const float *key = j->key + t * j->stride, *value = j->value + t * j->stride;
        float *kept_key = keys + t * width, *kept_value = values + t * width;
        for (int64_t i = 0; i < width; i++) {
            kept_key[i] = j->s->bits == 32 ? key[i] : bf16_to_float(bfloat16_of(key[i]));
            kept_value[i] = j->s->bits == 32 ? value[i] : bf16_to_float(bfloat16_of(value[i]));
        }
        if (j->s->bits < 16) keep_value(j->s, value, width, kept_value);
    }
}

INLINE void store_value(const attention_job *j, const float *value, int64_t row) {
    const sequence *s = j->s;
    float steps = (float)((1 << s->bits) - 1);
    fit_value(value, j->width, steps, s->value_scale + row, s->value_zero + row);
    float scale = bf16_to_float(s->value_scale[row]), zero = bf16_to_float(s->value_zero[row]);
    uint8_t *codes = s->values + row * (j->width * s->bits / 8);
    for (int64_t i = 0; i < j->width; i++)
        put_code(codes, s->bits, j->width, i, code_of(value[i], scale, zero, steps));
}

/* The block of keys that ends with this token is full: quantize it by channel. */
INLINE void close_block(const attention_job *j, int64_t token) {
    const sequence *s = j->s;
    int64_t width = j->width, row_bytes = width * s->bits / 8;
    int64_t block = (token - s->sinks) % s->ring / KEY_BLOCK;
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

INLINE void store_token(const attention_job *j, int64_t token, const float *key, const float *value) {
    const sequence *s = j->s;
    int64_t width = j->width, row = j->head * (s->sinks + s->ring) + slot_of(s, token);
    if (s->bits == 32) {
        memcpy((float *)s->keys + row * width, key, (size_t)width * sizeof *key);
        memcpy((float *)s->values + row * width, value, (size_t)width * sizeof *value);
    } else if (s->bits == 16) {
        narrow(key, width, (uint16_t *)s->keys + row * width);
        narrow(value, width, (uint16_t *)s->values + row * width);
    } else {
        narrow(key, width, s->near + near_row(j, token) * width);
        store_value(j, value, row);
        int64_t at = token - s->sinks;
        if (at >= 0 && at % KEY_BLOCK == KEY_BLOCK - 1) close_block(j, token);
    }
}

TARGET static void store(const attention_job *j) {
    for (int64_t t = 0; t < j->num_new; t++)
        store_token(j, j->length + t, j->key + t * j->stride, j->value + t * j->stride);
}
