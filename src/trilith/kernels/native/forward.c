/* New tokens of sequences through the whole model, one or many of each: no Python between the
 * products. A token gets the same bits alone and among others. */
#include "forward.h"

/* Numbers that are worth another thread: products of floats, or numbers of row-wise work. */
#define MIN_PRODUCTS_PER_THREAD (1 << 17)
#define MIN_NUMBERS_PER_THREAD (1 << 15)
enum { ROWS_A_CHUNK = 8 };

typedef struct {
    const model *m;
    const layer *l;
    const sequence *sequences;
    const int64_t *tokens;
    int64_t batch, num_rows; /* a row is a new token; in the end, the last one of each sequence */
    int64_t layer_index;
    const float_ops *ops;
    const attention_ops *attention;
    settings how;
    /* [rows, ...]: residual stream, input of a product, its output; room of each worker. */
    float *x, *normed, *wide, *room;
    int64_t room_floats;
    workspace space;
} pass;

typedef void row_task(const pass *p, int64_t row);

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

static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

static int useful_threads(const pass *p, int64_t work, int64_t work_per_thread) {
    return (int)min64(p->how.threads, 1 + work / work_per_thread);
}

typedef struct {
    const pass *p;
    row_task *task;
} row_job;

static void row_chunk(void *context, int64_t chunk, int worker) {
    const row_job *j = context;
    int64_t last = min64((chunk + 1) * ROWS_A_CHUNK, j->p->num_rows);
    (void)worker;
    for (int64_t row = chunk * ROWS_A_CHUNK; row < last; row++) j->task(j->p, row);
}

/* Do something to every row, of so many numbers each. */
static void for_rows(const pass *p, row_task *task, int64_t numbers) {
    row_job j = {p, task};
    int threads = useful_threads(p, p->num_rows * numbers, MIN_NUMBERS_PER_THREAD);
    run_chunks(threads, ceil_div(p->num_rows, ROWS_A_CHUNK), row_chunk, &j);
}

static float *x_of(const pass *p, int64_t row) { return p->x + row * p->m->width; }

static void norm_row(const pass *p, const float *norm, int64_t row) {
    int64_t width = p->m->width;
    p->ops->rms_norm(x_of(p, row), norm, width, p->m->norm_eps, p->normed + row * width);
}

static void restore_token(const pass *p, int64_t row) {
    restore_row(&p->m->embedding, p->tokens[row], x_of(p, row));
    norm_row(p, p->l->attention_norm, row);
}

static void add_bias(const pass *p, int64_t row) {
    p->ops->add(p->wide + row * p->l->qkv.num_out, p->l->qkv_bias, p->l->qkv.num_out);
}

static void norm_attended(const pass *p, int64_t row) {
    float *attended = p->normed + row * p->m->width;
    p->ops->rms_norm(attended, p->l->attention_sub_norm, p->m->width, p->m->norm_eps, attended);
}

static void end_attention(const pass *p, int64_t row) {
    p->ops->add(x_of(p, row), p->wide + row * p->m->width, p->m->width);
    norm_row(p, p->l->mlp_norm, row);
}

static void activate_row(const pass *p, int64_t row) {
    const model *m = p->m;
    float *out = p->normed + row * m->mlp_width;
    p->ops->activate(m->mlp_kind, p->wide + row * p->l->up.num_out, m->mlp_width, out);
    if (p->l->mlp_sub_norm)
        p->ops->rms_norm(out, p->l->mlp_sub_norm, m->mlp_width, m->norm_eps, out);
}

static void end_layer(const pass *p, int64_t row) {
    int is_last = p->layer_index == p->m->num_layers - 1;
    p->ops->add(x_of(p, row), p->wide + row * p->m->width, p->m->width);
    norm_row(p, is_last ? p->m->norm : (p->l + 1)->attention_norm, row);
}

/* Queries [num_new, repeats, width] of a head, copied, normed and turned: for recent keys, and as
 * the sinks see them. */
