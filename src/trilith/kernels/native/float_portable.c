/* The float parts of a decoding step for any processor. */
#define FLOAT_OPS float_ops_portable
#define TARGET
#define FROM_EACH(p, value) \
    ({ \
        floats made_; \
        for (int lane_ = 0; lane_ < LANES; lane_++) made_[lane_] = value((p)[lane_]); \
        made_; \
    })
#define FROM_INT8(p) FROM_EACH(p, (float))
#define FROM_BF16(p) FROM_EACH(p, bf16_to_float)

#include "float_ops.h"
