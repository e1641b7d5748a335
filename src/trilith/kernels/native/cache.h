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
    const float *cos, *sin;           /* [head_width] of the new token's position */
    const float *sink_cos, *sink_sin; /* of its position inside the window */
} sequence;

/* One key/value head, and the query heads that share it. */
typedef struct {
    const sequence *s;
    int64_t head, width, repeats;
    const float *q;           /* [repeats, width] */
    const float *q_sinks;     /* the same, turned as the sinks see them */
    const float *key, *value; /* [width] of the new token */
    float *room;              /* attention_room(s, width, repeats) floats */
    float *out;               /* [repeats, width] */
} attention_job;

typedef struct {
    /* out = softmax(q . keys) values, of what the cache keeps and the new token itself. */
    void (*attend)(const attention_job *job);
    /* Store the new key and value; quantize the block of keys that they fill. */
    void (*store)(const attention_job *job);
} attention_ops;

extern const attention_ops attention_ops_portable, attention_ops_avx2;

static inline int64_t first_recent(const sequence *s) {
    int64_t first = s->length - s->num_recent + 1;
    return first > s->sinks ? first : s->sinks;
}

/* Tokens that a new token sees, itself among them. */
static inline int64_t num_seen(const sequence *s) {
    int64_t first = first_recent(s);
    return min64(s->sinks, s->length) + (s->length > first ? s->length - first : 0) + 1;
}

static inline int64_t attention_room(const sequence *s, int64_t width, int64_t repeats) {
    return (KEY_BLOCK + 2) * width + repeats * num_seen(s);
}

#endif
