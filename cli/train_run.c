/* Probe, adapter, scores; see train_run.h. */
#include "cli/train_run.h"

#include "cli/command.h"
#include "cli/train_kinds.h"
#include "core/fsio.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- data ---- */

static void split_free(iso_train_split *s)
{
    free(s->labels);
    free(s->features);
    iso_images_free(&s->set);
}

static iso_err load_data(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    iso_image_options o = {.folder = plan->data,
                           .limit_per_class = plan->limit_per_class,
                           .allow_unreadable = plan->allow_unreadable};
    iso_linear_head given = {0};
    iso_err err = ISO_OK;
    if (plan->head_file) { /* its classes, in its order (U76) */
        if ((err = iso_vision_head(&t->vision, plan->head_file, &t->head, e)))
            return err;
        given = t->head;
        o.class_names = given.class_names;
        o.class_count = given.classes;
    }
    if ((err = iso_vision_load_train_val(&t->vision, &t->train.set, &t->val.set, &o,
                                         plan->val_share, plan->train.seed, e)))
        return err;
    t->has_test = iso_vision_has_split(&t->vision, plan->data, "test");
    if (t->has_test) {
        o.split = "test";
        o.limit_per_class = 0;
        o.class_names = t->train.set.class_names;
        o.class_count = t->train.set.class_count;
        if ((err = iso_vision_load(&t->vision, &t->test.set, &o, e)))
            return err;
    }
    iso_vision_print_notes("train", &t->train.set);
    iso_vision_print_notes("train", &t->val.set);
    iso_vision_print_notes("train", &t->test.set);
    if (t->train.set.class_count < 2)
        return iso_fail(e, ISO_ERR_DATA, "%s: training needs two classes at least", plan->data);
    return ISO_OK;
}

static iso_err embed_split(iso_train_outcome *t, const iso_train_plan *plan, iso_train_split *s,
                           iso_error *e)
{
    s->feed = (iso_image_feed){.set = &s->set,
                               .seed = plan->train.seed,
                               .shift = plan->shift,
                               .is_mirrored = plan->is_mirrored};
    if (!s->set.count)
        return ISO_OK;
    return iso_vision_features(&t->vision, &s->set, plan->quiet, &s->features, &s->labels, e);
}

const iso_train_split *iso_train_scored(const iso_train_outcome *t)
{
    return t->has_test ? &t->test : &t->val;
}

/* ---- probe ---- */

static double accuracy_of(const iso_linear_head *h, const float *features, const int *labels,
                          size_t n)
{
    return n ? iso_linear_accuracy(h, features, labels, n) : (double)NAN;
}

static iso_err fit_probe(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    const iso_train_split *s = iso_train_scored(t);
    iso_feature_set train = {t->train.features, t->train.labels, t->train.set.count};
    iso_feature_set val = {t->val.features, t->val.labels, t->val.set.count};
    iso_err err = ISO_OK;
    if (!plan->head_file)
        err = iso_probe_fit(&t->head, plan->probe, &train, &val, iso_model_dim(t->vision.model),
                            t->train.set.class_names, t->train.set.class_count, &t->probe_info, e);
    if (err)
        return err;
    t->chance = 1.0 / (double)t->train.set.class_count;
    t->scored = s->set.count;
    t->probe = accuracy_of(&t->head, s->features, s->labels, s->set.count);
    t->probe_val = accuracy_of(&t->head, t->val.features, t->val.labels, t->val.set.count);
    return ISO_OK;
}

/* ---- adapter ---- */

typedef struct {
    iso_train_outcome *t;
    iso_training *training;
    uint64_t every; /* steps between points of the curve */
} watching;

/* Called after every step: keeps the curve, looks for Ctrl-C. */
static bool watch(void *ctx)
{
    watching *w = ctx;
    iso_training_status s = iso_training_now(w->training);
    iso_train_outcome *t = w->t;
    if ((s.step % w->every == 0 || s.is_done) && t->curve_count < ISO_TRAIN_CURVE_MAX) {
        t->curve_step[t->curve_count] = (double)s.step;
        t->curve_loss[t->curve_count] = s.smooth_loss;
        t->curve_val[t->curve_count] = s.val_accuracy;
        t->curve_count++;
    }
    return iso_cli_interrupted;
}

static iso_train_set as_train_set(iso_train_split *s)
{
    return (iso_train_set){
        .n = s->set.count, .pixels = iso_image_feed_pixels, .ctx = &s->feed, .labels = s->labels};
}

static iso_err make_adapter(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    if (plan->start)
        return iso_adapter_open(&t->vision.adapter, t->vision.backbone, plan->start, e);
    return iso_adapter_create(&t->vision.adapter, t->vision.backbone, &plan->adapter, e);
}

