/* Rows of an embedding or a head in the precision that their file has. */
#ifndef TRILITH_ROWS_H
#define TRILITH_ROWS_H

#include "trilith.h"

enum row_kind { ROWS_FLOAT32, ROWS_BF16, ROWS_INT8, ROWS_INT4, ROWS_INT3 };

/* Keep in step with RowsStruct in native_build.py. Codes of ROWS_INT4 and ROWS_INT3 lie from the low
 * end of their bytes; code c of n bits is the odd number 2 c - (2^n - 1) times its group's scale. */
typedef struct {
    const void *values;  /* [num_rows, width] of `kind`; codes: [num_rows, width * bits / 8] */
    const void *scale;   /* ROWS_INT8: float [num_rows]; codes: float16 [num_rows, groups] */
    int64_t kind, num_rows, width;
    int64_t group_size; /* of codes: a multiple of 8 that divides the width */
} rows;

static inline float float_of_half(uint16_t half) {
    uint32_t magnitude = half & 0x7fffu, sign = (uint32_t)(half & 0x8000u) << 16, bits;
    float value;
    if (magnitude < 0x400u) { /* zero and numbers below the normal ones */
        value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t exponent = magnitude >= 0x7c00u ? 0x7f800000u : (magnitude & 0x7c00u) * 0x2000u + 0x38000000u;
    bits = sign | exponent | (magnitude & 0x3ffu) << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* out [width] = row `at` in floats, the bits of StoredRows.restore. */
void restore_row(const rows *r, int64_t at, float *out);

/* Activations of one token as whole numbers, in memory of so many bytes: for 4-bit rows, and of 16
 * bits for 8-bit rows. */
typedef struct whole_row whole_row;
typedef struct short_row short_row;
int64_t whole_row_bytes(const rows *r);
int64_t short_row_bytes(const rows *r);
void make_whole(const rows *r, const float *x, whole_row *row);
void make_short(const rows *r, const float *x, short_row *row);

/* out[row] = x . rows[row] for rows first .. last - 1 with 4 or 8 bits. */
void int4_rows(
    const rows *r, const whole_row *x, int64_t first, int64_t last, float *out, int isa);
void int8_rows(
    const rows *r, const short_row *x, int64_t first, int64_t last, float *out, int isa);

/* out [num_tokens, num_rows] = x [num_tokens, width] times all rows; 0, or -1 without memory. */
int multiply_rows(
    const rows *r, const float *x, int64_t num_tokens, float *out, const settings *how);

#endif
