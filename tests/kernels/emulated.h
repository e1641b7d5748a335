/* AVX-512 and AMX in plain C, so that code for them runs on a processor without them, but slowly.
 *
 * To be included before everything else. A function here does what the intrinsic of its name does,
 * by Intel's Intrinsics Guide; what the kernels begin to use and is not here does not link or fails to
 * compile. All functions are compiled for AVX2 instead. */
#ifndef EMULATED
#define EMULATED

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define HAVE_AMX

#define EMULATE static __attribute__((unused, noinline, target("avx2,f16c")))
/* Whether bit `at` of a mask of any width is set. */
#define IS_SET(mask, at) ((mask) >> (at) & 1)

typedef union {
    __m512i whole;
    __m512 floats;
    uint8_t u8[64];
    int8_t i8[64];
    uint16_t u16[32];
    int32_t i32[16];
    uint32_t u32[16];
    uint64_t u64[8];
    float f32[16];
} lanes;

#define FOR_LANES(count) for (int i = 0; i < (count); i++)
#define WHOLE(name, count, lane, value)                      \
    EMULATE __m512i emulated_##name(__m512i a, __m512i b) {  \
        lanes x = {a}, y = {b}, out;                         \
        FOR_LANES(count) out.lane[i] = value;                \
        return out.whole;                                    \
    }
#define FLOATS(name, value)                                \
    EMULATE __m512 emulated_##name(__m512 a, __m512 b) {   \
        lanes x = {.floats = a}, y = {.floats = b}, out;   \
        FOR_LANES(16) out.f32[i] = value;                  \
        return out.floats;                                 \
    }
#define SHIFT(name, count, lane, value)                         \
    EMULATE __m512i emulated_##name(__m512i a, unsigned by) {   \
        lanes x = {a}, out;                                     \
        FOR_LANES(count) out.lane[i] = value;                   \
        return out.whole;                                       \
    }
#define SET1(name, type, count, lane)               \
    EMULATE __m512i emulated_##name(type value) {   \
        lanes out;                                  \
        FOR_LANES(count) out.lane[i] = value;       \
        return out.whole;                           \
    }

WHOLE(add_epi32, 16, u32, x.u32[i] + y.u32[i])
WHOLE(sub_epi32, 16, u32, x.u32[i] - y.u32[i])
WHOLE(add_epi8, 64, u8, (uint8_t)(x.u8[i] + y.u8[i]))
WHOLE(and_si512, 8, u64, x.u64[i] & y.u64[i])
WHOLE(min_epu8, 64, u8, x.u8[i] < y.u8[i] ? x.u8[i] : y.u8[i])
WHOLE(subs_epu8, 64, u8, x.u8[i] > y.u8[i] ? (uint8_t)(x.u8[i] - y.u8[i]) : 0)
WHOLE(shuffle_epi8, 64, u8, y.u8[i] & 0x80 ? 0 : x.u8[i / 16 * 16 + (y.u8[i] & 15)])
WHOLE(srlv_epi64, 8, u64, y.u64[i] < 64 ? x.u64[i] >> y.u64[i] : 0)
FLOATS(add_ps, x.f32[i] + y.f32[i])
FLOATS(mul_ps, x.f32[i] * y.f32[i])
SHIFT(srai_epi32, 16, i32, x.i32[i] >> by)
SHIFT(slli_epi32, 16, u32, x.u32[i] << by)
SHIFT(srli_epi16, 32, u16, (uint16_t)(x.u16[i] >> by))
SET1(set1_epi8, char, 64, i8)
SET1(set1_epi32, int32_t, 16, i32)
SET1(set1_epi64, int64_t, 8, u64)

EMULATE __m512i emulated_setzero_si512(void) { return (__m512i){0}; }
EMULATE __m512 emulated_setzero_ps(void) { return (__m512){0}; }

EMULATE __m512 emulated_set1_ps(float value) {
    lanes out;
    FOR_LANES(16) out.f32[i] = value;
    return out.floats;
}

EMULATE __m512i emulated_loadu_si512(const void *from) {
    lanes out;
    memcpy(&out, from, sizeof out);
    return out.whole;
}

EMULATE __m512i emulated_load_si512(const void *from) {
    if ((uintptr_t)from % 64) __builtin_trap();
    return emulated_loadu_si512(from);
}

EMULATE void emulated_storeu_si512(void *to, __m512i a) { memcpy(to, &a, sizeof a); }

EMULATE __m512 emulated_loadu_ps(const void *from) {
    return (lanes){emulated_loadu_si512(from)}.floats;
}

EMULATE void emulated_storeu_ps(void *to, __m512 a) { memcpy(to, &a, sizeof a); }

