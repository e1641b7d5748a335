/* Whole models of random weights on every instruction set that this processor runs, against the
 * scalar one: a prompt, then single tokens, with heads and caches of all kinds. A hash of all logits
 * lets two processors be compared. */
#include "native_check.h"

#include "forward.h"

int64_t trilith_forward_bytes(const model *m, int64_t num_tokens, int64_t threads);
int trilith_forward(
    const model *m, const sequence *sequences, int64_t batch, const int64_t *tokens, float *room,
    float *logits, int isa, int64_t threads);

enum { WIDTH = 64, HEADS = 4, KV_HEADS = 2, HEAD_WIDTH = 16, MLP_WIDTH = 48, VOCAB = 70, LAYERS = 2 };
enum { PROMPT = 45, STEPS = 30, LENGTH = PROMPT + STEPS, THREADS = 2, GROUP = 16 };

/* Random bytes are rows of every kind but floats, whose exponents must be drawn. */
static rows draw_rows(int64_t kind) {
    rows r = {.kind = kind, .num_rows = VOCAB, .width = WIDTH, .group_size = GROUP};
    int64_t count = VOCAB * WIDTH, num_scales = VOCAB * WIDTH / GROUP;
    float *values = draw_floats(count, 1);
    uint16_t *halves = room(num_scales * 2);
    for (int64_t i = 0; i < num_scales; i++) halves[i] = (uint16_t)(0x2c00 + draw(0x400));
    r.values = values;
    r.scale = kind == ROWS_INT8 ? (void *)draw_floats(VOCAB, 0.01f) : (void *)halves;
    uint8_t *bytes = room(count * 2);
    for (int64_t i = 0; i < count * 2; i++) bytes[i] = (uint8_t)draw(256);
    for (int64_t i = 0; kind == ROWS_BF16 && i < count; i++)
        ((uint16_t *)bytes)[i] = bfloat16_of(values[i]);
    if (kind != ROWS_FLOAT32) r.values = bytes;
    return r;
}

static layer draw_layer(int layout, int64_t mlp_kind) {
    int64_t hidden = mlp_kind == RELU2 ? MLP_WIDTH : 2 * MLP_WIDTH;
    int64_t projected = (HEADS + 2 * KV_HEADS) * HEAD_WIDTH;
    return (layer){
        .attention_norm = draw_floats(WIDTH, 1), .q_norm = draw_floats(HEAD_WIDTH, 1),
        .k_norm = draw_floats(HEAD_WIDTH, 1), .attention_sub_norm = draw_floats(WIDTH, 1),
        .mlp_norm = draw_floats(WIDTH, 1), .mlp_sub_norm = draw_floats(MLP_WIDTH, 1),
        .qkv_bias = draw_floats(projected, 1), .qkv = draw_weight(layout, projected, 1, WIDTH),
        .out = draw_weight(layout, WIDTH, 2, WIDTH / 2),
        .up = draw_weight(layout, hidden, 1, WIDTH),
        .down = draw_weight(layout, WIDTH, 1, MLP_WIDTH),
    };
}

static sequence empty_cache(int64_t bits, int64_t sinks, int64_t ring) {
    int64_t heads = LAYERS * KV_HEADS, slots = sinks + ring;
    return (sequence){
        .bits = bits, .sinks = sinks, .ring = ring, .num_recent = ring - (sinks ? 3 : 0),
        .layer_heads = KV_HEADS, .keys = room(heads * slots * HEAD_WIDTH * 4),
        .values = room(heads * slots * HEAD_WIDTH * 4),
        .near = room(heads * (sinks + KEY_BLOCK) * HEAD_WIDTH * 2),
        .key_scale = room(heads * slots * HEAD_WIDTH * 2),
        .key_zero = room(heads * slots * HEAD_WIDTH * 2),
        .value_scale = room(heads * slots * 2), .value_zero = room(heads * slots * 2),
    };
}

/* Run a prompt and single tokens: the logits of all of them. */
static int run(const model *m, sequence s, const int64_t *tokens, const float *turns, int isa, float *logits) {
    int64_t lengths[1 + STEPS] = {PROMPT};
    for (int i = 1; i <= STEPS; i++) lengths[i] = 1;
    float *space = room(trilith_forward_bytes(m, PROMPT, THREADS));
    int failed = 0;
    for (int i = 0; i <= STEPS && !failed; i++, logits += VOCAB) {
        s.num_new = lengths[i];
        s.cos = s.sink_cos = turns + s.length * HEAD_WIDTH;
        s.sin = s.sink_sin = turns + (LENGTH + s.length) * HEAD_WIDTH;
        failed = trilith_forward(m, &s, 1, tokens + s.length, space, logits, isa, THREADS);
        s.length += s.num_new;
    }
    free(space);
    return failed;
}

int main(void) {
    static const int layouts[] = {BITS2, BASE3, BITS4};
    static const int64_t caches[][3] = {{32, 0, 96}, {16, 5, 40}, {8, 0, 96}, {4, 5, 64}};
    enum { SIZE = (1 + STEPS) * VOCAB };
    uint64_t hash = 14695981039346656037u;
    float *expected = room(SIZE * 4), *found = room(SIZE * 4);
    for (int64_t kind = ROWS_FLOAT32; kind <= ROWS_INT3; kind++)
        for (int c = 0; c < 4; c++) {
            layer layers[LAYERS];
            int64_t mlp_kind = kind % 3, tokens[LENGTH];
            for (int l = 0; l < LAYERS; l++) layers[l] = draw_layer(layouts[(kind + c) % 3], mlp_kind);
            for (int i = 0; i < LENGTH; i++) tokens[i] = draw(VOCAB);
            model m = {
                .num_layers = LAYERS, .width = WIDTH, .num_heads = HEADS, .num_kv_heads = KV_HEADS,
                .head_width = HEAD_WIDTH, .mlp_width = MLP_WIDTH, .vocab_size = VOCAB,
                .mlp_kind = mlp_kind, .norm_eps = 1e-5f, .layers = layers,
                .embedding = draw_rows(kind), .head = draw_rows(kind), .norm = draw_floats(WIDTH, 1),
            };
            sequence s = empty_cache(caches[c][0], caches[c][1], caches[c][2]);
            float *turns = draw_floats(2 * LENGTH * HEAD_WIDTH, 1);
            if (run(&m, s, tokens, turns, SCALAR, expected)) return 2;
            for (int i = 0; i < SIZE; i++)
                if (!(expected[i] > -1e9f && expected[i] < 1e9f)) return 3;
            hash = hash_of(hash, expected, SIZE);
            for (int isa = 1; isa < NUM_ISAS; isa++) {
                if (!trilith_supports(isa)) continue;
                if (run(&m, s, tokens, turns, isa, found)) return 2;
                if (!memcmp(found, expected, SIZE * 4)) continue;
                printf("%s differs: head %d, cache of %d bits\n", names[isa], (int)kind, (int)s.bits);
                return 1;
            }
        }
    tell(hash);
    return 0;
}
