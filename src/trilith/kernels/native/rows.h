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

/* out [width] = row `at` in floats, the bits of StoredRows.restore. */
void restore_row(const rows *r, int64_t at, float *out);

/* out [num_tokens, num_rows] = x [num_tokens, width] times all rows. */
void multiply_rows(
    const rows *r, const float *x, int64_t num_tokens, float *out, const settings *how);

#endif
