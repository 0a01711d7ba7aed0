/* The site's labelled images: one folder a task, split/class/file (DESIGN 6). Files may appear at
 * any time; a scan looks at names, sizes and times only. What lies here never leaves the process
 * (I4): only the counts below are ever told. */
#ifndef ISO_CLIENT_SPOOL_H
#define ISO_CLIENT_SPOOL_H

#include "core/digest.h"
#include "core/mem.h"

typedef struct {
    uint64_t train, val, test; /* images by split; without val/ the share is taken from train */
    uint64_t bytes;            /* of all files */
    uint64_t classes;
    uint64_t skipped;  /* entries that are no regular file in a class folder */
    iso_digest digest; /* of the sorted list of names, sizes and times */
} iso_spool_state;

/* ISO_ERR_DATA when the folder is missing or holds no train/ folder. `val_share` as of the
 * configuration. */
iso_err iso_spool_scan(const char *folder, double val_share, iso_spool_state *out,
                       iso_error *e) ISO_MUST_CHECK;

#endif
