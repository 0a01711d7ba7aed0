/* Golden cases of speech (golden/factorization): log-mel, CTC and decoding, made independently. */
#include "tests/golden/manifest_cases.h"

#include "nn/data/logmel.h"
#include "nn/head/ctc.h"

static void log_mel(golden_case *c)
{
    iso_error e = {0};
    size_t n;
    iso_mel_shape s = {golden_size(c, "sample_rate"), golden_size(c, "n_fft"),
                       golden_size(c, "hop"), golden_size(c, "n_mels")};
    float *x = golden_f32(c, "x", &n);
    size_t frames = iso_mel_frames(&s, n), bins = s.n_fft / 2 + 1;
    float *filters = iso_calloc(s.mels * bins, sizeof *filters);
    float *y = iso_calloc(s.mels * frames, sizeof *y);
    iso_mel_filters(&s, filters);
    golden_compare(c, "filters", filters, s.mels * bins);
    if (iso_log_mel(&s, x, n, y, &e))
        fail_msg("%s", e.text);
    golden_compare(c, "y", y, s.mels * frames);
    free(x);
    free(filters);
    free(y);
}

static int *labels_of(const golden_case *c, const char *key, size_t *n)
{
    const iso_json *list = iso_json_key(c->params, key);
    *n = iso_json_count(list);
    int *out = iso_calloc(*n, sizeof *out);
    for (size_t i = 0; i < *n; i++) {
        int64_t v;
        assert_true(iso_json_int(iso_json_at(list, i), &v));
        out[i] = (int)v;
    }
    return out;
}

static iso_err loss_of(const golden_case *c, double *loss, float **dlogits, size_t *count,
                       iso_error *e)
{
    size_t length, frames = golden_need(c, "logits")->shape[0];
    int *target = labels_of(c, "target", &length);
    float *logits = golden_f32(c, "logits", count);
    size_t classes = *count / frames;
    double *scratch = iso_calloc(iso_ctc_scratch(frames, classes, length), sizeof *scratch);
    *dlogits = iso_calloc(*count, sizeof **dlogits);
    iso_err err = iso_ctc_loss(logits, frames, classes, target, length,
                               (int)golden_size(c, "blank"), 1.0, loss, *dlogits, scratch, e);
    free(target);
    free(logits);
    free(scratch);
    return err;
}

static void ctc(golden_case *c)
{
    iso_error e = {0};
    double loss;
    float *dlogits;
    size_t n;
    if (loss_of(c, &loss, &dlogits, &n, &e))
        fail_msg("%s", e.text);
    golden_compare_number(c, "loss", loss);
    golden_compare(c, "dlogits", dlogits, n);
    free(dlogits);
}

static void ctc_impossible(golden_case *c)
{
    iso_error e = {0};
    double loss = 7.0;
    float *dlogits;
    size_t n;
    assert_int_equal(loss_of(c, &loss, &dlogits, &n, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "cannot hold"));
    assert_true(loss == 7.0);
    c->compared++;
    free(dlogits);
}

static void expect_labels(golden_case *c, const char *key, const int *got, size_t n)
{
    size_t count;
    int *want = labels_of(c, key, &count);
    c->compared++;
    if (count != n || memcmp(want, got, n * sizeof *got) != 0) {
        printf("FAILED: %s: %s differs\n", c->name, key);
        c->failed++;
    }
    free(want);
}

static void decode(golden_case *c)
{
    iso_error e = {0};
    size_t count, frames = golden_need(c, "log_probs")->shape[0], length;
    double *lp = golden_f64(c, "log_probs", &count), score,
           want = golden_number(c, "beam_log_prob", 0);
    float *narrow = golden_f32(c, "log_probs", NULL);
    int *out = iso_calloc(frames, sizeof *out), blank = (int)golden_size(c, "blank");
    length = iso_ctc_greedy(narrow, frames, count / frames, blank, out);
    expect_labels(c, "greedy", out, length);
    if (iso_ctc_beam(lp, frames, count / frames, blank, golden_size(c, "beam_width"), out, &length,
                     &score, &e))
        fail_msg("%s", e.text);
    expect_labels(c, "beam", out, length);
    c->compared++;
    if (!(fabs(score - want) <= c->rtol * fabs(want))) {
        printf("FAILED: %s: log probability %.9g, expected %.9g\n", c->name, score, want);
        c->failed++;
    }
    free(lp);
    free(narrow);
    free(out);
}

static void golden_speech(void **state)
{
    static const char adapters[] = "tests/golden/test_factorization.c, tests/golden/test_merging.c";
    static const golden_kind kinds[] = {{"log_mel", log_mel, NULL},
                                        {"ctc", ctc, NULL},
                                        {"ctc_impossible", ctc_impossible, NULL},
                                        {"decode", decode, NULL},
                                        {"factorised_linear", NULL, adapters},
                                        {"factorised_identity", NULL, adapters},
                                        {"centralize", NULL, adapters},
                                        {0}};
    (void)state;
    run_golden("factorization", kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_speech)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
