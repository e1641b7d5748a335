/* The float parts of a decoding step for AVX2 and better: memory limits them, not the width. */
#ifdef __x86_64__
#include <immintrin.h>

#define FLOAT_OPS float_ops_avx2
#define ATTENTION_OPS attention_ops_avx2
#define TARGET __attribute__((target("avx2")))
#define FROM_BF16(p) \
    ((floats)_mm256_slli_epi32( \
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(p))), 16))
#define WIDE_BYTES(p) _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(p)))
#define FROM_UINT8(p) ((floats)_mm256_cvtepi32_ps(WIDE_BYTES(p)))
#define FROM_LOW(p) \
    ((floats)_mm256_cvtepi32_ps(_mm256_and_si256(WIDE_BYTES(p), _mm256_set1_epi32(15))))
#define FROM_HIGH(p) ((floats)_mm256_cvtepi32_ps(_mm256_srli_epi32(WIDE_BYTES(p), 4)))

#include "float_ops.h"

#include "cache_rows.h"

#include "attend.h"
#endif