static iso_err train_adapter(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    iso_training_setup setup = {.backbone = t->vision.backbone,
                                .head = &t->head,
                                .train = as_train_set(&t->train),
                                .val = as_train_set(&t->val),
                                .options = plan->train};
    watching w = {.t = t, .every = plan->train.steps / (ISO_TRAIN_CURVE_MAX - 2) + 1};
    iso_err err = make_adapter(t, plan, e);
    if (err || (err = iso_kind_prepare(t, plan, e)))
        return err;
    setup.adapter = t->vision.adapter;
    setup.options.data = iso_images_digest(&t->train.set);
    setup.options.augments = plan->shift > 0 || plan->is_mirrored;
    if ((err = iso_training_open(&w.training, &setup, e)))
        return err;
    t->training_bytes = iso_training_bytes(w.training);
    iso_training_status s = iso_training_now(w.training);
    if (s.resumed && !plan->quiet)
        fprintf(stderr, "isofed train: resumed at step %llu%s\n", (unsigned long long)s.step,
                s.data_changed ? "; the training images changed since the checkpoint" : "");
    if (s.resumed && s.step >= plan->train.steps && !plan->quiet) /* U117 */
        fprintf(stderr,
                "isofed train: checkpoint is at step %llu, the limit is %zu: nothing to do; raise "
                "--steps\n",
                (unsigned long long)s.step, plan->train.steps);
    err = iso_training_run(w.training, watch, &w, &t->status, e);
    iso_training_close(w.training);
    return err ? err : iso_kind_conclude(t, e);
}

/* ---- scores with the adapter ---- */

static iso_err score_adapted(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    const iso_train_split *s = iso_train_scored(t);
    int *labels[3] = {NULL, NULL, NULL};
    float *train = NULL, *val = NULL;
    iso_err err;
    iso_model_close(t->vision.model);
    t->vision.model = NULL;
    if ((err = iso_model_open(&t->vision.model, t->vision.backbone, t->vision.adapter, false, e)) ||
        (err = iso_vision_features(&t->vision, &t->train.set, plan->quiet, &train, &labels[0], e)))
        goto done;
    if (t->val.set.count &&
        (err = iso_vision_features(&t->vision, &t->val.set, plan->quiet, &val, &labels[1], e)))
        goto done;
    if (s->set.count &&
        (err = iso_vision_features(&t->vision, &s->set, plan->quiet, &t->adapted, &labels[2], e)))
        goto done;
    iso_feature_set ft = {train, labels[0], t->train.set.count};
    iso_feature_set fv = {val, labels[1], t->val.set.count};
    if ((err = iso_probe_fit(&t->refit, plan->probe, &ft, &fv, iso_model_dim(t->vision.model),
                             t->train.set.class_names, t->train.set.class_count, NULL, e)))
        goto done;
    t->own = accuracy_of(&t->head, t->adapted, s->labels, s->set.count);
    t->own_refit = accuracy_of(&t->refit, t->adapted, s->labels, s->set.count);
    t->own_val = accuracy_of(&t->head, val, t->val.labels, t->val.set.count);
done:
    free(train);
    free(val);
    for (int k = 0; k < 3; k++)
        free(labels[k]);
    return err;
}

/* ---- public ---- */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A checkpoint that is there is either wanted or in the way. */
static iso_err check_checkpoint(const iso_train_plan *plan, iso_error *e)
{
    const char *file = plan->train.checkpoint;
    bool is_there = file && iso_path_exists(file);
    if (plan->resume && !file)
        return iso_fail(e, ISO_ERR_USAGE, "--resume needs --checkpoint DIR");
    if (plan->resume && !is_there)
        return iso_fail(e, ISO_ERR_USAGE, "nothing to resume: %s is not there", file);
    if (is_there && !plan->resume)
        return iso_fail(e, ISO_ERR_USAGE, "%s is there: go on with --resume, or remove it", file);
    return ISO_OK;
}

iso_err iso_train_load(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    iso_err err = load_data(t, plan, e);
    iso_train_split *all[3] = {&t->train, &t->val, &t->test};
    for (int k = 0; k < 3; k++)
        all[k]->feed = (iso_image_feed){.set = &all[k]->set,
                                        .seed = plan->train.seed,
                                        .shift = plan->shift,
                                        .is_mirrored = plan->is_mirrored};
    return err;
}

iso_err iso_train_run(iso_train_outcome *t, const iso_train_plan *plan, iso_error *e)
{
    double start = now_s();
    iso_err err;
    t->probe = t->own = t->own_refit = t->probe_val = t->own_val = (double)NAN;
    if ((err = check_checkpoint(plan, e)) || (err = load_data(t, plan, e)) ||
        (err = iso_vision_adapt(&t->vision, NULL, e)) ||
        (err = embed_split(t, plan, &t->train, e)) || (err = embed_split(t, plan, &t->val, e)) ||
        (err = embed_split(t, plan, &t->test, e)) || (err = fit_probe(t, plan, e)) ||
        (err = train_adapter(t, plan, e)) || (err = score_adapted(t, plan, e)))
        return err;
    t->seconds = now_s() - start;
    return ISO_OK;
}

void iso_train_outcome_free(iso_train_outcome *t)
{
    split_free(&t->train);
    split_free(&t->val);
    split_free(&t->test);
    iso_linear_free(&t->head);
    iso_linear_free(&t->refit);
    free(t->adapted);
    iso_vision_close(&t->vision);
}
