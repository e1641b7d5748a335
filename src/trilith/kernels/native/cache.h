/* The key/value cache of one sequence, and attention to it. The reference is model/cache_storage.py. */
#ifndef TRILITH_CACHE_H
#define TRILITH_CACHE_H

#include "trilith.h"

enum { KEY_BLOCK = 32 };

/* Keep in step with SequenceStruct in native_decode.py. Heads are those of all layers in turn; rows
 * of the first `sinks` tokens stay, all others share `ring` slots. */
typedef struct {
    int64_t bits;          /* of a number: 32 float, 16 bfloat16, 8 or 4 with scale and zero */
    uint8_t *keys;         /* [heads, sinks + ring, head_width]; without the sinks below 16 bits */
    uint8_t *values;       /* [heads, sinks + ring, head_width] */
    uint16_t *near;        /* [heads, sinks + KEY_BLOCK, head_width]: keys of sinks, newest block */
    uint16_t *key_scale;   /* [heads, ring / KEY_BLOCK, head_width] */
    uint16_t *key_zero;
    uint16_t *value_scale; /* [heads, sinks + ring] */
    uint16_t *value_zero;
    int64_t layer_heads;   /* heads from one layer to the next */
    int64_t sinks, ring;
    int64_t num_recent;    /* tokens that a token sees beside the sinks, itself among them */
    int64_t length;        /* tokens stored */
    int64_t num_new;       /* tokens that come now, one after another */
    int64_t first_new;     /* of all new tokens of the batch, the first of this sequence */
    const float *cos, *sin;           /* [num_new, head_width] of the new tokens' positions */
    const float *sink_cos, *sink_sin; /* of their positions inside the window */
} sequence;

/* Some new tokens in one key/value head, with the query heads that share it. All of them come to
 * lie in one tile. A row is one query: [num_new, repeats]. */
typedef struct {
    const sequence *s;
    int64_t head, width, repeats;
    int64_t length, num_new;  /* tokens stored before, and these */
    int64_t stride;           /* floats from a token's key and value to the next one's */
    const float *q;           /* [rows, width] */
    const float *q_sinks;     /* the same, turned as the sinks see them */
    const float *key, *value; /* [num_new, stride] */
    float *room;              /* attention_room floats */
    float *out;               /* [num_new, out_stride], of which repeats * width are written */
    int64_t out_stride;
} attention_job;

typedef struct {
    /* out = softmax(q . keys) values: of what the cache keeps, of the new tokens before as it will
     * keep them, and of the token itself. */
    void (*attend)(const attention_job *job);
    /* Store the new keys and values; quantize the block of keys that they fill. */
    void (*store)(const attention_job *job);
} attention_ops;

extern const attention_ops attention_ops_portable, attention_ops_avx2;

/* Tokens lie in tiles: blocks of the sinks and of the others, cut where the ring begins again. */
static inline int64_t tile_first(const sequence *s, int64_t token) {
    if (token < s->sinks) return token / KEY_BLOCK * KEY_BLOCK;
    int64_t at = token - s->sinks, block = at / KEY_BLOCK * KEY_BLOCK, lap = at / s->ring * s->ring;
    return s->sinks + (block > lap ? block : lap);
}

static inline int64_t tile_end(const sequence *s, int64_t token) {
    if (token < s->sinks) return min64((token / KEY_BLOCK + 1) * KEY_BLOCK, s->sinks);
    int64_t at = token - s->sinks;
    return s->sinks + min64((at / KEY_BLOCK + 1) * KEY_BLOCK, (at / s->ring + 1) * s->ring);
}

/* The first token beside the sinks that token `token` sees. */
static inline int64_t first_recent(const sequence *s, int64_t token) {
    int64_t first = token - s->num_recent + 1;
    return first > s->sinks ? first : s->sinks;
}

/* Tokens that all new tokens together see, themselves among them. */
static inline int64_t num_seen(const sequence *s) {
    int64_t each = min64(s->length + s->num_new, s->sinks + s->num_recent);
    return s->num_new * each;
}

/* Keys and values of a tile, scale and zero of its keys; scores; largest score and sum of a row. */
static inline int64_t attention_room(int64_t width, int64_t repeats) {
    return (2 * KEY_BLOCK + 2) * width + KEY_BLOCK * repeats * (KEY_BLOCK + 2);
}

#endif
