/* One token of each sequence through the whole model: no Python between the products. */
#include "decode.h"

/* Float products that are worth another thread. */
#define MIN_PRODUCTS_PER_THREAD (1 << 17)

typedef struct {
    const model *m;
    const sequence *sequences;
    int64_t batch;
    const float_ops *ops;
    const attention_ops *attention;
    settings how;
    int64_t layer_index;
    /* [batch, ...]: residual stream, input of a product, its output; room per worker; logits. */
    float *x, *normed, *wide, *room, *logits;
    int64_t room_floats;
    workspace space;
} step;

const float_ops *float_ops_of(int isa) {
#ifdef __x86_64__
    if (isa != SCALAR) return &float_ops_avx2;
#endif
    (void)isa;
    return &float_ops_portable;
}

static const attention_ops *attention_ops_of(int isa) {
#ifdef __x86_64__
    if (isa != SCALAR) return &attention_ops_avx2;
#endif
    (void)isa;
    return &attention_ops_portable;
}

static void norm_rows(const step *s, const float *x, const float *norm, int64_t width) {
    for (int64_t b = 0; b < s->batch; b++)
        s->ops->rms_norm(
            x + b * width, norm, width, s->m->norm_eps, s->normed + b * width);
}

static int apply(step *s, const weight *w, const float *x, float *out) {
    return multiply(w, x, out, s->batch, &s->how, &s->space, NULL);
}

static int useful_threads(const step *s, int64_t products) {
    return (int)min64(s->how.threads, 1 + products / MIN_PRODUCTS_PER_THREAD);
}

/* One key/value head of one sequence with its query heads; then its new key and value are kept. */
static void attend_chunk(void *context, int64_t chunk, int worker) {
    const step *s = context;
    const model *m = s->m;
    const layer *l = m->layers + s->layer_index;
    int64_t width = m->head_width, repeats = m->num_heads / m->num_kv_heads;
    int64_t b = chunk / m->num_kv_heads, kv = chunk % m->num_kv_heads;
    const sequence *seq = s->sequences + b;
    float *heads = s->wide + b * (m->num_heads + 2 * m->num_kv_heads) * width;
    float *q = heads + kv * repeats * width, *q_sinks = s->room + worker * s->room_floats;
    float *key = heads + (m->num_heads + kv) * width, *value = key + m->num_kv_heads * width;
    for (int64_t h = 0; h < repeats && l->q_norm; h++)
        s->ops->rms_norm(q + h * width, l->q_norm, width, m->norm_eps, q + h * width);
    if (l->k_norm) s->ops->rms_norm(key, l->k_norm, width, m->norm_eps, key);
    memcpy(q_sinks, q, (size_t)(repeats * width) * sizeof *q);
    for (int64_t h = 0; h < repeats; h++) {
        s->ops->rotate(q + h * width, seq->cos, seq->sin, width);
        s->ops->rotate(q_sinks + h * width, seq->sink_cos, seq->sink_sin, width);
    }
    s->ops->rotate(key, seq->cos, seq->sin, width);
    attention_job job = {
        .s = seq, .head = s->layer_index * seq->layer_heads + kv, .width = width,
        .repeats = repeats, .q = q, .q_sinks = q_sinks, .key = key, .value = value,
        .room = q_sinks + repeats * width,
        .out = s->normed + (b * m->num_heads + kv * repeats) * width,
    };
    s->attention->attend(&job);
    s->attention->store(&job);
}

static int attention(step *s, const layer *l) {
    const model *m = s->m;
    norm_rows(s, s->x, l->attention_norm, m->width);
    if (apply(s, &l->qkv, s->normed, s->wide)) return -1;
    for (int64_t b = 0; l->qkv_bias && b < s->batch; b++)
        s->ops->add(s->wide + b * l->qkv.num_out, l->qkv_bias, l->qkv.num_out);
    int64_t products = 0;
    for (int64_t b = 0; b < s->batch; b++) products += 2 * num_seen(s->sequences + b) * m->width;
    run_chunks(useful_threads(s, products), s->batch * m->num_kv_heads, attend_chunk, s);
    if (l->attention_sub_norm) norm_rows(s, s->normed, l->attention_sub_norm, m->width);
    if (apply(s, &l->out, s->normed, s->wide)) return -1;
    s->ops->add(s->x, s->wide, s->batch * m->width);
    return 0;
}

static int mlp(step *s, const layer *l) {
    const model *m = s->m;
    norm_rows(s, s->x, l->mlp_norm, m->width);
    if (apply(s, &l->up, s->normed, s->wide)) return -1;
    for (int64_t b = 0; b < s->batch; b++)
        s->ops->activate(
            m->mlp_kind, s->wide + b * l->up.num_out, m->mlp_width,
            s->normed + b * m->mlp_width);
    if (l->mlp_sub_norm) norm_rows(s, s->normed, l->mlp_sub_norm, m->mlp_width);
    if (apply(s, &l->down, s->normed, s->wide)) return -1;
    s->ops->add(s->x, s->wide, s->batch * m->width);
    return 0;
}

static int all_layers(step *s) {
    const model *m = s->m;
    for (s->layer_index = 0; s->layer_index < m->num_layers; s->layer_index++) {
        const layer *l = m->layers + s->layer_index;
        if (attention(s, l) || mlp(s, l)) return -1;
    }
    norm_rows(s, s->x, m->norm, m->width);
    return multiply_rows(&m->head, s->normed, s->batch, s->logits, &s->how);
}

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

/* Add a token to each sequence [batch]; write the logits [batch, vocab_size].
 * Returns 0, or -1 if there is no memory. The caller has checked tokens and room, and counts. */
int trilith_decode(
    const model *m, const sequence *sequences, int64_t batch, const int64_t *tokens,
    float *logits, int isa, int64_t threads) {
    int64_t heads = (m->num_heads + 2 * m->num_kv_heads) * m->head_width;
    int64_t normed = max64(m->width, m->mlp_width), repeats = m->num_heads / m->num_kv_heads;
    int64_t wide = max64(max64(heads, m->width), 2 * m->mlp_width), room = 0;
    for (int64_t b = 0; b < batch; b++)
        room = max64(room, attention_room(sequences + b, m->head_width, repeats));
    room += repeats * m->head_width;
    threads = max64(1, min64(threads, MAX_THREADS));
    int64_t count = batch * (m->width + normed + wide) + threads * room;
    float *memory = malloc((size_t)count * sizeof *memory);
    if (!memory) return -1;
    step s = {
        .m = m, .sequences = sequences, .batch = batch, .ops = float_ops_of(isa),
        .attention = attention_ops_of(isa), .how = {isa, threads}, .logits = logits,
        .room_floats = room,
    };
    s.x = memory;
    s.normed = s.x + batch * m->width;
    s.wide = s.normed + batch * normed;
    s.room = s.wide + batch * wide;
    for (int64_t b = 0; b < batch; b++)
        restore_row(&m->embedding, tokens[b], s.x + b * m->width);
    int failed = all_layers(&s);
    free(s.space.memory);
    free(memory);
    return failed;
}
