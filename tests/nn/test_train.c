/* Training: the loop, its checkpoints, optimiser and schedule. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/fsio.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "nn/backbone/random.h"
#include "nn/train/loop.h"
#include "nn/train/optimizer.h"
#include "nn/train/schedule.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIDE = 8, PIXELS = 3 * SIDE * SIDE, IMAGES = 48, VAL = 24, CLASSES = 3, DIM = 16 };

typedef struct {
    iso_backbone *backbone;
    float *train, *val; /* (n, PIXELS) */
    int train_labels[IMAGES], val_labels[VAL];
    char folder[64];
    char checkpoint[128];
} world;

/* A class is a faint pattern under noise. */
static void paint(float *pixels, int *labels, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) {
        iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, i);
        labels[i] = (int)(i % CLASSES);
        for (size_t k = 0; k < PIXELS; k++)
            pixels[i * PIXELS + k] =
                (float)(iso_rng_normal(&r) +
                        0.8 * sin((double)(k * (size_t)(labels[i] + 1)) * 0.3));
    }
}

static int make_world(void **state)
{
    world *w = iso_calloc(1, sizeof *w);
    iso_error e = {0};
    iso_random_vit shape = {.depth = 3,
                            .dim = DIM,
                            .heads = 2,
                            .mlp = 32,
                            .image_size = SIDE,
                            .patch = 4,
                            .classes = CLASSES,
                            .seed = 5};
    if (iso_backbone_random(&w->backbone, &shape, &e))
        fail_msg("%s", e.text);
    w->train = iso_calloc(IMAGES * PIXELS, sizeof(float));
    w->val = iso_calloc(VAL * PIXELS, sizeof(float));
    paint(w->train, w->train_labels, IMAGES, 1);
    paint(w->val, w->val_labels, VAL, 2);
    strcpy(w->folder, "/tmp/iso_train_XXXXXX");
    if (!mkdtemp(w->folder))
        return -1;
    snprintf(w->checkpoint, sizeof w->checkpoint, "%s/run.safetensors", w->folder);
    *state = w;
    return 0;
}

static int drop_world(void **state)
{
    world *w = *state;
    iso_error e;
    iso_backbone_close(w->backbone);
    free(w->train);
    free(w->val);
    if (iso_remove_tree(w->folder, &e))
        return -1;
    free(w);
    return 0;
}

static void give(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const float *pixels = ctx;
    (void)draw;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * PIXELS, pixels + idx[i] * PIXELS, PIXELS * sizeof *out);
}

/* One run's parts; the head starts from class means' directions of the frozen features. */
typedef struct {
    iso_adapter *adapter;
    iso_linear_head head;
    iso_training *training;
    iso_training_setup setup;
} run;

static const char *const NAMES[] = {"a", "b", "c"};

static void open_run(const world *w, run *r, const iso_train_options *o, size_t first_block)
{
    iso_error e = {0};
    iso_adapter_options ao = {.kind = "lora", .rank = 4, .alpha = 8.0, .first_block = first_block};
    if (iso_adapter_create(&r->adapter, w->backbone, &ao, &e) ||
        iso_linear_init(&r->head, CLASSES, DIM, NAMES, &e))
        fail_msg("%s", e.text);
    iso_rng rng = iso_rng_make(3, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < CLASSES * DIM; i++)
        r->head.W[i] = (float)iso_rng_normal(&rng);
    r->setup = (iso_training_setup){.backbone = w->backbone,
                                    .adapter = r->adapter,
                                    .head = &r->head,
                                    .train = {IMAGES, give, w->train, w->train_labels},
                                    .val = {VAL, give, w->val, w->val_labels},
                                    .options = *o};
    if (iso_training_open(&r->training, &r->setup, &e))
        fail_msg("%s", e.text);
}

static void close_run(run *r)
{
    iso_training_close(r->training);
    iso_adapter_close(r->adapter);
    iso_linear_free(&r->head);
}

