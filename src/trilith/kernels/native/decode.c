/* One token of each sequence through the whole model: no Python between the products. */
#include "decode.h"

/* Float products that are worth another thread. */
#define MIN_PRODUCTS_PER_THREAD (1 << 17)


typedef struct {
    const model *m;
    const cache *cache;
    const float_ops *ops;
    settings how;
    int64_t layer_index;
    /* [batch, ...]: residual stream, input of a product, its output, scores per worker, logits. */
    float *x, *normed, *wide, *scores, *logits;
    workspace space;
} step;

const float_ops *float_ops_of(int isa) {
#ifdef __x86_64__
    if (isa != SCALAR) return &float_ops_avx2;
#endif
    (void)isa;
    return &float_ops_portable;
}

static void norm_rows(const step *s, const float *x, const float *norm, int64_t width) {
    for (int64_t b = 0; b < s->cache->batch; b++)
        s->ops->rms_norm(
            x + b * width, norm, width, s->m->norm_eps, s->normed + b * width);
}

static int apply(step *s, const weight *w, const float *x, float *out) {
    return multiply(w, x, out, s->cache->batch, &s->how, &s->space, NULL);
}

static int useful_threads(const step *s, int64_t products) {
    return (int)min64(s->how.threads, 1 + products / MIN_PRODUCTS_PER_THREAD);
}

static void prepare_head(const step *s, float *head, const float *norm) {
    const model *m = s->m;
    int64_t at = s->cache->length * m->head_width;
    if (norm) s->ops->rms_norm(head, norm, m->head_width, m->norm_eps, head);
    s->ops->rotate(head, m->cos + at, m->sin + at, m->head_width);
}

/* One key/value head of one sequence: store the new key and value, then its query heads. */
static void attend_chunk(void *context, int64_t chunk, int worker) {
    const step *s = context;
    const model *m = s->m;
    const layer *l = m->layers + s->layer_index;
    int64_t width = m->head_width, repeats = m->num_heads / m->num_kv_heads;
    int64_t b = chunk / m->num_kv_heads, kv = chunk % m->num_kv_heads;
    float *heads = s->wide + b * (m->num_heads + 2 * m->num_kv_heads) * width;
    float *key = heads + (m->num_heads + kv) * width, *value = key + m->num_kv_heads * width;
    int64_t row = (s->layer_index * s->cache->batch + b) * m->num_kv_heads + kv;
    float *keys = s->cache->keys + row * s->cache->capacity * width;
    float *values = s->cache->values + row * s->cache->capacity * width;
    prepare_head(s, key, l->k_norm);
    memcpy(keys + s->cache->length * width, key, (size_t)width * sizeof *key);
    memcpy(values + s->cache->length * width, value, (size_t)width * sizeof *value);
    for (int64_t h = kv * repeats; h < (kv + 1) * repeats; h++) {
        float *q = heads + h * width;
        prepare_head(s, q, l->q_norm);
        s->ops->attend(
            q, keys, values, s->cache->length + 1, width,
            s->scores + worker * s->cache->capacity,
            s->normed + (b * m->num_heads + h) * width);
    }
}

static int attention(step *s, const layer *l) {
    const model *m = s->m;
    norm_rows(s, s->x, l->attention_norm, m->width);
    if (apply(s, &l->qkv, s->normed, s->wide)) return -1;
    for (int64_t b = 0; l->qkv_bias && b < s->cache->batch; b++)
        s->ops->add(s->wide + b * l->qkv.num_out, l->qkv_bias, l->qkv.num_out);
    int64_t products = 2 * (s->cache->length + 1) * m->width * s->cache->batch;
    run_chunks(useful_threads(s, products), s->cache->batch * m->num_kv_heads, attend_chunk, s);
    if (l->attention_sub_norm) norm_rows(s, s->normed, l->attention_sub_norm, m->width);
    if (apply(s, &l->out, s->normed, s->wide)) return -1;
    s->ops->add(s->x, s->wide, s->cache->batch * m->width);
    return 0;
}

static int mlp(step *s, const layer *l) {
    const model *m = s->m;
    norm_rows(s, s->x, l->mlp_norm, m->width);
    if (apply(s, &l->up, s->normed, s->wide)) return -1;
    for (int64_t b = 0; b < s->cache->batch; b++)
        s->ops->activate(
            m->mlp_kind, s->wide + b * l->up.num_out, m->mlp_width,
            s->normed + b * m->mlp_width);
    if (l->mlp_sub_norm) norm_rows(s, s->normed, l->mlp_sub_norm, m->mlp_width);
    if (apply(s, &l->down, s->normed, s->wide)) return -1;
    s->ops->add(s->x, s->wide, s->cache->batch * m->width);
    return 0;
}

static int all_layers(step *s) {
    const model *m = s->m;
    for (s->layer_index = 0; s->layer_index < m->num_layers; s->layer_index++) {
        const layer *l = m->layers + s->layer_index;
        if (attention(s, l) || mlp(s, l)) return -1;
    }
    norm_rows(s, s->x, m->norm, m->width);
    multiply_rows(&m->head, s->normed, s->cache->batch, s->logits, &s->how);
    return 0;
}

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Add tokens [batch] at position `length` to the cache; write the logits [batch, vocab_size].
 * Returns 0, or -1 if there is no memory. The caller has checked tokens and capacity. */
int trilith_decode(
    const model *m, const cache *c, const int64_t *tokens, float *logits, int isa,
    int64_t threads) {
    int64_t heads = (m->num_heads + 2 * m->num_kv_heads) * m->head_width;
    int64_t normed = max64(m->width, m->mlp_width);
    int64_t wide = max64(max64(heads, m->width), 2 * m->mlp_width);
    threads = max64(1, min64(threads, MAX_THREADS));
    int64_t count = c->batch * (m->width + normed + wide) + threads * c->capacity;
    float *memory = malloc((size_t)count * sizeof *memory);
    if (!memory) return -1;
    step s = {.m = m, .cache = c, .ops = float_ops_of(isa), .how = {isa, threads}, .logits = logits};
    s.x = memory;
    s.normed = s.x + c->batch * m->width;
    s.wide = s.normed + c->batch * normed;
    s.scores = s.wide + c->batch * wide;
    for (int64_t b = 0; b < c->batch; b++)
        restore_row(&m->embedding, tokens[b], s.x + b * m->width);
    int failed = all_layers(&s);
    free(s.space.memory);
    free(memory);
    return failed;
}
