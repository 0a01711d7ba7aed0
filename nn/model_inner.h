/* Inside of iso_model and iso_work, for the files model*.c only. */
#ifndef ISO_NN_MODEL_INNER_H
#define ISO_NN_MODEL_INNER_H

#include "nn/model.h"

struct iso_model {
    const iso_backbone *backbone;
    const iso_adapter *adapter; /* or NULL */
    iso_packed *weights;        /* one per matrix; those not adapted are the backbone's */
    float **folded;             /* W of adapted matrices that need one, else NULL */
    iso_arena arena;
};

struct iso_work {
    size_t workers, read;
    size_t floats;                     /* of one worker */
    size_t pixels, out, dout, scratch; /* offsets behind the pass's workspace at 0 */
    float *data;
    uint32_t *idx;     /* (workers, micro-batch) */
    uint32_t *lengths; /* the same */
    size_t micro;
};

iso_err iso_work_open_as(iso_work **out, const iso_model *m, size_t read, bool keep,
                         iso_error *e) ISO_MUST_CHECK;
/* Puts samples idx[0 .. n-1] at the input of the pass of `worker`; sets the pass's tokens and
 * lengths. */
void iso_work_load(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                   uint64_t draw, iso_pass *p, iso_work *w, int worker);
/* The block that the samples enter. */
size_t iso_source_first(const iso_source *s);

#endif
