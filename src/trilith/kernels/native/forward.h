/* A whole model on new tokens: its shape and weights, and the float parts that have several bodies. */
#ifndef TRILITH_FORWARD_H
#define TRILITH_FORWARD_H

#include "cache.h"
#include "rows.h"

enum mlp_kind { SWIGLU, RELU2, GATED_RELU2 };

/* Keep these two in step with native_decode.py. Norms and biases that the model lacks are NULL. */
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
} model;

typedef struct {
    /* out = x / rms(x) * norm */
    void (*rms_norm)(const float *x, const float *norm, int64_t width, float eps, float *out);
    /* Turn pairs (i, i + width / 2) in place. */
    void (*rotate)(float *x, const float *cos, const float *sin, int64_t width);
    /* out [width] from hidden: [2 * width] gate and value, or [width] for RELU2. */
    void (*activate)(int64_t kind, const float *hidden, int64_t width, float *out);
    void (*add)(float *x, const float *y, int64_t count);
    /* out[row] = x . rows[row], for rows first .. last - 1 of a head in floats. */
    void (*head_rows)(const rows *r, const float *x, int64_t first, int64_t last, float *out);
} float_ops;

extern const float_ops float_ops_portable, float_ops_avx2;

const float_ops *float_ops_of(int isa);

#endif
