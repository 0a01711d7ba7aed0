/* isofed eval: scores a backbone with an adapter and a head on a split of a data folder, as
 * delivered and, on request, with the head refitted on the training split's adapted features
 * (DESIGN 2, Heads). Chance and the spread that the number of images allows stand beside. */
#include "cli/command.h"
#include "cli/eval_fold.h"
#include "cli/table.h"
#include "cli/vision.h"
#include "core/args.h"
#include "core/json.h"
#include "nn/head/probe.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    const char *backbone, *adapter, *head, *data, *split;
    bool refit, allow_unreadable, json, quiet;
} options;

static const iso_arg_row rows[] = {
    {"backbone", 0, ISO_ARG_STRING, offsetof(options, backbone), "DIR", "Hugging Face folder", 0, 0,
     NULL},
    {"adapter", 0, ISO_ARG_STRING, offsetof(options, adapter), "DIR",
     "PEFT folder; none: the frozen backbone", 0, 0, NULL},
    {"head", 0, ISO_ARG_STRING, offsetof(options, head), "FILE",
     "head.safetensors; none: only the refitted head is scored", 0, 0, NULL},
    {"data", 0, ISO_ARG_STRING, offsetof(options, data), "DIR",
     "task folder: split/class/file, or texts.tsv", 0, 0, NULL},
    {"split", 0, ISO_ARG_STRING, offsetof(options, split), "NAME", "split to score", 0, 0, NULL},
    {"refit", 0, ISO_ARG_FLAG, offsetof(options, refit), NULL,
     "also refit the head on the training split", 0, 0, NULL},
    {"allow-unreadable", 0, ISO_ARG_FLAG, offsetof(options, allow_unreadable), NULL,
     "go on however many files cannot be read", 0, 0, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "print one JSON object", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "no progress", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed eval --backbone DIR --data DIR [options]",
    .summary = "Score an adapter and head on labelled images or texts.",
    .example = "isofed eval --backbone models/embedded --adapter out --head out/head.safetensors "
               "--data demo-data/tops --refit",
    .rows = rows,
};

typedef struct {
    iso_image_set set;
    float *features;
    int *labels;
} scored_set;

static void scored_free(scored_set *s)
{
    free(s->features);
    free(s->labels);
    iso_images_free(&s->set);
}

static iso_err load(scored_set *s, const iso_vision *v, const options *o, const char *split,
                    const iso_linear_head *h, iso_error *e)
{
    iso_image_options io = {.folder = o->data,
                            .split = split,
                            .allow_unreadable = o->allow_unreadable,
                            .class_names = h ? h->class_names : NULL,
                            .class_count = h ? h->classes : 0};
    iso_err err = iso_vision_load(v, &s->set, &io, e);
    if (err)
        return err;
    iso_vision_print_notes("eval", &s->set);
    return iso_vision_features(v, &s->set, o->quiet, &s->features, &s->labels, e);
}

/* Fits a head on the training split (penalty by leave-one-out). */
static iso_err refit(iso_linear_head *out, const iso_vision *v, const options *o,
                     const iso_linear_head *h, const scored_set *test, iso_error *e)
{
    scored_set train = {0};
    iso_err err = load(&train, v, o, "train", h, e);
    if (!err) {
        iso_feature_set f = {train.features, train.labels, train.set.count};
        err = iso_probe_fit(out, ISO_PROBE_RIDGE, &f, NULL, iso_model_dim(v->model),
                            test->set.class_names, test->set.class_count, NULL, e);
    }
    scored_free(&train);
    return err;
}

/* Scores a head; the result goes into object `key` of the answer. */
static iso_err score(iso_json *answer, const char *key, const iso_linear_head *h,
                     const scored_set *s, double *accuracy, iso_error *e)
{
    size_t n = s->set.count, C = h->classes;
    int *predicted = iso_calloc(n, sizeof *predicted);
    float *logits = iso_calloc(n, C * sizeof *logits);
    uint64_t *counts = iso_calloc(C * C, sizeof *counts);
    iso_json *o = iso_json_object(), *confusion = iso_json_array();
    iso_err err = ISO_OK;
    if (!predicted || !logits || !counts) {
        err = iso_nomem(e, n * C * sizeof *logits);
        iso_json_free(o);
        iso_json_free(confusion);
        goto done;
    }
    iso_linear_predict(h, s->features, n, predicted);
    iso_linear_logits(h, s->features, n, logits);
    iso_confusion(predicted, s->labels, n, C, counts);
    *accuracy = iso_accuracy(predicted, s->labels, n);
    for (size_t c = 0; c < C; c++) {
        iso_json *row = iso_json_array();
        for (size_t p = 0; p < C; p++)
            iso_json_push(row, iso_json_integer((int64_t)counts[c * C + p]));
        iso_json_push(confusion, row);
    }
    iso_json_set(o, "accuracy", iso_json_real(*accuracy));
    iso_json_set(o, "balanced_accuracy", iso_json_real(iso_balanced_accuracy(counts, C)));
    iso_json_set(o, "half_width_95", iso_json_real(iso_binomial_half_width(*accuracy, n)));
    iso_json_set(o, "loss", iso_json_real(iso_cross_entropy(logits, s->labels, n, C)));
    iso_json_set(o, "confusion", confusion);
    if (!iso_json_set(answer, key, o))
        err = iso_nomem(e, 0);
done:
    free(predicted);
    free(logits);
    free(counts);
    return err;
}

static void print_text(const scored_set *s, const char *noun, const char *split, double delivered,
                       double refitted)
{
    size_t n = s->set.count;
    printf("%zu %s of %zu classes, split %s\n", n, noun, s->set.class_count, split);
    printf("  chance        %5.1f %%\n", 100.0 / (double)s->set.class_count);
    if (!isnan(delivered))
        printf("  as delivered  %5.1f %%  +- %.1f\n", 100 * delivered,
               100 * iso_binomial_half_width(delivered, n));
    if (!isnan(refitted))
        printf("  head refitted %5.1f %%  +- %.1f\n", 100 * refitted,
               100 * iso_binomial_half_width(refitted, n));
}

/* DATA: what its gates folded into the weights would change. */
static void put_folded(iso_json *answer, const iso_eval_fold *f)
{
    iso_json *j = f->is_there ? iso_json_object() : NULL;
    if (!j)
        return;
    iso_json_set(j, "accuracy", iso_json_real(f->accuracy));
    iso_json_set(j, "relative_error", iso_json_real(f->error.relative));
    iso_json_set(j, "largest_error", iso_json_real(f->error.largest));
    iso_json_set(j, "agreement", iso_json_real(f->error.agreement));
    iso_json_set(answer, "folded", j);
}

static iso_err evaluate(const options *o, iso_vision *v, iso_error *e)
{
    scored_set test = {0};
    iso_linear_head h = {0}, again = {0};
    iso_json *answer = iso_json_object(), *names = iso_json_array();
    double delivered = (double)NAN, refitted = (double)NAN;
    iso_eval_fold folded = {0};
    iso_err err = ISO_OK;
    if (!o->data)
        err = iso_fail(e, ISO_ERR_USAGE, "say what to score: --data DIR");
    else if (!o->head && !o->refit)
        err = iso_fail(e, ISO_ERR_USAGE, "give --head FILE, or --refit to fit one here");
    if (err || (err = iso_vision_open(v, "eval", o->backbone, e)) ||
        (o->head && (err = iso_vision_head(v, o->head, &h, e))) ||
        (err = iso_vision_adapt(v, o->adapter, e)) ||
        (err = load(&test, v, o, o->split, o->head ? &h : NULL, e)))
        goto done;
    for (size_t c = 0; c < test.set.class_count; c++)
        iso_json_push(names, iso_json_string(test.set.class_names[c]));
    iso_json_set(answer, "classes", names);
    names = NULL;
    iso_json_set(answer, "split", iso_json_string(o->split));
    iso_json_set(answer, "samples", iso_json_integer((int64_t)test.set.count));
    iso_json_set(answer, "unreadable", iso_json_integer((int64_t)test.set.unreadable_count));
    iso_json_set(answer, "chance", iso_json_real(1.0 / (double)test.set.class_count));
    if (o->head && ((err = score(answer, "delivered", &h, &test, &delivered, e)) ||
                    (err = iso_eval_fold_of(v, &test.set, &h, test.features, test.labels, o->quiet,
                                            &folded, e))))
        goto done;
    put_folded(answer, &folded);
    if (o->refit && ((err = refit(&again, v, o, o->head ? &h : NULL, &test, e)) ||
                     (err = score(answer, "refit", &again, &test, &refitted, e))))
        goto done;
    if (!o->json && folded.is_there)
        printf(
            "gates folded: %.1f %%, %.1f %% of the labels as per sample, logits off by %.1f %%\n",
            100 * folded.accuracy, 100 * folded.error.agreement, 100 * folded.error.relative);
    if (o->json)
        iso_json_print(answer);
    else
        print_text(&test, iso_vision_noun(v), o->split, delivered, refitted);
done:
    iso_linear_free(&h);
    iso_linear_free(&again);
    scored_free(&test);
    iso_json_free(names);
    iso_json_free(answer);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {.split = "test"};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_vision v = {0};
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && !is_done)
        err = evaluate(&o, &v, &e);
    iso_vision_close(&v);
    return err ? iso_cli_fail("eval", err, &e) : 0;
}

const iso_command iso_cmd_eval = {"eval", "score an adapter and head on labelled images or texts",
                                  run};