static void turn_queries(
    const pass *p, const sequence *s, const float *from, int64_t done, const attention_job *j) {
    const layer *l = p->l;
    int64_t width = j->width;
    for (int64_t row = 0; row < j->num_new * j->repeats; row++) {
        int64_t token = row / j->repeats, at = (done + token) * width;
        const float *given = from + token * j->stride + row % j->repeats * width;
        float *q = (float *)j->q + row * width, *q_sinks = (float *)j->q_sinks + row * width;
        memcpy(q, given, (size_t)width * sizeof *q);
        if (l->q_norm) p->ops->rms_norm(q, l->q_norm, width, p->m->norm_eps, q);
        if (s->sinks) {
            memcpy(q_sinks, q, (size_t)width * sizeof *q);
            p->ops->rotate(q_sinks, s->sink_cos + at, s->sink_sin + at, width);
        }
        p->ops->rotate(q, s->cos + at, s->sin + at, width);
    }
}

static void turn_keys(
    const pass *p, const sequence *s, float *key, int64_t done, const attention_job *j) {
    for (int64_t t = 0; t < j->num_new; t++, key += j->stride) {
        int64_t at = (done + t) * j->width;
        if (p->l->k_norm) p->ops->rms_norm(key, p->l->k_norm, j->width, p->m->norm_eps, key);
        p->ops->rotate(key, s->cos + at, s->sin + at, j->width);
    }
}

/* New tokens done .. done + num_new - 1 of a sequence, which lie in one tile, in one head. */
static void attend_tile(
    const pass *p, const sequence *s, int64_t kv, int64_t done, int64_t num_new, float *room) {
    const model *m = p->m;
    int64_t width = m->head_width, repeats = m->num_heads / m->num_kv_heads;
    int64_t stride = p->l->qkv.num_out, row = s->first_new + done;
    float *projected = p->wide + row * stride;
    float *key = projected + (m->num_heads + kv) * width, *q_sinks = room + KEY_BLOCK * repeats * width;
    attention_job j = {
        .s = s, .head = p->layer_index * s->layer_heads + kv, .width = width, .repeats = repeats,
        .length = s->length + done, .num_new = num_new, .stride = stride,
        .q = room, .q_sinks = q_sinks, .key = key, .value = key + m->num_kv_heads * width,
        .room = q_sinks + KEY_BLOCK * repeats * width,
        .out = p->normed + row * m->width + kv * repeats * width, .out_stride = m->width,
    };
    turn_queries(p, s, projected + kv * repeats * width, done, &j);
    turn_keys(p, s, key, done, &j);
    p->attention->attend(&j);
    p->attention->store(&j);
}

/* One key/value head of one sequence with its query heads. */
static void attend_chunk(void *context, int64_t chunk, int worker) {
    const pass *p = context;
    const sequence *s = p->sequences + chunk / p->m->num_kv_heads;
    float *room = p->room + worker * p->room_floats;
    for (int64_t done = 0, num; done < s->num_new; done += num) {
        int64_t token = s->length + done;
        num = min64(tile_end(s, token) - token, s->num_new - done);
        attend_tile(p, s, chunk % p->m->num_kv_heads, done, num, room);
    }
}

/* Nobody asks for the logits of other tokens than the last, so the last layer ends without them. */
static void keep_last_tokens(pass *p) {
    int64_t width = p->m->width;
    for (int64_t b = 0; b < p->batch; b++) {
        int64_t row = p->sequences[b].first_new + p->sequences[b].num_new - 1;
        memmove(x_of(p, b), x_of(p, row), (size_t)width * sizeof *p->x);
        memmove(p->normed + b * width, p->normed + row * width, (size_t)width * sizeof *p->x);
    }
    p->num_rows = p->batch;
}