static iso_train_options options(size_t steps)
{
    iso_train_options o = iso_train_defaults();
    o.seed = 11;
    o.steps = steps;
    o.batch = 10; /* not a multiple of the micro-batch, nor a divisor of the images */
    o.lr = 1e-2;
    o.warmup = 4;
    o.is_quiet = true;
    return o;
}

static void to_end(run *r, iso_training_status *status)
{
    iso_error e = {0};
    if (iso_training_run(r->training, NULL, NULL, status, &e))
        fail_msg("%s", e.text);
}

static void same_result(const run *a, const run *b)
{
    assert_int_equal(a->adapter->param_count, b->adapter->param_count);
    assert_memory_equal(a->adapter->params, b->adapter->params,
                        a->adapter->param_count * sizeof(float));
    assert_memory_equal(a->head.W, b->head.W, CLASSES * DIM * sizeof(float));
    assert_memory_equal(a->head.b, b->head.b, CLASSES * sizeof(float));
}

static void training_learns_in_both_head_modes(void **state)
{
    static const struct {
        const char *name;
        bool joint;
        size_t first_block;
    } rows[] = {{"fixed, all blocks", false, 0},
                {"joint, all blocks", true, 0},
                {"fixed, upper blocks on a kept prefix", false, 2},
                {"joint, upper blocks on a kept prefix", true, 2}};
    const world *w = *state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_train_options o = options(80);
        o.trains_head = rows[i].joint;
        run r;
        open_run(w, &r, &o, rows[i].first_block);
        float head[CLASSES * DIM];
        memcpy(head, r.head.W, sizeof head);
        iso_training_status first, last;
        iso_error e;
        assert_int_equal(iso_training_step(r.training, 1, &first, &e), ISO_OK);
        to_end(&r, &last);
        printf("  %-40s loss %.3f -> %.3f, val %.2f\n", rows[i].name, first.loss, last.smooth_loss,
               last.val_accuracy);
        assert_true(last.is_done && last.step == 80);
        assert_true(last.smooth_loss < 0.5 * first.loss);
        assert_int_equal(memcmp(head, r.head.W, sizeof head) != 0, rows[i].joint);
        close_run(&r);
    }
}

static void same_bits_for_any_number_of_threads(void **state)
{
    const world *w = *state;
    iso_train_options o = options(12);
    o.trains_head = true;
    o.eval_every = 4;
    o.keeps_best = true;
    run one, three;
    iso_set_threads(1);
    open_run(w, &one, &o, 0);
    to_end(&one, NULL);
    iso_set_threads(3);
    open_run(w, &three, &o, 0);
    to_end(&three, NULL);
    iso_set_threads(1);
    same_result(&one, &three);
    close_run(&one);
    close_run(&three);
}

/* A run killed at step k and taken up again ends with the bits of an uncut one, for every k. */
static void U32_a_killed_run_goes_on_to_the_same_bits(void **state)
{
    const world *w = *state;
    iso_train_options o = options(14);
    o.trains_head = true;
    o.eval_every = 3;
    o.keeps_best = true;
    run uncut;
    iso_training_status want, got;
    open_run(w, &uncut, &o, 1);
    to_end(&uncut, &want);
    o.checkpoint = w->checkpoint;
    o.checkpoint_every = 2;
    for (size_t k = 1; k <= 14; k++) {
        run r;
        iso_error e;
        open_run(w, &r, &o, 1);
        assert_int_equal(iso_training_step(r.training, k, &got, &e), ISO_OK);
        close_run(&r); /* nothing is said or written: as a kill */
        open_run(w, &r, &o, 1);
        got = iso_training_now(r.training);
        assert_int_equal(got.resumed, k >= 2);
        assert_int_equal(got.step, k == 14 ? 14 : k / 2 * 2);
        assert_false(got.data_changed);
        to_end(&r, &got);
        same_result(&uncut, &r);
        assert_int_equal(got.best_step, want.best_step);
        assert_true(got.val_accuracy == want.val_accuracy && got.loss == want.loss);
        close_run(&r);
        assert_int_equal(unlink(w->checkpoint), 0);
    }
    close_run(&uncut);
}

