/* Digits of base 3 in the bytes of a vector, highest first, as trilith.h lays them out. */
#ifndef TRILITH_AVX512_DIGITS_H
#define TRILITH_AVX512_DIGITS_H

#include <immintrin.h>

#define AVX512_FEATURES "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"
#define AVX512_INLINE static inline __attribute__((always_inline, target(AVX512_FEATURES)))

AVX512_INLINE __m512i times3(__m512i bytes) {
    return _mm512_add_epi8(bytes, _mm512_add_epi8(bytes, bytes));
}

/* A third of 256 is 85.3: a digit is 1 from 86 and 2 from 171. The byte goes on to the next one. */
AVX512_INLINE __m512i next_digit(__m512i *bytes) {
    __m512i one = _mm512_set1_epi8(1);
    __m512i first = _mm512_min_epu8(_mm512_subs_epu8(*bytes, _mm512_set1_epi8(85)), one);
    __m512i second = _mm512_min_epu8(_mm512_subs_epu8(*bytes, _mm512_set1_epi8((char)170)), one);
    *bytes = times3(*bytes);
    return _mm512_add_epi8(first, second);
}

#endif