static int apply(pass *p, const weight *w) {
    if (w->layout == BFLOAT16) {
        rows r = {w->codes, NULL, ROWS_BF16, w->num_out, w->num_in, w->num_in};
        return multiply_rows(&r, p->normed, p->num_rows, p->wide, &p->how);
    }
    return multiply(w, p->normed, p->wide, p->num_rows, &p->how, &p->space, NULL);
}

static int attention(pass *p) {
    const model *m = p->m;
    if (apply(p, &p->l->qkv)) return -1;
    if (p->l->qkv_bias) for_rows(p, add_bias, p->l->qkv.num_out);
    int64_t products = 0;
    for (int64_t b = 0; b < p->batch; b++) products += 2 * num_seen(p->sequences + b) * m->width;
    int threads = useful_threads(p, products, MIN_PRODUCTS_PER_THREAD);
    run_chunks(threads, p->batch * m->num_kv_heads, attend_chunk, p);
    if (p->layer_index == m->num_layers - 1) keep_last_tokens(p);
    if (p->l->attention_sub_norm) for_rows(p, norm_attended, m->width);
    if (apply(p, &p->l->out)) return -1;
    for_rows(p, end_attention, 2 * m->width);
    return 0;
}

static int mlp(pass *p) {
    if (apply(p, &p->l->up)) return -1;
    for_rows(p, activate_row, 4 * p->m->mlp_width);
    if (apply(p, &p->l->down)) return -1;
    for_rows(p, end_layer, 2 * p->m->width);
    return 0;
}

static int64_t rows_of(const sequence *sequences, int64_t batch) {
    int64_t rows = 0;
    for (int64_t b = 0; b < batch; b++) rows += sequences[b].num_new;
    return rows;
}

static int64_t normed_width(const model *m) { return max64(m->width, m->mlp_width); }

static int64_t wide_width(const model *m) {
    return max64(max64(m->layers->qkv.num_out, m->width), m->layers->up.num_out);
}

/* Queries, as they are and for the sinks, and what attention needs. */
static int64_t worker_floats(const model *m) {
    int64_t repeats = m->num_heads / m->num_kv_heads;
    return 2 * KEY_BLOCK * repeats * m->head_width + attention_room(m->head_width, repeats);
}

/* Bytes of room that `trilith_forward` is to be given for so many new tokens in all. */
int64_t trilith_forward_bytes(const model *m, int64_t num_tokens, int64_t threads) {
    int64_t row_floats = m->width + normed_width(m) + wide_width(m);
    int64_t floats = num_tokens * row_floats + min64(threads, MAX_THREADS) * worker_floats(m);
    return floats * (int64_t)sizeof(float);
}

/* Add tokens [all new ones, sequence after sequence] to the sequences [batch]; write the logits
 * [batch, vocab_size] of what follows each.
 * Returns 0, or -1 if there is no memory. The caller has checked tokens and what the caches hold,
 * and counts. */
int trilith_forward(
    const model *m, const sequence *sequences, int64_t batch, const int64_t *tokens, float *room,
    float *logits, int isa, int64_t threads) {
    int64_t rows = rows_of(sequences, batch);
    pass p = {
        .m = m, .l = m->layers, .sequences = sequences, .tokens = tokens, .batch = batch,
        .num_rows = rows, .ops = float_ops_of(isa), .attention = attention_ops_of(isa),
        .how = {isa, max64(1, min64(threads, MAX_THREADS))}, .room_floats = worker_floats(m),
    };
    p.x = room;
    p.normed = p.x + rows * m->width;
    p.wide = p.normed + rows * normed_width(m);
    p.room = p.wide + rows * wide_width(m);
    for_rows(&p, restore_token, 2 * m->width);
    int failed = 0;
    for (; !failed && p.layer_index < m->num_layers; p.layer_index++, p.l++)
        failed = attention(&p) || mlp(&p);
    failed = failed || multiply_rows(&m->head, p.normed, batch, logits, &p.how);
    free(p.space.memory);
    return failed ? -1 : 0;
}
