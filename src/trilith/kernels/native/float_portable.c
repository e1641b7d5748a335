/* The float parts of a decoding step for any processor. */
#define FLOAT_OPS float_ops_portable
#define ATTENTION_OPS attention_ops_portable
#define TARGET
#define FROM_EACH(p, value) \
    ({ \
        floats made_; \
        for (int lane_ = 0; lane_ < LANES; lane_++) made_[lane_] = value((p)[lane_]); \
        made_; \
    })
#define FROM_BF16(p) FROM_EACH(p, bf16_to_float)
#define FROM_UINT8(p) FROM_EACH(p, (float))
#define LOW_OF(byte) (float)((byte) & 15)
#define HIGH_OF(byte) (float)((byte) >> 4)
#define FROM_LOW(p) FROM_EACH(p, LOW_OF)
#define FROM_HIGH(p) FROM_EACH(p, HIGH_OF)

#include "float_ops.h"

#include "cache_rows.h"

#include "attend.h"
