/* What a training is asked for, checked, and everything that it needs made before its first step.
 */
#include "nn/train/loop_inner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCH = 4096 };

iso_train_options iso_train_defaults(void)
{
    return (iso_train_options){.steps = 300,
                               .batch = 16,
                               .lr = 1e-3,
                               .weight_decay = 0.01,
                               .clip_norm = 1.0,
                               .warmup = 20,
                               .cache_bytes = (size_t)512 << 20};
}

/* Everything that decides the bits, but the images. */
static iso_digest run_digest(const iso_training *t)
{
    const iso_train_options *o = &t->setup.options;
    const iso_linear_head *h = t->setup.head;
    const iso_adapter *a = t->setup.adapter;
    char text[512];
    snprintf(text, sizeof text,
             "run 1 seed %llu steps %zu batch %zu lr %a head_lr %a decay %a clip %a warmup %zu "
             "final %a joint %d augments %d eval %zu best %d patience %zu kind %s classes %zu",
             (unsigned long long)o->seed, o->steps, o->batch, o->lr, o->head_lr, o->weight_decay,
             o->clip_norm, o->warmup, o->final_share, o->trains_head, o->augments, o->eval_every,
             o->keeps_best, o->patience, a->kind->name, h->classes);
    iso_hasher hash;
    iso_hasher_init(&hash);
    iso_hasher_add(&hash, text, strlen(text));
    if (o->restore.every > 0.0 || o->is_stage1) {
        snprintf(text, sizeof text, "restore %a %a stage1 %d", o->restore.every,
                 o->restore.probability, o->is_stage1);
        iso_hasher_add(&hash, text, strlen(text));
    }
    iso_hasher_add(&hash, t->setup.backbone->generation.b, ISO_DIGEST_BYTES);
    iso_hasher_add(&hash, a->is_adapted, t->setup.backbone->matrix_count * sizeof *a->is_adapted);
    iso_hasher_add(&hash, a->params, a->param_count * sizeof *a->params);
    iso_hasher_add(&hash, h->W, h->classes * h->dim * sizeof *h->W);
    iso_hasher_add(&hash, h->b, h->classes * sizeof *h->b);
    return iso_hasher_end(&hash);
}

static iso_err check_set(const iso_train_set *s, const char *what, size_t classes, iso_error *e)
{
    if (s->n > UINT32_MAX)
        return iso_fail(e, ISO_ERR_DATA, "%zu %s images; at most 4294967295", s->n, what);
    for (size_t i = 0; i < s->n; i++)
        if (s->labels[i] < 0 || (size_t)s->labels[i] >= classes)
            return iso_fail(e, ISO_ERR_DATA, "%s image %zu has label %d; the head has %zu classes",
                            what, i, s->labels[i], classes);
    return ISO_OK;
}

static iso_err check_setup(const iso_training_setup *s, iso_error *e)
{
    const iso_train_options *o = &s->options;
    if (o->steps < 1 || o->steps > 100000000)
        return iso_fail(e, ISO_ERR_USAGE, "steps %zu; expected 1..100000000", o->steps);
    if (o->batch < 1 || o->batch > MAX_BATCH)
        return iso_fail(e, ISO_ERR_USAGE, "batch %zu; expected 1..%d", o->batch, MAX_BATCH);
    if (!(o->lr > 0.0 && o->lr <= 10.0) || !(o->head_lr >= 0.0 && o->head_lr <= 10.0))
        return iso_fail(e, ISO_ERR_USAGE, "learning rate %g; expected above 0, up to 10", o->lr);
    if (!(o->weight_decay >= 0.0 && o->weight_decay <= 10.0))
        return iso_fail(e, ISO_ERR_USAGE, "weight decay %g; expected 0..10", o->weight_decay);
    if (!(o->clip_norm >= 0.0) || !(o->final_share >= 0.0 && o->final_share <= 1.0))
        return iso_fail(e, ISO_ERR_USAGE, "clip norm %g, final share %g; expected >= 0 and 0..1",
                        o->clip_norm, o->final_share);
    if (!(o->restore.every >= 0.0 && o->restore.every <= 1.0 && o->restore.probability >= 0.0 &&
          o->restore.probability <= 1.0))
        return iso_fail(e, ISO_ERR_USAGE, "restoration every %g with probability %g; both are 0..1",
                        o->restore.every, o->restore.probability);
    if (o->is_stage1 && !(s->adapter->kind->is_two_pass && o->trains_head))
        return iso_fail(e, ISO_ERR_USAGE, "stage 1 is TOAST's, and trains the head as well");
    if (o->is_stage1 && s->backbone->family->lengths)
        return iso_fail(e, ISO_ERR_USAGE, "stage 1 takes samples of one length");
    if (s->train.n == 0)
        return iso_fail(e, ISO_ERR_DATA, "no training images");
    if (s->adapter->lowest_block == s->backbone->shape.depth)
        return iso_fail(e, ISO_ERR_USAGE, "the adapter adapts nothing");
    if (s->head->dim != s->backbone->shape.feature)
        return iso_fail(e, ISO_ERR_SHAPE, "the head is for features of %zu, backbone has %zu",
                        s->head->dim, s->backbone->shape.feature);
    iso_err err = check_set(&s->train, "training", s->head->classes, e);
    return err ? err : check_set(&s->val, "validation", s->head->classes, e);
}

