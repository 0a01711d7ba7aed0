/* IDX files (LeCun's format of MNIST), plain or gzipped: magic 0, 0, type 8 (bytes), dimensions;
 * then each dimension as a big-endian u32; then the data. */
#ifndef ISO_NN_DATA_IDX_H
#define ISO_NN_DATA_IDX_H

#include "core/mem.h"

typedef struct {
    int ndim; /* 1: labels, 3: images */
    size_t shape[3];
    uint8_t *data; /* owned */
} iso_idx;

/* Of unsigned bytes with 1 to 3 dimensions; the data must fill the file exactly, and be at most
 * 256 MiB, also after inflating. `what` names it in errors. */
iso_err iso_idx_parse(iso_idx *x, const void *bytes, size_t size, const char *what,
                      iso_error *e) ISO_MUST_CHECK;
/* Reads `path`, or `path` with ".gz" behind it when that is what is there. */
iso_err iso_idx_read(iso_idx *x, const char *path, iso_error *e) ISO_MUST_CHECK;
void iso_idx_free(iso_idx *x);

#endif