/* Masked lanes are not touched in memory. */
EMULATE __m512 emulated_maskz_loadu_ps(uint16_t mask, const float *from) {
    lanes out = {0};
    FOR_LANES(16) if (IS_SET(mask, i)) out.f32[i] = from[i];
    return out.floats;
}

EMULATE __m512i emulated_maskz_loadu_epi8(uint64_t mask, const uint8_t *from) {
    lanes out = {0};
    FOR_LANES(64) if (IS_SET(mask, i)) out.u8[i] = from[i];
    return out.whole;
}

EMULATE __m256i emulated_256_maskz_loadu_epi16(uint16_t mask, const uint16_t *from) {
    uint16_t out[16] = {0};
    FOR_LANES(16) if (IS_SET(mask, i)) out[i] = from[i];
    return _mm256_loadu_si256((const __m256i *)out);
}

EMULATE void emulated_mask_storeu_ps(float *to, uint16_t mask, __m512 a) {
    lanes x = {.floats = a};
    FOR_LANES(16) if (IS_SET(mask, i)) to[i] = x.f32[i];
}

EMULATE __m512i emulated_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    lanes out = {sum}, x = {a}, y = {b};
    FOR_LANES(64) out.u32[i / 4] += (uint32_t)(x.u8[i] * y.i8[i]);
    return out.whole;
}

EMULATE __m512 emulated_cvtepi32_ps(__m512i a) {
    lanes x = {a}, out;
    FOR_LANES(16) out.f32[i] = (float)x.i32[i];
    return out.floats;
}

EMULATE __m512 emulated_cvtph_ps(__m256i a) {
    lanes out;
    uint16_t halves[16];
    memcpy(halves, &a, sizeof halves);
    FOR_LANES(16) out.f32[i] = _cvtsh_ss(halves[i]);
    return out.floats;
}

EMULATE __m512 emulated_permutexvar_ps(__m512i index, __m512 a) {
    lanes at = {index}, x = {.floats = a}, out;
    FOR_LANES(16) out.f32[i] = x.f32[at.u32[i] & 15];
    return out.floats;
}

EMULATE __m256i emulated_256_permutexvar_epi16(__m256i index, __m256i a) {
    uint16_t at[16], x[16], out[16];
    memcpy(at, &index, sizeof at);
    memcpy(x, &a, sizeof x);
    FOR_LANES(16) out[i] = x[at[i] & 15];
    return _mm256_loadu_si256((const __m256i *)out);
}

EMULATE __m512i emulated_permutex2var_epi8(__m512i a, __m512i index, __m512i b) {
    lanes x = {a}, at = {index}, y = {b}, out;
    FOR_LANES(64) out.u8[i] = (at.u8[i] & 64 ? y : x).u8[at.u8[i] & 63];
    return out.whole;
}

EMULATE uint64_t emulated_movepi8_mask(__m512i a) {
    lanes x = {a};
    uint64_t mask = 0;
    FOR_LANES(64) mask |= (uint64_t)(x.u8[i] >> 7) << i;
    return mask;
}

EMULATE __m512i emulated_mask_blend_epi8(uint64_t mask, __m512i a, __m512i b) {
    lanes x = {a}, y = {b}, out;
    FOR_LANES(64) out.u8[i] = IS_SET(mask, i) ? y.u8[i] : x.u8[i];
    return out.whole;
}

EMULATE __m512i emulated_broadcast_i32x4(__m128i a) {
    lanes out;
    FOR_LANES(4) memcpy(out.u8 + 16 * i, &a, sizeof a);
    return out.whole;
}

/* The intrinsics list lanes from the last to the first. */
EMULATE __m512i emulated_reversed_epi32(const int32_t *values) {
    lanes out;
    FOR_LANES(16) out.i32[i] = values[15 - i];
    return out.whole;
}

EMULATE __m512i emulated_reversed_epi64(const int64_t *values) {
    lanes out;
    FOR_LANES(8) out.u64[i] = (uint64_t)values[7 - i];
    return out.whole;
}

EMULATE __m256 emulated_half_ps(__m512 a, int half) {
    __m256 out;
    memcpy(&out, (const float *)&a + 8 * half, sizeof out);
    return out;
}

/* The eight tiles of AMX, of 16 rows of 64 bytes. */
static __thread uint8_t emulated_tiles[8][16][64];

EMULATE void emulated_tile_load(int tile, const void *from, int64_t stride) {
    FOR_LANES(16) memcpy(emulated_tiles[tile][i], (const uint8_t *)from + i * stride, 64);
}

EMULATE void emulated_tile_store(int tile, void *to, int64_t stride) {
    FOR_LANES(16) memcpy((uint8_t *)to + i * stride, emulated_tiles[tile][i], 64);
}

