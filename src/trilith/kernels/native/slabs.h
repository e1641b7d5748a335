/* Tokens slab by slab, so that their activations stay in a cache while all blocks pass.
 *
 * Who includes it defines TARGET and INLINE, the attributes of its functions; LINEAR, the name of the
 * kernel; SLAB, tokens of a slab; and `compute` for some tokens of a block. */
INLINE void slab(const product *p, int layout, int64_t block, int64_t token) {
    int64_t end = min64(token + SLAB, p->num_tokens);
    for (; token + 4 <= end; token += 4) compute(p, layout, 4, block, token);
    for (; token < end; token++) compute(p, layout, 1, block, token);
}

TARGET void LINEAR(const product *p, int64_t first, int64_t last, uint8_t *scratch) {
    (void)scratch;
    for (int64_t token = 0; token < p->num_tokens; token += SLAB)
        for (int64_t block = first; block < last; block++) {
            /* Constants, so that each layout gets loops of its own. */
            if (p->weight.layout == BITS2)
                slab(p, BITS2, block, token);
            else if (p->weight.layout == BASE3)
                slab(p, BASE3, block, token);
            else
                slab(p, BITS4, block, token);
        }
}
