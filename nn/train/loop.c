#include "nn/train/loop.h"

#include "core/progress.h"
#include "nn/data/sampler.h"
#include "nn/kernel/loss.h"
#include "nn/train/checkpoint.h"
#include "nn/train/optimizer.h"
#include "nn/train/schedule.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCH = 4096, SCORE_CHUNK = 256 };

struct iso_training {
    iso_training_setup setup;
    iso_model *model;
    iso_work *work, *read; /* read: for evaluations, where `work` reads more than one token */
    iso_prefix train_prefix, val_prefix;
    iso_first_pass train_first, val_first;
    float *reference; /* the adapter as it began, for restoration; or NULL */
    size_t adapter_count, head_count, weight_count; /* parameters; weight_count of the head's W */
    size_t micro_batches;                           /* of a batch */
    float *grads;                                   /* (micro_batches, adapter + head) */
    double *losses;
    float *m, *v;             /* optimiser, adapter then head */
    float *staged, *best;     /* parameters in one piece, for the checkpoint */
    uint32_t *order, *idx;    /* this epoch's order; this batch */
    uint64_t epoch;           /* of `order`; UINT64_MAX: none yet */
    int *labels;              /* of this batch */
    float *logits;            /* (batch, classes) */
    float *features, *scores; /* validation: (n, dim); (SCORE_CHUNK, classes) */
    iso_training_status now;
    double without_gain; /* evaluations */
    bool has_best;
    iso_digest run;
    iso_arena arena;
};

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

/* ---- scores ---- */

double iso_training_score(const iso_linear_head *h, const float *features, const int *labels,
                          size_t n, float *logits, double *loss)
{
    size_t right = 0;
    double total = 0.0;
    for (size_t begin = 0; begin < n; begin += SCORE_CHUNK) {
        size_t m = n - begin < SCORE_CHUNK ? n - begin : SCORE_CHUNK;
        iso_linear_logits(h, features + begin * h->dim, m, logits);
        for (size_t i = 0; i < m; i++) {
            const float *z = logits + i * h->classes;
            size_t top = 0;
            for (size_t c = 1; c < h->classes; c++)
                if (z[c] > z[top])
                    top = c;
            right += top == (size_t)labels[begin + i];
        }
        total += iso_loss_rows(m, h->classes, logits, labels + begin, 0.0F, NULL);
    }
    if (loss)
        *loss = n ? total / (double)n : (double)NAN;
    return n ? (double)right / (double)n : (double)NAN;
}

/* ---- parameters in one piece ---- */

static void gather(const iso_training *t, float *out)
{
    const iso_linear_head *h = t->setup.head;
    memcpy(out, t->setup.adapter->params, t->adapter_count * sizeof *out);
    if (t->head_count) {
        memcpy(out + t->adapter_count, h->W, t->weight_count * sizeof *out);
        memcpy(out + t->adapter_count + t->weight_count, h->b, h->classes * sizeof *out);
    }
}

static void scatter(iso_training *t, const float *in)
{
    iso_linear_head *h = t->setup.head;
    memcpy(t->setup.adapter->params, in, t->adapter_count * sizeof *in);
    if (t->head_count) {
        memcpy(h->W, in + t->adapter_count, t->weight_count * sizeof *in);
        memcpy(h->b, in + t->adapter_count + t->weight_count, h->classes * sizeof *in);
    }
}

/* ---- evaluation ---- */

static iso_source source_of(const iso_train_set *s, const iso_prefix *prefix,
                            const iso_first_pass *first)
{
    return (iso_source){
        .n = s->n, .pixels = s->pixels, .ctx = s->ctx, .prefix = prefix, .first_pass = first};
}

