/* isofed train: fits a probe on frozen features, trains an adapter, prints chance, probe and own
 * score side by side, and writes a PEFT folder with head.safetensors and metadata.json. With
 * --check it only looks at the data. */
#include "cli/command.h"
#include "cli/table.h"
#include "cli/train_check.h"
#include "cli/train_kinds.h"
#include "cli/train_report.h"
#include "cli/train_sequence.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/parallel.h"
#include "core/progress.h"
#include "nn/adapter/factorised.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_FIXED, HEAD_JOINT };

typedef struct {
    const char *backbone, *data, *out, *report, *checkpoint, *head_file, *start, *adapter,
        *sequence;
    int64_t rank, steps, batch, seed, limit, threads, warmup, eval_every, patience, shift,
        first_block;
    double alpha, lr, head_lr, weight_decay, val_share;
    int head, probe, mode;
    iso_arg_list targets;
    iso_kind_options kinds;
    bool rslora, mirror, resume, check, allow_unreadable, last, json, quiet;
} options;

static const char *const head_modes[] = {"fixed", "joint", NULL};
static const char *const probe_kinds[] = {"ridge", "logistic", "means", NULL};

static const iso_arg_row rows[] = {
    {"backbone", 0, ISO_ARG_STRING, offsetof(options, backbone), "DIR",
     "Hugging Face folder: ViT, DeiT, DINOv2, CLIP; BERT for texts", 0, 0, NULL},
    {"data", 0, ISO_ARG_STRING, offsetof(options, data), "DIR",
     "task folder: train/class/file, also val/ and test/; or texts.tsv", 0, 0, NULL},
    {"out", 'o', ISO_ARG_STRING, offsetof(options, out), "DIR", "where the adapter goes", 0, 0,
     NULL},
    {"check", 0, ISO_ARG_FLAG, offsetof(options, check), NULL,
     "only look at the data: classes, counts, bad files, duplicates", 0, 0, NULL},
    {"sequence", 0, ISO_ARG_STRING, offsetof(options, sequence), "FILE",
     "task folders, one a line, learnt one after the other: the accuracy matrix", 0, 0, NULL},
    {"mode", 0, ISO_ARG_ENUM, offsetof(options, mode), "WORD",
     "sequence: train one adapter on, a fresh one a task, or none", 0, 0, iso_sequence_modes},
    {"adapter", 0, ISO_ARG_STRING, offsetof(options, adapter), "KIND",
     "kind of adapter: lora, data, toast, factorised", 0, 0, NULL},
    {"rank", 0, ISO_ARG_INT, offsetof(options, rank), "N", "rank", 1, 4096, NULL},
    {"alpha", 0, ISO_ARG_DOUBLE, offsetof(options, alpha), "X", "scale is alpha / rank", 1e-6, 1e6,
     NULL},
    {"rslora", 0, ISO_ARG_FLAG, offsetof(options, rslora), NULL, "scale is alpha / sqrt(rank)", 0,
     0, NULL},
    {"targets", 0, ISO_ARG_LIST, offsetof(options, targets), "NAMES",
     "modules to adapt, by the end of their names (all linears)", 0, 0, NULL},
    {"first-block", 0, ISO_ARG_INT, offsetof(options, first_block), "N",
     "blocks below stay frozen (and are computed once)", 0, 1000, NULL},
    {"form", 0, ISO_ARG_ENUM, offsetof(options, kinds.form), "FORM",
     "factorised: which factors; --rank is their k", 0, 0, iso_factor_forms},
    {"rank-lo", 0, ISO_ARG_INT, offsetof(options, kinds.rank_lo), "N", "data: low rank", 1, 4096,
     NULL},
    {"rank-hi", 0, ISO_ARG_INT, offsetof(options, kinds.rank_hi), "N", "data: high rank", 1, 4096,
     NULL},
    {"prompts", 0, ISO_ARG_INT, offsetof(options, kinds.prompts), "N",
     "data: rows of a gate, a task", 1, 4096, NULL},
    {"gap", 0, ISO_ARG_INT, offsetof(options, kinds.gap), "N", "data: blocks that share a gate", 1,
     1000, NULL},
    {"reduce", 0, ISO_ARG_ENUM, offsetof(options, kinds.reduce), "WORD",
     "data: gates over the tokens' mean, or sum as published", 0, 0, iso_reduce_choices},
    {"ortho", 0, ISO_ARG_DOUBLE, offsetof(options, kinds.ortho), "X",
     "data: weight of the orthogonality penalty", 0, 1e6, NULL},
    {"fixed-gate", 0, ISO_ARG_DOUBLE, offsetof(options, kinds.fixed_gate), "X",
     "data: this constant instead of gates (the control)", 0, 1, NULL},
    {"restore-every", 0, ISO_ARG_DOUBLE, offsetof(options, kinds.restore_every), "X",
     "restoration each time this share of the steps is done (0: off)", 0, 1, NULL},
    {"restore-p", 0, ISO_ARG_DOUBLE, offsetof(options, kinds.restore_p), "X",
     "share of the adapter that returns to its start then", 0, 1, NULL},
    {"full", 0, ISO_ARG_FLAG, offsetof(options, kinds.full), NULL,
     "toast: train the chain whole, not low-rank parts", 0, 0, NULL},
    {"train-p", 0, ISO_ARG_FLAG, offsetof(options, kinds.train_p), NULL,
     "toast: train the transform after the selection", 0, 0, NULL},
    {"value-bias", 0, ISO_ARG_ENUM, offsetof(options, kinds.value_bias), "WORD",
     "toast: value bias once, or twice as published", 0, 0, iso_value_bias_choices},
    {"stage", 0, ISO_ARG_INT, offsetof(options, kinds.stage), "N",
     "toast: 1 makes the start tensors of a backbone", 1, 2, NULL},
    {"stage1-by", 0, ISO_ARG_ENUM, offsetof(options, kinds.stage1), "WORD",
     "toast: closed form, or training with the reconstruction loss", 0, 0, iso_stage1_choices},
    {"recon", 0, ISO_ARG_DOUBLE, offsetof(options, kinds.recon), "X",
     "toast: weight of the reconstruction in stage 1", 0, 1e6, NULL},
    {"steps", 0, ISO_ARG_INT, offsetof(options, steps), "N", "steps", 1, 1e7, NULL},
    {"batch", 0, ISO_ARG_INT, offsetof(options, batch), "N", "images a step", 1, 4096, NULL},
    {"lr", 0, ISO_ARG_DOUBLE, offsetof(options, lr), "X", "peak learning rate", 1e-9, 10, NULL},
    {"head-lr", 0, ISO_ARG_DOUBLE, offsetof(options, head_lr), "X",
     "the head's, with --head joint (0: lr)", 0, 10, NULL},
    {"weight-decay", 0, ISO_ARG_DOUBLE, offsetof(options, weight_decay), "X", "weight decay", 0, 10,
     NULL},
    {"warmup", 0, ISO_ARG_INT, offsetof(options, warmup), "N", "steps of warm-up", 0, 1e6, NULL},
    {"head", 0, ISO_ARG_ENUM, offsetof(options, head), "MODE",
     "fixed: stays as fitted; joint: trained with the adapter", 0, 0, head_modes},
    {"probe", 0, ISO_ARG_ENUM, offsetof(options, probe), "KIND", "how the head is fitted", 0, 0,
     probe_kinds},
    {"head-file", 0, ISO_ARG_STRING, offsetof(options, head_file), "FILE",
     "take this head instead of fitting one", 0, 0, NULL},
    {"start", 0, ISO_ARG_STRING, offsetof(options, start), "DIR",
     "start from this adapter instead of a fresh one", 0, 0, NULL},
    {"shift", 0, ISO_ARG_INT, offsetof(options, shift), "PX",
     "move training images by up to this many pixels", 0, 64, NULL},
    {"mirror", 0, ISO_ARG_FLAG, offsetof(options, mirror), NULL, "mirror half of them", 0, 0, NULL},
    {"limit-per-class", 0, ISO_ARG_INT, offsetof(options, limit), "N",
     "train on the first N of each class (0: all)", 0, 1e9, NULL},
    {"val-share", 0, ISO_ARG_DOUBLE, offsetof(options, val_share), "X",
     "share of train kept for validation when there is no val folder", 0, 0.9, NULL},
    {"eval-every", 0, ISO_ARG_INT, offsetof(options, eval_every), "N",
     "steps between validations (0: only at the end)", 0, 1e7, NULL},
    {"patience", 0, ISO_ARG_INT, offsetof(options, patience), "N",
     "stop after N validations without gain (0: never)", 0, 1e6, NULL},
    {"last", 0, ISO_ARG_FLAG, offsetof(options, last), NULL,
     "keep the last state, not the best by validation", 0, 0, NULL},
    {"checkpoint", 0, ISO_ARG_STRING, offsetof(options, checkpoint), "DIR",
     "folder for the state of an unfinished run", 0, 0, NULL},
    {"resume", 0, ISO_ARG_FLAG, offsetof(options, resume), NULL, "go on from the checkpoint", 0, 0,
     NULL},
    {"seed", 0, ISO_ARG_INT, offsetof(options, seed), "N", "seed of all chance", 0, 1e15, NULL},
    {"threads", 0, ISO_ARG_INT, offsetof(options, threads), "N",
     "threads (0: all processors); the result is the same", 0, 1024, NULL},
    {"allow-unreadable", 0, ISO_ARG_FLAG, offsetof(options, allow_unreadable), NULL,
     "go on however many files cannot be read", 0, 0, NULL},
    {"report", 0, ISO_ARG_STRING, offsetof(options, report), "FILE", "write an HTML page", 0, 0,
     NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "print one JSON object", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "no progress", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed train --backbone DIR --data DIR -o OUT [options]\n"
             "       isofed train --sequence FILE --backbone DIR -o OUT [options]\n"
             "       isofed train --check DATA",
    .summary = "Train an adapter on labelled images or texts; or check a data folder.",
    .example = "isofed train --backbone models/embedded --data demo-data/tops -o out",
    .rows = rows,
    .max_words = 1,
};

/* ---- results ---- */

static iso_json *as_json(const iso_train_outcome *t, const iso_train_plan *p, const options *o)
{
    char hex[ISO_DIGEST_HEX];
    iso_json *j = iso_json_object(), *classes = iso_json_array(), *counts = iso_json_array();
    iso_digest data = iso_images_digest(&t->train.set);
    iso_json_set(j, "format", iso_json_string("isofed-training"));
    iso_json_set(j, "version", iso_json_integer(1));
    iso_json_set(j, "task", iso_json_string(iso_path_base(p->data)));
    for (size_t c = 0; c < t->head.classes; c++) {
        int64_t n = 0;
        for (size_t i = 0; i < t->train.set.count; i++)
            n += t->train.labels[i] == (int)c;
        iso_json_push(classes, iso_json_string(t->head.class_names[c]));
        iso_json_push(counts, iso_json_integer(n));
    }
    iso_json_set(j, "classes", classes);
    iso_json_set(j, "class_counts", counts);
    iso_json_set(j, "samples", iso_json_integer((int64_t)t->train.set.count));
    iso_json_set(j, "validation_samples", iso_json_integer((int64_t)t->val.set.count));
    iso_json_set(j, "scored_on", iso_json_string(t->has_test ? "test" : "val"));
    iso_json_set(j, "scored_samples", iso_json_integer((int64_t)t->scored));
    iso_json_set(
        j, "unreadable",
        iso_json_integer((int64_t)(t->train.set.unreadable_count + t->val.set.unreadable_count +
                                   t->test.set.unreadable_count)));
    iso_json_set(j, "image_bytes", iso_json_integer((int64_t)t->train.set.file_bytes));
    iso_json_set(j, "chance", iso_json_real(t->chance));
    iso_json_set(j, "probe", iso_json_real(t->probe));
    iso_json_set(j, "own", iso_json_real(t->own));
    iso_json_set(j, "own_refit", iso_json_real(t->own_refit));
    iso_json_set(j, "probe_val", iso_json_real(t->probe_val));
    iso_json_set(j, "own_val", iso_json_real(t->own_val));
    iso_json_set(j, "probe_train_loss", iso_json_real(t->probe_info.train_loss));
    iso_json_set(j, "train_loss", iso_json_real(t->status.smooth_loss));
    iso_json_set(j, "steps", iso_json_integer((int64_t)t->status.step));
    iso_json_set(j, "best_step", iso_json_integer((int64_t)t->status.best_step));
    iso_json_set(j, "stopped_early", iso_json_boolean(t->status.stopped_early));
    iso_json_set(j, "batch", iso_json_integer(o->batch));
    iso_json_set(j, "lr", iso_json_real(o->lr));
    iso_json_set(j, "head", iso_json_string(head_modes[o->head]));
    iso_json_set(j, "adapter", iso_json_string(t->vision.adapter->kind->name));
    iso_json_set(j, "parameters", iso_json_integer((int64_t)t->vision.adapter->param_count));
    iso_json_set(j, "seed", iso_json_integer(o->seed));
    iso_hex(hex, t->vision.backbone->generation.b, ISO_DIGEST_BYTES);
    iso_json_set(j, "backbone", iso_json_string(hex));
    iso_hex(hex, data.b, ISO_DIGEST_BYTES);
    iso_json_set(j, "data", iso_json_string(hex));
    return j;
}

static void print_text(const iso_train_outcome *t, const iso_train_plan *p, const char *out)
{
    char took[32];
    iso_duration_text(took, sizeof took, t->seconds);
    const char *noun = iso_vision_noun(&t->vision);
    printf("%s: %zu training, %zu validation %s of %zu classes; scored on %zu %s %s\n",
           iso_path_base(p->data), t->train.set.count, t->val.set.count, noun, t->head.classes,
           t->scored, t->has_test ? "test" : "validation", noun);
    printf("  chance            %5.1f %%\n", 100 * t->chance);
    if (t->scored) {
        printf("  probe             %5.1f %%  +- %.1f\n", 100 * t->probe,
               100 * iso_binomial_half_width(t->probe, t->scored));
        printf("  own adapter       %5.1f %%  +- %.1f\n", 100 * t->own,
               100 * iso_binomial_half_width(t->own, t->scored));
        printf("  own, head refit   %5.1f %%\n", 100 * t->own_refit);
    }
    printf("%llu steps, loss %.3f, %s; adapter in %s\n", (unsigned long long)t->status.step,
           t->status.smooth_loss, took, out);
}

static iso_err save(const iso_train_outcome *t, const iso_train_plan *p, const options *o,
                    const iso_json *answer, iso_error *e)
{
    iso_buf text = {0};
    char *head = iso_path_join(o->out, "head.safetensors");
    char *meta = iso_path_join(o->out, "metadata.json");
    iso_err err = head && meta ? iso_make_dirs(o->out, 0755, e) : iso_nomem(e, strlen(o->out));
    if (!err &&
        !(err =
              iso_adapter_write(t->vision.adapter, o->out, iso_path_base(o->backbone), NULL, e)) &&
        !(err = iso_kind_save_folded(t, o->out, iso_path_base(o->backbone), e)) &&
        !(err = iso_linear_save(&t->head, head, e)) &&
        !(err = iso_json_dump(answer, ISO_JSON_PRETTY, &text, e)))
        err = iso_write_file(meta, text.data, text.size, 0644, e);
    if (!err && o->report)
        err = iso_train_report(t, p, iso_path_base(p->data), o->report, e);
    free(head);
    free(meta);
    iso_buf_free(&text);
    return err;
}

/* ---- the command ---- */

static iso_train_plan plan_of(const options *o, const char *checkpoint)
{
    iso_train_plan p = {.data = o->data,
                        .limit_per_class = (size_t)o->limit,
                        .val_share = o->val_share,
                        .allow_unreadable = o->allow_unreadable,
                        .quiet = o->quiet,
                        .resume = o->resume,
                        .probe = (iso_probe_kind)o->probe,
                        .head_file = o->head_file,
                        .start = o->start,
                        .shift = (int)o->shift,
                        .is_mirrored = o->mirror,
                        .train = iso_train_defaults()};
    p.adapter = (iso_adapter_options){.kind = o->adapter,
                                      .rank = (size_t)o->rank,
                                      .alpha = o->alpha,
                                      .use_rslora = o->rslora,
                                      .targets = o->targets.items,
                                      .target_count = o->targets.count,
                                      .first_block = (size_t)o->first_block,
                                      .seed = (uint64_t)o->seed};
    p.train.seed = (uint64_t)o->seed;
    p.train.steps = (size_t)o->steps;
    p.train.batch = (size_t)o->batch;
    p.train.lr = o->lr;
    p.train.head_lr = o->head_lr;
    p.train.weight_decay = o->weight_decay;
    p.train.warmup = (size_t)o->warmup < p.train.steps ? (size_t)o->warmup : p.train.steps / 10;
    p.train.trains_head = o->head == HEAD_JOINT;
    p.train.eval_every = (size_t)o->eval_every;
    p.train.patience = (size_t)o->patience;
    p.train.keeps_best = !o->last;
    p.train.checkpoint = checkpoint;
    p.train.checkpoint_every = checkpoint ? 100 : 0;
    p.train.is_quiet = o->quiet;
    return p;
}

static iso_err train(const options *o, iso_error *e)
{
    char *checkpoint = NULL;
    iso_json *answer = NULL;
    iso_err err = ISO_OK;
    iso_train_outcome *t = iso_calloc(1, sizeof *t); /* the curves make it large */
    if (!t)
        return iso_nomem(e, sizeof *t);
    if (!o->data && !o->sequence)
        err = iso_fail(e, ISO_ERR_USAGE, "say what to train on: --data DIR");
    else if (!o->out)
        err = iso_fail(e, ISO_ERR_USAGE, "say where the adapter goes: -o DIR");
    else if (o->checkpoint && !(err = iso_make_dirs(o->checkpoint, 0755, e)) &&
             !(checkpoint = iso_path_join(o->checkpoint, "training.safetensors")))
        err = iso_nomem(e, strlen(o->checkpoint));
    if (err)
        goto done;
    iso_train_plan plan = plan_of(o, checkpoint);
    if (o->sequence) {
        if (!(err = iso_kind_apply(&o->kinds, &plan, e)))
            err = iso_train_sequence(o->backbone, o->sequence, &plan, (iso_sequence_mode)o->mode,
                                     o->out, o->report, o->json, e);
        goto done;
    }
    if ((err = iso_kind_apply(&o->kinds, &plan, e)) ||
        (err = iso_vision_open(&t->vision, "train", o->backbone, e)))
        goto done;
    if (plan.train.is_stage1 && o->kinds.stage1 == 0) {
        if (!(err = iso_train_load(t, &plan, e)))
            err = iso_kind_ridge(t, &plan, o->out, e);
        goto done;
    }
    if ((err = iso_train_run(t, &plan, e))) {
        if (err == ISO_ERR_INTERRUPTED && checkpoint)
            fprintf(stderr, "isofed train: state is in %s; go on with --resume\n", checkpoint);
        goto done;
    }
    answer = as_json(t, &plan, o);
    if ((err = save(t, &plan, o, answer, e)) ||
        (plan.train.is_stage1 && (err = iso_kind_save_start(t, o->out, e))))
        goto done;
    /* what depends on the machine is said, not stored */
    iso_json_set(answer, "training_bytes", iso_json_integer((int64_t)t->training_bytes));
    iso_json_set(answer, "seconds", iso_json_real(t->seconds));
    if (o->json)
        iso_json_print(answer);
    else
        print_text(t, &plan, o->out);
done:
    iso_json_free(answer);
    iso_train_outcome_free(t);
    free(t);
    free(checkpoint);
    return err;
}

static int run(int argc, char **argv)
{
    iso_train_options d = iso_train_defaults();
    options o = {.adapter = "lora",
                 .kinds = iso_kind_defaults(),
                 .rank = 8,
                 .alpha = 16,
                 .steps = (int64_t)d.steps,
                 .batch = (int64_t)d.batch,
                 .lr = d.lr,
                 .weight_decay = d.weight_decay,
                 .warmup = (int64_t)d.warmup,
                 .eval_every = 50,
                 .val_share = 0.2,
                 .seed = 1};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && !is_done) {
        iso_set_threads((int)o.threads);
        if (words.count && !o.data)
            o.data = words.items[0];
        else if (words.count)
            err = iso_fail(&e, ISO_ERR_USAGE, "\"%.60s\" is one word too many", words.items[0]);
        if (!err && o.check && !o.data)
            err = iso_fail(&e, ISO_ERR_USAGE, "say what to check: isofed train --check DATA");
        if (!err)
            err = o.check ? iso_train_check(o.data, o.json, &e) : train(&o, &e);
    }
    return err ? iso_cli_fail("train", err, &e) : 0;
}

const iso_command iso_cmd_train = {"train", "train an adapter on labelled images", run};