static bool stop_after(void *ctx)
{
    size_t *left = ctx;
    return --*left == 0;
}

static void interruption_keeps_a_checkpoint(void **state)
{
    const world *w = *state;
    iso_train_options o = options(20);
    o.checkpoint = w->checkpoint;
    run uncut, r;
    iso_training_status s;
    iso_error e;
    o.checkpoint = NULL;
    open_run(w, &uncut, &o, 0);
    to_end(&uncut, NULL);
    o.checkpoint = w->checkpoint;
    open_run(w, &r, &o, 0);
    size_t left = 7;
    assert_int_equal(iso_training_run(r.training, stop_after, &left, &s, &e), ISO_ERR_INTERRUPTED);
    assert_int_equal(s.step, 7);
    assert_int_equal(s.checkpoint_step, 7);
    assert_non_null(strstr(e.text, w->checkpoint));
    close_run(&r);
    open_run(w, &r, &o, 0);
    assert_int_equal(iso_training_now(r.training).step, 7);
    to_end(&r, NULL);
    same_result(&uncut, &r);
    close_run(&r);
    close_run(&uncut);
    assert_int_equal(unlink(w->checkpoint), 0);
}

static void U60_changed_images_are_noticed_and_another_run_refused(void **state)
{
    const world *w = *state;
    iso_error e = {0};
    iso_train_options o = options(10);
    o.checkpoint = w->checkpoint;
    o.data = iso_digest_of("first", 5);
    run r;
    open_run(w, &r, &o, 0);
    assert_int_equal(iso_training_step(r.training, 3, NULL, &e), ISO_OK);
    assert_int_equal(iso_training_checkpoint(r.training, &e), ISO_OK);
    close_run(&r);
    o.data = iso_digest_of("second", 6);
    open_run(w, &r, &o, 0);
    assert_true(iso_training_now(r.training).data_changed);
    iso_training_setup other = r.setup;
    close_run(&r);

    iso_adapter_options ao = {.kind = "lora", .rank = 4, .alpha = 8.0};
    iso_linear_head head = {0};
    iso_adapter *a;
    iso_training *t = NULL;
    assert_int_equal(iso_adapter_create(&a, w->backbone, &ao, &e), ISO_OK);
    assert_int_equal(iso_linear_init(&head, CLASSES, DIM, NAMES, &e), ISO_OK);
    other.adapter = a;
    other.head = &head; /* zero: another head than the checkpoint's run had */
    assert_int_equal(iso_training_open(&t, &other, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, w->checkpoint));
    /* a torn file */
    assert_int_equal(truncate(w->checkpoint, 100), 0);
    assert_int_equal(iso_training_open(&t, &other, &e), ISO_ERR_DATA);
    assert_int_equal(unlink(w->checkpoint), 0);
    iso_adapter_close(a);
    iso_linear_free(&head);
}

static void a_loss_that_is_no_number_stops_before_it_harms(void **state)
{
    const world *w = *state;
    float *broken = iso_calloc(IMAGES * PIXELS, sizeof *broken);
    memcpy(broken, w->train, IMAGES * PIXELS * sizeof *broken);
    broken[7 * PIXELS + 3] = NAN;
    run r;
    iso_error e = {0};
    iso_train_options o = options(30);
    open_run(w, &r, &o, 0);
    iso_training_setup s = r.setup;
    iso_training_close(r.training);
    s.train.ctx = broken;
    assert_int_equal(iso_training_open(&r.training, &s, &e), ISO_OK);
    float *before = NULL;
    size_t bytes = r.adapter->param_count * sizeof *before;
    before = iso_calloc(1, bytes);
    iso_err err = ISO_OK;
    for (size_t i = 0; i < 30 && !err; i++) {
        memcpy(before, r.adapter->params, bytes);
        err = iso_training_step(r.training, 1, NULL, &e);
    }
    assert_int_equal(err, ISO_ERR_NONFINITE);
    assert_memory_equal(before, r.adapter->params, bytes);
    free(before);
    free(broken);
    close_run(&r);
}