static void evaluate(iso_training *t)
{
    const iso_train_set *val = &t->setup.val;
    if (val->n == 0)
        return;
    iso_source source = source_of(val, &t->val_prefix, &t->val_first);
    iso_model_features_in(t->model, t->read ? t->read : t->work, &source, NULL, val->n,
                          t->features);
    t->now.val_accuracy = iso_training_score(t->setup.head, t->features, val->labels, val->n,
                                             t->scores, &t->now.val_loss);
    bool is_better =
        !t->has_best || t->now.val_accuracy > t->now.best_accuracy ||
        (t->now.val_accuracy == t->now.best_accuracy && t->now.val_loss < t->now.best_loss);
    if (!is_better) {
        t->without_gain += 1.0;
        return;
    }
    t->without_gain = 0.0;
    t->has_best = true;
    t->now.best_accuracy = t->now.val_accuracy;
    t->now.best_loss = t->now.val_loss;
    t->now.best_step = t->now.step;
    if (t->best)
        gather(t, t->best);
}

/* ---- checkpoint ---- */

static iso_checkpoint as_checkpoint(const iso_training *t)
{
    return (iso_checkpoint){.count = t->adapter_count + t->head_count,
                            .params = t->staged,
                            .m = t->m,
                            .v = t->v,
                            .best = t->best,
                            .state = {.step = (double)t->now.step,
                                      .loss = t->now.loss,
                                      .smooth_loss = t->now.smooth_loss,
                                      .val_accuracy = t->now.val_accuracy,
                                      .val_loss = t->now.val_loss,
                                      .best_accuracy = t->now.best_accuracy,
                                      .best_loss = t->now.best_loss,
                                      .best_step = (double)t->now.best_step,
                                      .without_gain = t->without_gain,
                                      .stopped_early = t->now.stopped_early ? 1.0 : 0.0,
                                      .has_best = t->has_best ? 1.0 : 0.0},
                            .run = t->run,
                            .data = t->setup.options.data};
}

iso_err iso_training_checkpoint(iso_training *t, iso_error *e)
{
    if (!t->setup.options.checkpoint)
        return ISO_OK;
    gather(t, t->staged);
    iso_checkpoint c = as_checkpoint(t);
    iso_err err = iso_checkpoint_write(t->setup.options.checkpoint, &c, e);
    if (!err)
        t->now.checkpoint_step = t->now.step;
    return err;
}

static iso_err resume(iso_training *t, iso_error *e)
{
    const char *path = t->setup.options.checkpoint;
    if (!path || !iso_path_exists(path))
        return ISO_OK;
    iso_checkpoint c = as_checkpoint(t);
    iso_err err = iso_checkpoint_read(path, &c, &t->now.data_changed, e);
    if (err)
        return err;
    const iso_checkpoint_state *s = &c.state;
    if (!(s->step >= 0.0 && s->step <= (double)t->setup.options.steps && s->best_step >= 0.0 &&
          s->best_step <= s->step))
        return iso_fail(e, ISO_ERR_DATA, "%s: step out of range", path);
    scatter(t, t->staged);
    t->now.step = t->now.checkpoint_step = (uint64_t)s->step;
    t->now.loss = s->loss;
    t->now.smooth_loss = s->smooth_loss;
    t->now.val_accuracy = s->val_accuracy;
    t->now.val_loss = s->val_loss;
    t->now.best_accuracy = s->best_accuracy;
    t->now.best_loss = s->best_loss;
    t->now.best_step = (uint64_t)s->best_step;
    t->now.stopped_early = s->stopped_early != 0.0;
    t->now.is_done = t->now.stopped_early || t->now.step == t->setup.options.steps;
    t->without_gain = s->without_gain;
    t->has_best = s->has_best != 0.0;
    t->now.resumed = true;
    return ISO_OK;
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

/* ---- opening ---- */

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
    t->scores = iso_arena_alloc(a, (size_t)SCORE_CHUNK * classes, sizeof *t->scores);
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
        (read > 1 && (err = iso_work_open(&t->read, t->model, 1, e))) || (err = resume(t, e)))
        goto fail;
    if (t->now.resumed)
        iso_model_fold(t->model, NULL);
    iso_source train = source_of(&s->train, NULL, NULL), val = source_of(&s->val, NULL, NULL);
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

/* ---- steps ---- */

