/* Kinds of adapter beside LoRA in `isofed train`; see train_kinds.h. */
#include "cli/train_kinds.h"

#include "core/fsio.h"
#include "core/rng.h"
#include "nn/adapter/data.h"
#include "nn/adapter/factorised.h"
#include "nn/adapter/toast.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOOKED_AT = 64 }; /* images behind the look at what TOAST selects */

const char *const iso_reduce_choices[] = {"mean", "sum", NULL};
const char *const iso_value_bias_choices[] = {"once", "twice", NULL};
const char *const iso_stage1_choices[] = {"ridge", "train", NULL};

iso_kind_options iso_kind_defaults(void)
{
    return (iso_kind_options){
        .rank_lo = 2, .rank_hi = 8, .prompts = 8, .gap = 4, .stage = 2, .recon = 0.1};
}

iso_err iso_kind_apply(const iso_kind_options *o, iso_train_plan *p, iso_error *e)
{
    iso_adapter_options *a = &p->adapter;
    bool is_toast = strcmp(a->kind, "toast") == 0, is_data = strcmp(a->kind, "data") == 0;
    bool is_factorised = strcmp(a->kind, "factorised") == 0;
    const struct {
        bool is_set, fits;
        const char *name, *kind;
    } only[] = {{o->form != 0, is_factorised, "form", "factorised"},
                {o->ortho > 0.0, is_data, "ortho", "data"},
                {o->fixed_gate > 0.0, is_data, "fixed-gate", "data"},
                {o->full, is_toast, "full", "toast"},
                {o->train_p, is_toast, "train-p", "toast"},
                {o->stage == 1, is_toast, "stage", "toast"}};
    for (size_t i = 0; i < sizeof only / sizeof *only; i++)
        if (only[i].is_set && !only[i].fits)
            return iso_fail(e, ISO_ERR_USAGE, "--%s belongs to --adapter %s, not to %.40s",
                            only[i].name, only[i].kind, a->kind);
    a->form = (iso_factor_form)o->form;
    a->rank_lo = (size_t)o->rank_lo;
    a->rank_hi = (size_t)o->rank_hi;
    a->prompts = (size_t)o->prompts;
    a->gap = (size_t)o->gap;
    a->is_sum = o->reduce == 1;
    a->ortho = o->ortho;
    a->fixed_gate = o->fixed_gate;
    a->is_full = o->full || o->stage == 1;
    a->trains_P = o->train_p;
    a->is_bias_twice = o->value_bias == 1;
    a->recon = o->stage == 1 ? o->recon : 0.0;
    p->train.restore = (iso_restore){o->restore_every, o->restore_p};
    p->train.is_stage1 = o->stage == 1;
    p->train.trains_head = p->train.trains_head || o->stage == 1;
    return ISO_OK;
}

static iso_source training_source(iso_train_outcome *t, size_t most)
{
    size_t n = t->train.set.count < most ? t->train.set.count : most;
    return (iso_source){.n = n, .pixels = iso_image_feed_pixels, .ctx = &t->train.feed};
}

/* F and G normal with deviation 0.02, as the published stage 1 starts. */
static void draw_chain(iso_adapter *a, uint64_t seed)
{
    size_t n = a->backbone->shape.dim * a->backbone->shape.dim;
    for (size_t i = 0; i < 2 * a->backbone->shape.depth; i++) {
        iso_rng g = iso_rng_make(iso_rng_seed_name(seed, "stage 1"), ISO_RNG_INIT, i);
        float *x = a->params + iso_toast_at(a, (int)(i % 2), i / 2, 0);
        for (size_t k = 0; k < n; k++)
            x[k] = (float)(0.02 * iso_rng_normal(&g));
    }
}

iso_err iso_kind_prepare(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    iso_adapter *a = t->vision.adapter;
    iso_model *m = NULL;
    iso_toast_selection did;
    double share;
    if (a->kind != &iso_toast_kind)
        return ISO_OK;
    if (plan->train.is_stage1)
        draw_chain(a, plan->train.seed);
    iso_source source = training_source(t, LOOKED_AT);
    iso_err err = iso_model_open(&m, t->vision.backbone, a, false, e);
    if (!err)
        err = iso_toast_check_selection(a, m, &source, &did, &share, e);
    iso_model_close(m);
    if (!err && !plan->quiet && did != ISO_TOAST_KEPT)
        fprintf(stderr,
                "isofed train: note: xi selected fewer than half of the tokens; %s taken, %.0f %% "
                "are selected\n",
                did == ISO_TOAST_FLIPPED ? "its opposite was" : "the mean feature was",
                100.0 * share);
    return err;
}

iso_err iso_kind_conclude(iso_train_outcome *t, iso_error *e)
{
    iso_adapter *a = t->vision.adapter;
    iso_model *m = NULL;
    if (a->kind != &iso_data_kind || !iso_adapter_runs(a))
        return ISO_OK;
    iso_source source = training_source(t, t->train.set.count);
    iso_err err = iso_model_open(&m, t->vision.backbone, a, false, e);
    if (!err)
        err = iso_data_measure(a, m, &source, e);
    iso_model_close(m);
    return err;
}

iso_err iso_kind_save_folded(const iso_train_outcome *t, const char *out, const char *base_model,
                             iso_error *e)
{
    if (t->vision.adapter->kind != &iso_data_kind || !iso_data_has_gates(t->vision.adapter))
        return ISO_OK;
    char *folder = iso_path_join(out, "folded");
    iso_err err = folder ? iso_adapter_write_folded(t->vision.adapter, folder, base_model, e)
                         : iso_nomem(e, strlen(out));
    free(folder);
    return err;
}

static iso_err write_start(const iso_backbone *b, const float *F, const float *G,
                           const char *method, const char *out, iso_error *e)
{
    char *path = iso_path_join(out, ISO_TOAST_START_FILE);
    iso_err err = path ? iso_make_dirs(out, 0755, e) : iso_nomem(e, strlen(out));
    if (!err && !(err = iso_toast_write_start(b, F, G, method, path, e)))
        printf("start tensors (%s) in %s; beside the backbone's model.safetensors they are used\n",
               method, path);
    free(path);
    return err;
}

iso_err iso_kind_ridge(iso_train_outcome *t, const iso_train_plan *plan, const char *out,
                       iso_error *e)
{
    const iso_backbone *b = t->vision.backbone;
    size_t n = b->shape.depth * b->shape.dim * b->shape.dim;
    iso_source source = training_source(t, t->train.set.count);
    float *F = iso_calloc(n, sizeof *F);
    (void)plan;
    iso_err err = F ? iso_toast_ridge(b, &source, 1e-3, F, e) : iso_nomem(e, n * sizeof *F);
    if (!err)
        err = write_start(b, F, NULL, "ridge", out, e);
    free(F);
    return err;
}

iso_err iso_kind_save_start(const iso_train_outcome *t, const char *out, iso_error *e)
{
    const iso_backbone *b = t->vision.backbone;
    size_t n = b->shape.depth * b->shape.dim * b->shape.dim;
    float *F = iso_calloc(2 * n, sizeof *F);
    if (!F)
        return iso_nomem(e, 2 * n * sizeof *F);
    iso_toast_effective(t->vision.adapter, t->vision.adapter->params, F, F + n);
    iso_err err = write_start(b, F, F + n, "stage1", out, e);
    free(F);
    return err;
}