static void patience_ends_a_run_that_no_longer_gains(void **state)
{
    const world *w = *state;
    iso_train_options o = options(400);
    o.eval_every = 5;
    o.patience = 3;
    o.keeps_best = true;
    run r;
    iso_training_status s;
    open_run(w, &r, &o, 0);
    to_end(&r, &s);
    printf("  stopped at %zu, best %zu (val %.2f)\n", (size_t)s.step, (size_t)s.best_step,
           s.best_accuracy);
    assert_true(s.is_done && s.stopped_early && s.step < 400);
    assert_int_equal(s.step - s.best_step, 15);
    /* The result is the best state: scoring it gives the best score. */
    iso_model *m;
    iso_error e;
    assert_int_equal(iso_model_open(&m, w->backbone, r.adapter, false, &e), ISO_OK);
    float *f = iso_calloc(VAL * DIM, sizeof *f), *z = iso_calloc(256 * CLASSES, sizeof *z);
    assert_int_equal(iso_model_features(m, w->val, VAL, f, &e), ISO_OK);
    assert_true(iso_training_score(&r.head, f, w->val_labels, VAL, z, NULL) == s.best_accuracy);
    free(f);
    free(z);
    iso_model_close(m);
    close_run(&r);
}

static void a_kept_prefix_changes_no_feature(void **state)
{
    const world *w = *state;
    iso_error e = {0};
    iso_adapter *a;
    iso_model *m;
    iso_adapter_options ao = {.kind = "lora", .rank = 2, .alpha = 4.0, .first_block = 2};
    assert_int_equal(iso_adapter_create(&a, w->backbone, &ao, &e), ISO_OK);
    for (size_t i = 0; i < a->param_count; i++)
        a->params[i] += 0.02F;
    assert_int_equal(iso_model_open(&m, w->backbone, a, false, &e), ISO_OK);
    float *plain = iso_calloc(IMAGES * DIM, sizeof *plain);
    float *kept = iso_calloc(IMAGES * DIM, sizeof *kept);
    assert_int_equal(iso_model_features(m, w->train, IMAGES, plain, &e), ISO_OK);
    for (size_t block = 0; block <= 2; block++) {
        iso_source s = {.n = IMAGES, .pixels = give, .ctx = w->train};
        iso_prefix p;
        assert_int_equal(iso_model_prefix(m, &s, block, SIZE_MAX, &p, &e), ISO_OK);
        assert_non_null(p.hidden);
        s.prefix = &p;
        s.pixels = NULL; /* must not be asked */
        assert_int_equal(iso_model_features_of(m, &s, NULL, IMAGES, kept, &e), ISO_OK);
        double worst = 0.0;
        for (size_t i = 0; i < IMAGES * DIM; i++)
            worst = fmax(worst, fabs((double)plain[i] - (double)kept[i]));
        assert_true(worst <= 1e-5);
        iso_prefix_free(&p);
    }
    iso_source s = {.n = IMAGES, .pixels = give, .ctx = w->train};
    iso_prefix p;
    assert_int_equal(iso_model_prefix(m, &s, 1, 1000, &p, &e), ISO_OK);
    assert_null(p.hidden); /* over the budget */
    free(plain);
    free(kept);
    iso_model_close(m);
    iso_adapter_close(a);
}

