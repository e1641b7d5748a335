/* Every kernel that this processor runs against the scalar one, on random shapes; a hash of all
 * outputs lets two processors be compared. The argument is the number of shapes. */
#include "native_check.h"

int trilith_linear(
    const weight *w, const float *x, float *out, int64_t num_tokens, int isa, int64_t threads);

static const int layouts[] = {BITS2, BASE3, BITS4};
static const int tokens[] = {1, 1, 2, 3, 4, 5, 9, 16, 17, 33, 70};

int main(int count, char **words) {
    uint64_t hash = 14695981039346656037u;
    for (int shape = 0; count > 1 && shape < atoi(words[1]); shape++) {
        int layout = layouts[draw(3)];
        int64_t num_groups = 1 + (int64_t)draw(4), group_in = 1 + (int64_t)draw(200);
        weight w = draw_weight(layout, 1 + (int64_t)draw(90), num_groups, group_in);
        int64_t num_tokens = tokens[draw(sizeof tokens / sizeof *tokens)];
        float *x = draw_floats(num_tokens * w.num_in, 3.3f);
        int64_t size = num_tokens * w.num_out;
        float *expected = room(size * 4), *found = room(size * 4);
        if (trilith_linear(&w, x, expected, num_tokens, SCALAR, 1)) return 2;
        hash = hash_of(hash, expected, size);
        for (int isa = 0; isa < NUM_ISAS; isa++)
            for (int threads = 1; threads <= 2 && trilith_supports(isa); threads++) {
                memset(found, 0xff, (size_t)size * 4);
                if (trilith_linear(&w, x, found, num_tokens, isa, threads)) return 2;
                if (!memcmp(found, expected, (size_t)size * 4)) continue;
                printf("%s differs: shape %d, layout %d\n", names[isa], shape, layout);
                return 1;
            }
        free_weight(&w);
        free(x);
        free(expected);
        free(found);
    }
    tell(hash);
    return 0;
}
