/* The weights of a model: the backbone's, and folded ones of its own where an adapter sits. */
#include "nn/model_inner.h"

#include "core/parallel.h"

#include <stdlib.h>
#include <string.h>

enum { MICRO_ROWS = 400, MICRO_IMAGES = 4, MICRO_TEXT_ROWS = 1024, MICRO_TEXTS = 8 };

typedef struct {
    iso_model *model;
    const float *params;
} fold_job;

static void fold_item(void *ctx, size_t i, int worker)
{
    const fold_job *j = ctx;
    (void)worker;
    iso_model *m = j->model;
    const iso_adapter *a = m->adapter;
    if (!a->is_adapted[i])
        return;
    if (m->folded[i] && m->weights[i].forward) { /* modules that begin within a panel */
        a->kind->fold(a, j->params, i,
                      &(iso_packed){.out = m->weights[i].out, .in = m->weights[i].in},
                      m->folded[i]);
        iso_pack(&m->weights[i]);
    } else {
        a->kind->fold(a, j->params, i, &m->weights[i], m->folded[i]);
    }
}

void iso_model_fold(iso_model *m, const float *params)
{
    if (!m->adapter)
        return;
    fold_job j = {m, params ? params : m->adapter->params};
    m->params = j.params;
    if (!iso_adapter_runs(m->adapter))
        iso_parallel_for(m->backbone->matrix_count, 1, fold_item, &j);
    else if (m->derived)
        m->adapter->kind->derive(m->adapter, m->params, m->trains, m->derived);
}

/* True when the modules of matrix i can be folded in panels. */
static bool folds_in_panels(const iso_backbone *b, size_t i)
{
    for (size_t k = 0; k < b->module_count; k++)
        if (b->modules[k].matrix == i && !iso_packed_is_aligned(b->modules[k].row))
            return false;
    return b->matrices[i].forward != NULL;
}

/* Own panels for matrix i where the model needs what the backbone does not have. They start as the
 * frozen ones; an adapted matrix has a W of its own only where panels cannot hold it. */
static iso_err own_weights(iso_model *m, size_t i, bool trains, iso_error *e)
{
    const iso_packed *frozen = &m->backbone->matrices[i];
    iso_packed *w = &m->weights[i];
    bool is_adapted = m->adapter && !iso_adapter_runs(m->adapter) && m->adapter->is_adapted[i];
    bool has_panels = frozen->forward != NULL;
    size_t in = frozen->in, out = frozen->out;
    *w = *frozen;
    if (is_adapted && (m->adapter->kind->folds_whole || !folds_in_panels(m->backbone, i))) {
        m->folded[i] = iso_arena_alloc(&m->arena, out * in, sizeof(float));
        if (!m->folded[i])
            return iso_nomem(e, out * in * sizeof(float));
        memcpy(m->folded[i], frozen->W, out * in * sizeof(float));
        w->W = m->folded[i];
    }
    if (is_adapted && has_panels) {
        size_t floats = iso_packed_forward_floats(out, in);
        w->forward = iso_arena_alloc(&m->arena, floats, sizeof(float));
        if (!w->forward)
            return iso_nomem(e, floats * sizeof(float));
        memcpy(w->forward, frozen->forward, floats * sizeof(float));
    }
    if (trains && has_panels) {
        size_t floats = iso_packed_backward_floats(out, in);
        w->backward = iso_arena_alloc(&m->arena, floats, sizeof(float));
        if (!w->backward)
            return iso_nomem(e, floats * sizeof(float));
        iso_pack(&(iso_packed){out, in, frozen->W, NULL, w->backward});
    }
    if (is_adapted && !m->folded[i])
        w->W = NULL; /* panels only: nobody may read the frozen numbers by mistake */
    return ISO_OK;
}

iso_err iso_model_open(iso_model **out, const iso_backbone *b, const iso_adapter *a, bool trains,
                       iso_error *e)
{
    iso_model *m = iso_calloc(1, sizeof *m);
    if (!m)
        return iso_nomem(e, sizeof *m);
    m->backbone = b;
    m->adapter = a;
    iso_err err = ISO_OK;
    m->weights = iso_arena_calloc(&m->arena, b->matrix_count, sizeof *m->weights);
    m->folded = iso_arena_calloc(&m->arena, b->matrix_count, sizeof *m->folded);
    if (!m->weights || !m->folded)
        err = iso_nomem(e, b->matrix_count * sizeof *m->weights);
    for (size_t i = 0; !err && i < b->matrix_count; i++) {
        m->weights[i] = b->matrices[i];
        err = own_weights(m, i, trains, e);
    }
    m->trains = trains;
    size_t derived = a && iso_adapter_runs(a) && a->kind->derived_floats
                         ? a->kind->derived_floats(a, trains)
                         : 0;
    if (!err && derived && !(m->derived = iso_arena_alloc(&m->arena, derived, sizeof(float))))
        err = iso_nomem(e, derived * sizeof(float));
    if (err) {
        iso_model_close(m);
        return err;
    }
    iso_model_fold(m, NULL);
    *out = m;
    return ISO_OK;
}

void iso_model_close(iso_model *m)
{
    if (!m)
        return;
    iso_arena_free(&m->arena);
    free(m);
}

const iso_backbone *iso_model_backbone(const iso_model *m)
{
    return m->backbone;
}

const iso_adapter *iso_model_adapter(const iso_model *m)
{
    return m->adapter;
}

size_t iso_model_dim(const iso_model *m)
{
    return m->backbone->shape.feature;
}

size_t iso_model_bytes(const iso_model *m)
{
    return m->arena.held_bytes;
}

size_t iso_model_micro_batch(const iso_model *m)
{
    const iso_backbone_shape *s = &m->backbone->shape;
    bool is_text = s->modality != ISO_MODALITY_IMAGE; /* mostly far shorter than the longest */
    size_t most = is_text ? MICRO_TEXTS : MICRO_IMAGES;
    size_t n = (is_text ? MICRO_TEXT_ROWS : MICRO_ROWS) / s->tokens;
    return n < 1 ? 1 : n > most ? most : n;
}