static void wrong_options_are_named(void **state)
{
    const world *w = *state;
    run r;
    iso_error e = {0};
    iso_train_options o = options(5);
    open_run(w, &r, &o, 0);
    iso_training *t = NULL;
    iso_training_setup s = r.setup;
    s.options.steps = 0;
    assert_int_equal(iso_training_open(&t, &s, &e), ISO_ERR_USAGE);
    s = r.setup;
    s.options.batch = 5000;
    assert_int_equal(iso_training_open(&t, &s, &e), ISO_ERR_USAGE);
    s = r.setup;
    s.options.lr = (double)NAN;
    assert_int_equal(iso_training_open(&t, &s, &e), ISO_ERR_USAGE);
    s = r.setup;
    s.train.n = 0;
    assert_int_equal(iso_training_open(&t, &s, &e), ISO_ERR_DATA);
    int bad[IMAGES];
    memcpy(bad, w->train_labels, sizeof bad);
    bad[5] = CLASSES;
    s = r.setup;
    s.train.labels = bad;
    assert_int_equal(iso_training_open(&t, &s, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "image 5 has label 3"));
    close_run(&r);
}

static void schedule_warms_up_and_cools_down(void **state)
{
    static const struct {
        uint64_t steps, warmup, at;
        double share, want;
    } rows[] = {{100, 10, 0, 0.0, 0.1},  {100, 10, 9, 0.0, 1.0},  {100, 10, 10, 0.0, 1.0},
                {100, 10, 99, 0.0, 0.0}, {100, 10, 99, 0.1, 0.1}, {101, 0, 50, 0.0, 0.5},
                {101, 0, 0, 0.0, 1.0},   {1, 0, 0, 0.0, 1.0},     {5, 10, 4, 0.0, 0.5}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_schedule s = {rows[i].steps, rows[i].warmup, rows[i].share};
        double got = iso_schedule_at(&s, rows[i].at);
        if (fabs(got - rows[i].want) > 1e-12)
            fail_msg("row %zu: %g, expected %g", i, got, rows[i].want);
    }
}

static void adamw_follows_its_formula(void **state)
{
    enum { N = 37 };
    float p[N], m[N] = {0}, v[N] = {0};
    double rp[N], rm[N] = {0}, rv[N] = {0};
    (void)state;
    iso_rng r = iso_rng_make(9, ISO_RNG_TEST, 0);
    iso_adamw o = iso_adamw_default(1e-2, 0.1);
    for (size_t i = 0; i < N; i++)
        rp[i] = (double)(p[i] = (float)iso_rng_normal(&r));
    for (uint64_t step = 1; step <= 50; step++) {
        float g[N];
        for (size_t i = 0; i < N; i++)
            g[i] = (float)iso_rng_normal(&r);
        iso_adamw_step(&o, step, N, p, g, 0.5F, m, v);
        for (size_t i = 0; i < N; i++) {
            double x = 0.5 * (double)g[i];
            rm[i] = 0.9 * rm[i] + 0.1 * x;
            rv[i] = 0.999 * rv[i] + 0.001 * x * x;
            double mh = rm[i] / (1.0 - pow(0.9, (double)step));
            double vh = rv[i] / (1.0 - pow(0.999, (double)step));
            rp[i] -= 1e-2 * (mh / (sqrt(vh) + 1e-8) + 0.1 * rp[i]);
        }
    }
    for (size_t i = 0; i < N; i++)
        assert_true(fabs((double)p[i] - rp[i]) <= 2e-5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_learns_in_both_head_modes),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(U32_a_killed_run_goes_on_to_the_same_bits),
        cmocka_unit_test(interruption_keeps_a_checkpoint),
        cmocka_unit_test(U60_changed_images_are_noticed_and_another_run_refused),
        cmocka_unit_test(a_loss_that_is_no_number_stops_before_it_harms),
        cmocka_unit_test(patience_ends_a_run_that_no_longer_gains),
        cmocka_unit_test(a_kept_prefix_changes_no_feature),
        cmocka_unit_test(wrong_options_are_named),
        cmocka_unit_test(schedule_warms_up_and_cools_down),
        cmocka_unit_test(adamw_follows_its_formula)};
    return cmocka_run_group_tests(tests, make_world, drop_world);
}
