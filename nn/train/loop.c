#include "nn/train/loop_inner.h"

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

/* ---- scores ---- */

double iso_training_score(const iso_linear_head *h, const float *features, const int *labels,
                          size_t n, float *logits, double *loss)
{
    size_t right = 0;
    double total = 0.0;
    for (size_t begin = 0; begin < n; begin += ISO_SCORE_CHUNK) {
        size_t m = n - begin < ISO_SCORE_CHUNK ? n - begin : ISO_SCORE_CHUNK;
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

static void evaluate(iso_training *t)
{
    const iso_train_set *val = &t->setup.val;
    if (val->n == 0)
        return;
    iso_source source = iso_training_source(val, &t->val_prefix, &t->val_first);
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

iso_err iso_training_resume(iso_training *t, iso_error *e)
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
    iso_source source = iso_training_source(&t->setup.train, &t->train_prefix, &t->train_first);
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
