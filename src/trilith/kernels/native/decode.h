/* A whole decoding step: the model, its cache, and the float parts that have several bodies. */
#ifndef TRILITH_DECODE_H
#define TRILITH_DECODE_H

#include "rows.h"

enum mlp_kind { SWIGLU, RELU2, GATED_RELU2 };

/* Keep these three in step with native_decode.py. Norms and biases that the model lacks are NULL. */
typedef struct {
    const float *attention_norm, *q_norm, *k_norm, *attention_sub_norm;
    const float *mlp_norm, *mlp_sub_norm;
    const float *qkv_bias; /* [qkv.num_out] */
    weight qkv, out, up, down;
} layer;

typedef struct {
    int64_t num_layers, width, num_heads, num_kv_heads, head_width, mlp_width, vocab_size;
    int64_t mlp_kind;
    float norm_eps;
    const layer *layers;
    rows embedding, head;
    const float *norm;       /* [width] */
    const float *cos, *sin;  /* [context, head_width] */
} model;

typedef struct {
    float *keys, *values; /* [num_layers, batch, num_kv_heads, capacity, head_width] */
    int64_t batch, capacity, length;
} cache;

typedef struct {
    /* out = x / rms(x) * norm */
    void (*rms_norm)(const float *x, const float *norm, int64_t width, float eps, float *out);
    /* Turn pairs (i, i + width / 2) in place. */
    void (*rotate)(float *x, const float *cos, const float *sin, int64_t width);
    /* out = softmax(q . keys) values over num_seen positions; scores is room for num_seen. */
    void (*attend)(
        const float *q, const float *keys, const float *values, int64_t num_seen, int64_t width,
        float *scores, float *out);
    /* out [width] from hidden: [2 * width] gate and value, or [width] for RELU2. */
    void (*activate)(int64_t kind, const float *hidden, int64_t width, float *out);
    void (*add)(float *x, const float *y, int64_t count);
    /* out[row] = x . rows[row], for rows first .. last - 1 of a head in floats or int8. */
    void (*head_rows)(const rows *r, const float *x, int64_t first, int64_t last, float *out);
} float_ops;

extern const float_ops float_ops_portable, float_ops_avx2;

const float_ops *float_ops_of(int isa);

#endif
