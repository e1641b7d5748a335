/* One product from float activations to float outputs: quantize, multiply, scale; and its ABI. */
#include "trilith.h"

/* Below this many products per thread, waking a thread costs more than it saves. */
#define MIN_PRODUCTS_PER_THREAD (1 << 19)
enum { CHUNKS_PER_THREAD = 4 };

#ifdef __x86_64__
static kernel *const kernels[NUM_ISAS] = {linear_scalar, linear_avx2, linear_vnni, linear_amx};
static quantizer *const quantizers[NUM_ISAS] = {
    quantize_portable, quantize_avx2, quantize_avx512, quantize_avx512};
#elif defined(__aarch64__)
static kernel *const kernels[NUM_ISAS] = {[SCALAR] = linear_scalar, [NEON] = linear_neon};
static quantizer *const quantizers[NUM_ISAS] = {
    [SCALAR] = quantize_portable, [NEON] = quantize_portable};
#else
static kernel *const kernels[NUM_ISAS] = {linear_scalar};
static quantizer *const quantizers[NUM_ISAS] = {quantize_portable};
#endif

typedef struct {
    const product *p;
    const float *x;
    int64_t chunk_size;
    const quantized *keep;
} job;

static void dequantize(const int8_t *values, float scale, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = values[i] * scale;
}

static void dequantize_bfloat16(const int8_t *values, float scale, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i++) out[i] = bfloat16_of(values[i] * scale);
}

static void keep_token(const product *p, const quantized *keep, int64_t token) {
    int64_t group_in = p->weight.num_in / p->weight.num_groups;
    int64_t at = token * p->weight.num_in;
    for (int64_t group = 0; group < p->weight.num_groups; group++) {
        const int8_t *values = values_of(p, token, group);
        for (int64_t i = 0; i < group_in; i += STEP, values += step_bytes(p)) {
            int64_t count = min64(STEP, group_in - i);
            if (keep->is_bfloat16)
                dequantize_bfloat16(
                    values, p->scale[token], count, (uint16_t *)keep->activations + at);
            else
                dequantize(values, p->scale[token], count, (float *)keep->activations + at);
            at += count;
        }
    }
}

static void quantize_chunk(void *context, int64_t chunk, int worker) {
    const job *j = context;
    (void)worker;
    int64_t first = chunk * j->chunk_size;
    int64_t last = min64(first + j->chunk_size, j->p->num_tokens);
    quantizers[j->p->isa](j->p, j->x, first, last);
    for (int64_t token = first; j->keep && token < last; token++)
        keep_token(j->p, j->keep, token);
}

static void linear_chunk(void *context, int64_t chunk, int worker) {
    const job *j = context;
    int64_t first = chunk * j->chunk_size;
    int64_t last = min64(first + j->chunk_size, j->p->num_blocks);
    kernels[j->p->isa](j->p, first, last, j->p->scratch + worker * j->p->scratch_bytes);
}

static void run(const product *p, const float *x, int threads, const quantized *keep) {
    job quantize = {p, x, PANEL, keep};
    run_chunks(threads, ceil_div(p->num_tokens, PANEL), quantize_chunk, &quantize);
    /* Even, since the kernels take two blocks at a time. */
    int64_t size = ceil_div(p->num_blocks, 2 * CHUNKS_PER_THREAD * threads) * 2;
    job multiply = {p, x, threads == 1 ? p->num_blocks : size, NULL};
    run_chunks(threads, ceil_div(p->num_blocks, multiply.chunk_size), linear_chunk, &multiply);
}

static int useful_threads(const product *p, int64_t threads) {
    double products = (double)p->weight.num_out * p->weight.num_in * p->num_tokens;
    double useful = products / MIN_PRODUCTS_PER_THREAD;
    threads = useful < threads ? (int64_t)useful : threads;
    return (int)(threads < 1 ? 1 : min64(threads, MAX_THREADS));
}

static int64_t up_to_line(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

int reserve(workspace *space, int64_t bytes) {
    if (bytes <= space->bytes) return 0;
    free(space->memory);
    space->bytes = up_to_line(bytes);
    space->memory = aligned_alloc(64, (size_t)space->bytes);
    if (!space->memory) space->bytes = 0;
    return space->memory ? 0 : -1;
}

/* Of a worker; AMX hands products to VNNI. */
static int64_t scratch_bytes_of(const product *p) {
#ifdef __x86_64__
    if (p->num_tokens == 1) return 0;
    if (p->isa == AVX2) return avx2_scratch_bytes();
    int64_t bytes = p->isa == AMX ? 2 * unpacked_bytes(p) : 0;
    int64_t vnni_bytes = p->isa == AMX || p->isa == VNNI ? vnni_scratch_bytes() : 0;
    return bytes > vnni_bytes ? bytes : vnni_bytes;
#else
    (void)p;
    return 0;
#endif
}

int multiply(
    const weight *w, const float *x, float *out, int64_t num_tokens, const settings *how,
    workspace *space, const quantized *keep) {
    if (num_tokens == 0 || w->num_out == 0) return 0;
    product p = {
        .weight = *w,
        .num_blocks = ceil_div(w->num_out, BLOCK),
        .group_tiles = tiles_of_group(w),
        .group_steps = ceil_div(tiles_of_group(w) * planes_of(w->layout) * QUAD, STEP),
        .num_tokens = num_tokens,
        .panel_rows = num_tokens == 1 ? 1 : PANEL,
        .out = out,
        .isa = how->isa,
    };
    int threads = useful_threads(&p, how->threads);
    int64_t row_bytes = w->num_groups * p.group_steps * STEP;
    int64_t values_bytes = ceil_div(num_tokens, p.panel_rows) * p.panel_rows * row_bytes;
    int64_t sums_bytes = up_to_line(num_tokens * w->num_groups * (int64_t)sizeof(int32_t));
    int64_t scale_bytes = up_to_line(num_tokens * (int64_t)sizeof(float));
    p.scratch_bytes = scratch_bytes_of(&p);
    int64_t total = values_bytes + sums_bytes + scale_bytes + threads * p.scratch_bytes;
    if (reserve(space, total)) return -1;
    p.values = (int8_t *)space->memory;
    p.sums = (int32_t *)(space->memory + values_bytes);
    p.scale = (float *)(space->memory + values_bytes + sums_bytes);
    p.scratch = space->memory + values_bytes + sums_bytes + scale_bytes;
    run(&p, x, threads, keep);
    return 0;
}

int trilith_supports(int isa) { return isa >= 0 && isa < NUM_ISAS && cpu_has(isa); }

/* Multiply x [num_tokens, num_in] with the weight into out [num_tokens, num_out].
 * Returns 0, or -1 if there is no memory. */
int trilith_linear(
    const weight *w, const float *x, float *out, int64_t num_tokens, int isa, int64_t threads) {
    workspace space = {0};
    settings how = {isa, threads};
    int failed = multiply(w, x, out, num_tokens, &how, &space, NULL);
    free(space.memory);
    return failed;
}

/* The same, and writes the activations as they were multiplied. */
int trilith_linear_keeping(
    const weight *w, const float *x, float *out, const quantized *keep, int64_t num_tokens,
    int isa, int64_t threads) {
    workspace space = {0};
    settings how = {isa, threads};
    int failed = multiply(w, x, out, num_tokens, &how, &space, keep);
    free(space.memory);
    return failed;
}
