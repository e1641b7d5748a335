/* llama.cpp through its C interface: quantize a file, or time prompt and decoding of one. Compiled
 * with -DIK_LLAMA it drives the fork ik_llama.cpp, whose interface is an older one.
 *
 *   llama_bench quantize from.gguf to.gguf TQ2_0
 *   llama_bench time model.gguf PROMPT DECODE THREADS    -> tokens/s of prompt and of decoding
 *
 * Timed as by llama.cpp's own llama-bench: random tokens, an empty cache for each of the two, a
 * warm-up before, no sampling. It needs only the library, whose build is half of that program's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"

enum { UBATCH = 512, MAX_PROMPT = 2048, WARM_UP = 32 };

static const struct {
    const char *name;
    enum llama_ftype type;
} types[] = {
#ifdef IK_LLAMA
    {"IQ1_BN", LLAMA_FTYPE_MOSTLY_IQ1_BN},
    {"IQ2_BN", LLAMA_FTYPE_MOSTLY_IQ2_BN},
#else
    {"TQ1_0", LLAMA_FTYPE_MOSTLY_TQ1_0},
    {"TQ2_0", LLAMA_FTYPE_MOSTLY_TQ2_0},
    {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
    {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
#endif
};

#ifdef IK_LLAMA
static void forget(struct llama_context *context) { llama_kv_cache_clear(context); }

static void release(struct llama_model *model) { llama_free_model(model); }

static struct llama_batch batch_of(llama_token *tokens, int count, int position) {
    return llama_batch_get_one(tokens, count, position, 0);
}
#else
static void forget(struct llama_context *context) {
    llama_memory_clear(llama_get_memory(context), true);
}

static void release(struct llama_model *model) { llama_model_free(model); }

static struct llama_batch batch_of(llama_token *tokens, int count, int position) {
    (void)position;
    return llama_batch_get_one(tokens, count);
}
#endif

static void fail(const char *what) {
    fprintf(stderr, "llama_bench: %s\n", what);
    exit(1);
}

static void quantize(const char *from, const char *to, const char *type) {
    struct llama_model_quantize_params params = llama_model_quantize_default_params();
    size_t count = sizeof types / sizeof *types, i = 0;
    while (i < count && strcmp(types[i].name, type)) i++;
    if (i == count) fail("unknown type");
    params.ftype = types[i].type;
    if (llama_model_quantize(from, to, &params)) fail("cannot quantize");
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds of `count` tokens in batches of `batch`, after those of an empty cache. */
static double run(struct llama_context *context, int vocab_size, int count, int batch) {
    llama_token tokens[MAX_PROMPT];
    forget(context);
    double start = now_s();
    for (int done = 0; done < count; done += batch) {
        for (int i = 0; i < batch; i++) tokens[i] = rand() % vocab_size;
        if (llama_decode(context, batch_of(tokens, batch, done))) fail("cannot decode");
        llama_synchronize(context);
    }
    return now_s() - start;
}

static void measure(const char *path, int prompt, int decode, int threads) {
    struct llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) fail("cannot load the model");
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)(prompt > decode ? prompt : decode) + WARM_UP;
    params.n_batch = (uint32_t)(prompt > UBATCH ? prompt : UBATCH);
    params.n_ubatch = UBATCH;
    params.n_threads = params.n_threads_batch = threads;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context || prompt > MAX_PROMPT) fail("cannot make a context");
    int vocab_size = llama_vocab_n_tokens(llama_model_get_vocab(model));
    run(context, vocab_size, WARM_UP, WARM_UP);
    double prompt_s = run(context, vocab_size, prompt, prompt);
    run(context, vocab_size, 1, 1);
    double decode_s = run(context, vocab_size, decode, 1);
    printf("%f %f\n", prompt / prompt_s, decode / decode_s);
    llama_free(context);
    release(model);
}

static void ignore(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

int main(int count, char **words) {
    llama_log_set(ignore, NULL);
    llama_backend_init();
    if (count == 5 && !strcmp(words[1], "quantize"))
        quantize(words[2], words[3], words[4]);
    else if (count == 6 && !strcmp(words[1], "time"))
        measure(words[2], atoi(words[3]), atoi(words[4]), atoi(words[5]));
    else
        fail("give quantize FROM TO TYPE, or time MODEL PROMPT DECODE THREADS");
    return 0;
}
