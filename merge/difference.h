/* A step from one generation to the next as a file (specs/factorization.md 4): the factors of its
 * blocks, from which every machine computes the same bits, or the changed tensors in full where a
 * method other than the mean made them. safetensors; metadata format isofed-difference, version 1,
 * before, after (generations), weights (hexadecimal floats). Tensors block.N.MODULE.{r,s,a,b,A,B}
 * and block.N.MODULE.scale (float64), or tensor.NAME. */
#ifndef ISO_MERGE_DIFFERENCE_H
#define ISO_MERGE_DIFFERENCE_H

#include "merge/centralize.h"

iso_err iso_difference_write(const char *path, const iso_generation *g, const iso_block *blocks,
                             size_t n, const iso_centralize_options *o,
                             iso_error *e) ISO_MUST_CHECK;

/* The next generation of `backbone` by the file. ISO_ERR_TRUST when the backbone is not the
 * generation that it starts from, or the result not the one that it names. */
iso_err iso_difference_apply(iso_generation *out, const iso_safetensors *backbone,
                             const iso_safetensors *difference, iso_error *e) ISO_MUST_CHECK;

#endif
