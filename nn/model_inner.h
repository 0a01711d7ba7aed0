/* Inside of iso_model and iso_work, for the files model*.c only. */
#ifndef ISO_NN_MODEL_INNER_H
#define ISO_NN_MODEL_INNER_H

#include "nn/adapter/run.h"
#include "nn/model.h"

struct iso_model {
    const iso_backbone *backbone;
    const iso_adapter *adapter; /* or NULL */
    iso_packed *weights;        /* one per matrix; those not adapted are the backbone's */
    float **folded;             /* W of adapted matrices that need one, else NULL */
    bool trains;
    const float *params; /* of the last fold */
    float *derived;      /* what a kind that runs derives from them, or NULL */
    iso_arena arena;
};

struct iso_work {
    size_t workers, read;
    size_t floats;                     /* of one worker */
    size_t pixels, out, dout, scratch; /* offsets behind the pass's workspace at 0 */
    size_t run, start, z;              /* kinds that run; two-pass ones: input and first features */
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
/* After iso_work_load, for an adapter that runs: makes its run and the pass's hooks, and does the
 * first of two passes. r and h must live as long as the pass. grad NULL: no backward follows. */
void iso_work_begin(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                    iso_pass *p, iso_work *w, int worker, float *grad, size_t batch,
                    iso_adapter_run *r, iso_pass_hooks *h);
/* Floats that it needs; sets the offsets behind `at`. */
size_t iso_work_reserve(iso_work *w, const iso_model *m, size_t at);
/* True when the model's adapter computes beside the weights. */
bool iso_model_runs(const iso_model *m);
/* The block that the samples enter. */
size_t iso_source_first(const iso_source *s);

#endif