static iso_err allocate(iso_training *t, iso_error *e)
{
    const iso_training_setup *s = &t->setup;
    size_t classes = s->head->classes, count = t->adapter_count + t->head_count;
    size_t batch = s->options.batch;
    iso_arena *a = &t->arena;
    t->grads = iso_arena_alloc(a, t->micro_batches * count, sizeof *t->grads);
    t->losses = iso_arena_alloc(a, t->micro_batches, sizeof *t->losses);
    t->m = iso_arena_calloc(a, count, sizeof *t->m);
    t->v = iso_arena_calloc(a, count, sizeof *t->v);
    t->staged = iso_arena_alloc(a, count, sizeof *t->staged);
    t->best = s->options.keeps_best ? iso_arena_calloc(a, count, sizeof *t->best) : NULL;
    if (s->options.restore.every > 0.0) {
        t->reference = iso_arena_alloc(a, s->adapter->decay_count, sizeof *t->reference);
        if (!t->reference)
            return iso_nomem(e, s->adapter->decay_count * sizeof *t->reference);
        memcpy(t->reference, s->adapter->params, s->adapter->decay_count * sizeof *t->reference);
    }
    t->order = iso_arena_alloc(a, s->train.n, sizeof *t->order);
    t->idx = iso_arena_alloc(a, batch, sizeof *t->idx);
    t->labels = iso_arena_alloc(a, batch, sizeof *t->labels);
    t->logits = iso_arena_alloc(a, batch * classes, sizeof *t->logits);
    t->features = iso_arena_alloc(a, s->val.n * s->head->dim, sizeof *t->features);
    t->scores = iso_arena_alloc(a, (size_t)ISO_SCORE_CHUNK * classes, sizeof *t->scores);
    if (!t->grads || !t->losses || !t->m || !t->v || !t->staged ||
        (s->options.keeps_best && !t->best) || !t->order || !t->idx || !t->labels || !t->logits ||
        !t->features || !t->scores)
        return iso_nomem(e, (t->micro_batches + 4) * count * sizeof(float));
    return ISO_OK;
}

iso_err iso_training_open(iso_training **out, const iso_training_setup *s, iso_error *e)
{
    iso_err err = check_setup(s, e);
    if (err)
        return err;
    iso_training *t = iso_calloc(1, sizeof *t);
    if (!t)
        return iso_nomem(e, sizeof *t);
    double nan = (double)NAN;
    t->setup = *s;
    if (t->setup.options.head_lr == 0.0)
        t->setup.options.head_lr = s->options.lr;
    t->now = (iso_training_status){.loss = nan,
                                   .smooth_loss = nan,
                                   .val_accuracy = nan,
                                   .val_loss = nan,
                                   .best_accuracy = nan,
                                   .best_loss = nan};
    t->epoch = UINT64_MAX;
    t->adapter_count = s->adapter->param_count;
    t->weight_count = s->options.trains_head ? s->head->classes * s->head->dim : 0;
    t->head_count = s->options.trains_head ? t->weight_count + s->head->classes : 0;
    t->run = run_digest(t);
    err = iso_model_open(&t->model, s->backbone, s->adapter, true, e);
    if (err)
        goto fail;
    size_t micro = iso_model_micro_batch(t->model);
    t->micro_batches = (s->options.batch + micro - 1) / micro;
    size_t read = s->options.is_stage1 ? s->backbone->shape.tokens : 1;
    if ((err = allocate(t, e)) || (err = iso_work_open(&t->work, t->model, read, e)) ||
        (read > 1 && (err = iso_work_open(&t->read, t->model, 1, e))) ||
        (err = iso_training_resume(t, e)))
        goto fail;
    if (t->now.resumed)
        iso_model_fold(t->model, NULL);
    iso_source train = iso_training_source(&s->train, NULL, NULL),
               val = iso_training_source(&s->val, NULL, NULL);
    size_t block = s->adapter->lowest_block, budget = s->options.cache_bytes;
    if (!s->options.augments && !t->now.is_done &&
        (err = iso_model_prefix(t->model, &train, block, budget, &t->train_prefix, e)))
        goto fail;
    if (!t->now.is_done &&
        (err = iso_model_prefix(t->model, &val, block, budget, &t->val_prefix, e)))
        goto fail;
    if (!s->options.augments && !t->now.is_done &&
        (err = iso_model_first_pass(t->model, &train, budget, &t->train_first, e)))
        goto fail;
    if (!t->now.is_done && (err = iso_model_first_pass(t->model, &val, budget, &t->val_first, e)))
        goto fail;
    *out = t;
    return ISO_OK;
fail:
    iso_training_close(t);
    return err;
}

void iso_training_close(iso_training *t)
{
    if (!t)
        return;
    iso_prefix_free(&t->train_prefix);
    iso_prefix_free(&t->val_prefix);
    iso_first_pass_free(&t->train_first);
    iso_first_pass_free(&t->val_first);
    iso_work_close(t->read);
    iso_work_close(t->work);
    iso_model_close(t->model);
    iso_arena_free(&t->arena);
    free(t);
}

size_t iso_training_bytes(const iso_training *t)
{
    size_t row = t->setup.backbone->shape.dim * sizeof(float);
    const iso_prefix *train = &t->train_prefix, *val = &t->val_prefix;
    size_t first = t->setup.backbone->shape.tokens * row;
    return t->arena.held_bytes + iso_work_bytes(t->work) + iso_model_bytes(t->model) +
           (t->read ? iso_work_bytes(t->read) : 0) +
           (t->train_first.z ? t->train_first.n : 0) * first +
           (t->val_first.z ? t->val_first.n : 0) * first +
           (train->hidden ? train->n * train->tokens * row : 0) +
           (val->hidden ? val->n * val->tokens * row : 0);
}