/* The images of the current step, in the seeded order of their epoch. */
static void draw_batch(iso_training *t)
{
    const iso_training_setup *s = &t->setup;
    for (size_t i = 0; i < s->options.batch; i++) {
        uint64_t at = t->now.step * s->options.batch + i;
        uint64_t epoch = at / s->train.n;
        if (epoch != t->epoch) {
            iso_epoch_order(s->options.seed, epoch, t->order, s->train.n);
            t->epoch = epoch;
        }
        t->idx[i] = t->order[at % s->train.n];
        t->labels[i] = s->train.labels[t->idx[i]];
    }
}

/* Cross-entropy of the head on features ld apart: z = f W' + b, df = dz W, dW = dz' f, db = sum
 * dz. df NULL: the head alone learns. */
static double head_term(const iso_training *t, float weight, size_t first, size_t n, const float *f,
                        size_t ld, float *df, float *extra)
{
    const iso_linear_head *h = t->setup.head;
    size_t c = h->classes, d = h->dim;
    float *z = t->logits + first * c;
    for (size_t i = 0; i < n; i++)
        memcpy(z + i * c, h->b, c * sizeof *z);
    iso_gemm(false, true, n, c, d, 1.0F, f, ld, h->W, d, 1.0F, z, c);
    double loss =
        iso_loss_rows(n, c, z, t->labels + first, weight / (float)t->setup.options.batch, z);
    if (df)
        iso_gemm(false, false, n, d, c, 1.0F, z, c, h->W, d, 0.0F, df, ld);
    if (t->head_count) {
        iso_gemm(true, false, c, d, n, 1.0F, z, c, f, ld, 1.0F, extra, d);
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < c; k++)
                extra[t->weight_count + k] += z[i * c + k];
    }
    return loss * (double)weight;
}

static double head_loss(void *ctx, size_t first, size_t n, const float *out, float *dout,
                        float *extra)
{
    const iso_training *t = ctx;
    size_t d = t->setup.head->dim;
    if (!t->setup.options.is_stage1)
        return head_term(t, 1.0F, first, n, out, d, dout, extra);
    size_t image = t->setup.backbone->shape.tokens * d; /* all tokens were read */
    memset(dout, 0, n * image * sizeof *dout);
    return head_term(t, 0.5F, first, n, out, image, dout, extra);
}

/* Stage 1: half of the loss is that of the first pass. */
static double first_loss(void *ctx, size_t first, size_t n, const float *z, size_t ldz,
                         float *extra)
{
    return head_term(ctx, 0.5F, first, n, z, ldz, NULL, extra);
}

static iso_err one_step(iso_training *t, iso_error *e)
{
    const iso_train_options *o = &t->setup.options;
    size_t count = t->adapter_count + t->head_count;
    draw_batch(t);
    iso_source source = source_of(&t->setup.train, &t->train_prefix, &t->train_first);
    iso_gradient_job job = {.source = &source,
                            .idx = t->idx,
                            .n = o->batch,
                            .draw = o->augments ? t->now.step + 1 : 0,
                            .loss = head_loss,
                            .loss_ctx = t,
                            .grads = t->grads,
                            .stride = count,
                            .extra = t->head_count,
                            .losses = t->losses,
                            .first_loss = o->is_stage1 ? first_loss : NULL};
    iso_adapter *a = t->setup.adapter;
    double loss = iso_model_gradient(t->model, t->work, &job) / (double)o->batch;
    if (a->kind->penalty && iso_adapter_runs(a))
        loss += a->kind->penalty(a, a->params, t->grads);
    double norm = iso_gradient_norm(t->grads, count);
    if (!isfinite(loss) || !isfinite(norm))
        return iso_fail(e, ISO_ERR_NONFINITE,
                        "loss or gradient is no number at step %llu; a lower learning rate than %g "
                        "may help",
                        (unsigned long long)t->now.step + 1, o->lr);
    float scale = o->clip_norm > 0.0 && norm > o->clip_norm ? (float)(o->clip_norm / norm) : 1.0F;
    iso_schedule schedule = {o->steps, o->warmup, o->final_share};
    double rate = iso_schedule_at(&schedule, t->now.step);
    uint64_t step = t->now.step + 1;
    iso_adamw w = iso_adamw_default(o->lr * rate, o->weight_decay);
    size_t at = a->decay_count;
    iso_adamw_step(&w, step, at, a->params, t->grads, scale, t->m, t->v);
    if (at < t->adapter_count) { /* gates, selection: no decay */
        iso_adamw plain = iso_adamw_default(o->lr * rate, 0.0);
        iso_adamw_step(&plain, step, t->adapter_count - at, a->params + at, t->grads + at, scale,
                       t->m + at, t->v + at);
    }
    if (t->reference && iso_restore_is_due(&o->restore, step, o->steps))
        iso_restore_apply(&o->restore, o->seed, step, at, t->reference, a->params);
    at = t->adapter_count;
    if (t->head_count) {
        w.lr = o->head_lr * rate;
        iso_adamw_step(&w, step, t->weight_count, t->setup.head->W, t->grads + at, scale, t->m + at,
                       t->v + at);
        at += t->weight_count;
        w.weight_decay = 0.0;
        iso_adamw_step(&w, step, t->setup.head->classes, t->setup.head->b, t->grads + at, scale,
                       t->m + at, t->v + at);
    }
    iso_model_fold(t->model, NULL);
    t->now.step = step;
    t->now.loss = loss;
    t->now.smooth_loss =
        isnan(t->now.smooth_loss) ? loss : t->now.smooth_loss + 0.05 * (loss - t->now.smooth_loss);
    return ISO_OK;
}