/* Rows of signed bytes by quads of unsigned ones. */
EMULATE void emulated_tile_dpbsud(int sums, int left, int right) {
    for (int row = 0; row < 16; row++)
        FOR_LANES(16) {
            int32_t sum;
            memcpy(&sum, emulated_tiles[sums][row] + 4 * i, sizeof sum);
            for (int k = 0; k < 64; k++)
                sum += (int8_t)emulated_tiles[left][row][k] * emulated_tiles[right][k / 4][4 * i + k % 4];
            memcpy(emulated_tiles[sums][row] + 4 * i, &sum, sizeof sum);
        }
}

#undef _mm512_add_epi32
#define _mm512_add_epi32 emulated_add_epi32
#undef _mm512_add_epi8
#define _mm512_add_epi8 emulated_add_epi8
#undef _mm512_add_ps
#define _mm512_add_ps emulated_add_ps
#undef _mm512_and_si512
#define _mm512_and_si512 emulated_and_si512
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4 emulated_broadcast_i32x4
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#undef _mm512_cvtph_ps
#define _mm512_cvtph_ps emulated_cvtph_ps
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 emulated_dpbusd_epi32
#undef _mm512_load_si512
#define _mm512_load_si512 emulated_load_si512
#undef _mm512_loadu_ps
#define _mm512_loadu_ps emulated_loadu_ps
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 emulated_loadu_si512
#undef _mm512_mask_blend_epi8
#define _mm512_mask_blend_epi8 emulated_mask_blend_epi8
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps emulated_mask_storeu_ps
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_epi8
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_ps
#undef _mm512_min_epu8
#define _mm512_min_epu8 emulated_min_epu8
#undef _mm512_movepi8_mask
#define _mm512_movepi8_mask emulated_movepi8_mask
#undef _mm512_mul_ps
#define _mm512_mul_ps emulated_mul_ps
#undef _mm512_permutex2var_epi8
#define _mm512_permutex2var_epi8 emulated_permutex2var_epi8
#undef _mm512_permutexvar_ps
#define _mm512_permutexvar_ps emulated_permutexvar_ps
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 emulated_set1_epi32
#undef _mm512_set1_epi64
#define _mm512_set1_epi64 emulated_set1_epi64
#undef _mm512_set1_epi8
#define _mm512_set1_epi8 emulated_set1_epi8
#undef _mm512_set1_ps
#define _mm512_set1_ps emulated_set1_ps
#undef _mm512_setzero_ps
#define _mm512_setzero_ps emulated_setzero_ps
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 emulated_setzero_si512
#undef _mm512_shuffle_epi8
#define _mm512_shuffle_epi8 emulated_shuffle_epi8
#undef _mm512_slli_epi32
#define _mm512_slli_epi32 emulated_slli_epi32
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 emulated_srai_epi32
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 emulated_srli_epi16
#undef _mm512_srlv_epi64
#define _mm512_srlv_epi64 emulated_srlv_epi64
#undef _mm512_storeu_ps
#define _mm512_storeu_ps emulated_storeu_ps
#undef _mm512_storeu_si512
#define _mm512_storeu_si512 emulated_storeu_si512
#undef _mm512_sub_epi32
#define _mm512_sub_epi32 emulated_sub_epi32
#undef _mm512_subs_epu8
#define _mm512_subs_epu8 emulated_subs_epu8
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps emulated_half_ps
#undef _mm512_castps512_ps256
#define _mm512_castps512_ps256(a) emulated_half_ps(a, 0)
#undef _mm512_set_epi32
#define _mm512_set_epi32(...) emulated_reversed_epi32((const int32_t[16]){__VA_ARGS__})
#undef _mm512_set_epi64
#define _mm512_set_epi64(...) emulated_reversed_epi64((const int64_t[8]){__VA_ARGS__})
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16 emulated_256_maskz_loadu_epi16
#undef _mm256_permutexvar_epi16
#define _mm256_permutexvar_epi16 emulated_256_permutexvar_epi16
#undef _tile_zero
#define _tile_zero(tile) memset(emulated_tiles[tile], 0, sizeof *emulated_tiles)
#undef _tile_loadd
#define _tile_loadd emulated_tile_load
#undef _tile_stored
#define _tile_stored emulated_tile_store
#undef _tile_dpbsud
#define _tile_dpbsud emulated_tile_dpbsud
#undef _tile_release
#define _tile_release() memset(emulated_tiles, 0, sizeof emulated_tiles)
/* Of the kernels, that is; here it would be replaced twice. */
#define target(features) target("avx2,f16c")

#endif