iso_err iso_training_step(iso_training *t, size_t n, iso_training_status *status, iso_error *e)
{
    const iso_train_options *o = &t->setup.options;
    iso_err err = ISO_OK;
    for (size_t i = 0; !err && i < n && !t->now.is_done; i++) {
        err = one_step(t, e);
        if (err)
            break;
        bool is_end = t->now.step == o->steps;
        if (is_end || (o->eval_every && t->now.step % o->eval_every == 0))
            evaluate(t);
        t->now.stopped_early = !is_end && o->patience && t->without_gain >= (double)o->patience;
        t->now.is_done = is_end || t->now.stopped_early;
        if (t->now.is_done || (o->checkpoint_every && t->now.step % o->checkpoint_every == 0))
            err = iso_training_checkpoint(t, e);
    }
    if (status)
        *status = t->now;
    return err;
}

iso_training_status iso_training_now(const iso_training *t)
{
    return t->now;
}

void iso_training_result(iso_training *t, iso_training_status *status)
{
    if (t->best && t->has_best)
        scatter(t, t->best);
    if (status)
        *status = t->now;
}

iso_err iso_training_run(iso_training *t, bool (*should_stop)(void *ctx), void *ctx,
                         iso_training_status *status, iso_error *e)
{
    const iso_train_options *o = &t->setup.options;
    iso_progress bar;
    iso_err err = ISO_OK;
    double batch = (double)o->batch;
    uint64_t from = t->now.step;
    iso_progress_start(&bar, "training", "images", (double)(o->steps - from) * batch, o->is_quiet);
    while (!err && !t->now.is_done) {
        err = iso_training_step(t, 1, NULL, e);
        char note[64];
        if (isnan(t->now.val_accuracy))
            snprintf(note, sizeof note, "loss %.3f", t->now.smooth_loss);
        else
            snprintf(note, sizeof note, "loss %.3f, val %.1f %%", t->now.smooth_loss,
                     100.0 * t->now.val_accuracy);
        iso_progress_update(&bar, (double)(t->now.step - from) * batch, note);
        if (!err && !t->now.is_done && should_stop && should_stop(ctx)) {
            err = iso_training_checkpoint(t, e);
            if (!err)
                err = iso_fail(e, ISO_ERR_INTERRUPTED, "stopped at step %llu of %zu%s%s",
                               (unsigned long long)t->now.step, o->steps,
                               o->checkpoint ? "; goes on from " : "",
                               o->checkpoint ? o->checkpoint : "");
        }
    }
    iso_progress_end(&bar, (double)(t->now.step - from) * batch);
    if (!err)
        iso_training_result(t, NULL);
    if (status)
        *status = t->now;
    return err;
}
