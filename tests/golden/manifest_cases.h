/* Golden cases of one topic: the loop over a manifest with its last line, tensors by name, and the
 * comparison (the READMEs of the topics): per expected tensor |got - expected|_F <= rtol
 * |expected|_F, exactly zero where the expected is. $ISO_GOLDEN_DIR/TOPIC, else
 * ../shared/golden/TOPIC. */
#ifndef ISO_TESTS_MANIFEST_CASES_H
#define ISO_TESTS_MANIFEST_CASES_H

#include "core/json.h"
#include "core/safetensors.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* One case while it runs. */
typedef struct {
    const char *name;
    const iso_json *params;
    iso_safetensors st;
    double rtol;
    size_t compared, failed;
    double worst; /* relative difference */
    char worst_name[160];
} golden_case;

typedef void golden_fn(golden_case *c);

/* A kind of case, and who runs it. fn NULL: another runner, which `other` names. */
typedef struct {
    const char *kind;
    golden_fn *fn;
    const char *other;
} golden_kind;

static inline const iso_tensor *golden_find(const golden_case *c, const char *name)
{
    const iso_named_tensor *t = iso_safetensors_find(&c->st, name);
    return t ? &t->view : NULL;
}

static inline const iso_tensor *golden_need(const golden_case *c, const char *name)
{
    const iso_tensor *t = golden_find(c, name);
    if (!t)
        fail_msg("%s: tensor \"%s\" is missing", c->name, name);
    return t;
}

/* New arrays; integers and masks are converted too. NULL when the tensor is absent. */
static inline double *golden_f64(const golden_case *c, const char *name, size_t *count)
{
    const iso_tensor *t = golden_find(c, name);
    if (!t)
        return NULL;
    size_t n = iso_tensor_count(t);
    double *out = iso_calloc(n, sizeof *out);
    if (t->dtype == ISO_I64)
        for (size_t i = 0; i < n; i++) {
            int64_t v;
            memcpy(&v, (const char *)t->data + i * sizeof v, sizeof v);
            out[i] = (double)v;
        }
    else if (t->dtype == ISO_U8)
        for (size_t i = 0; i < n; i++)
            out[i] = ((const uint8_t *)t->data)[i];
    else
        assert_int_equal(iso_tensor_to_f64(t, out, NULL), ISO_OK);
    if (count)
        *count = n;
    return out;
}

static inline float *golden_f32(const golden_case *c, const char *name, size_t *count)
{
    size_t n;
    double *wide = golden_f64(c, name, &n);
    if (!wide)
        return NULL;
    float *out = iso_alloc_aligned(n ? n : 1, sizeof *out);
    for (size_t i = 0; i < n; i++)
        out[i] = (float)wide[i];
    free(wide);
    if (count)
        *count = n;
    return out;
}

/* Numbers of the case's tensor into place. */
static inline void golden_read(const golden_case *c, const char *name, float *out, size_t n)
{
    size_t count;
    golden_need(c, name);
    float *x = golden_f32(c, name, &count);
    if (count != n)
        fail_msg("%s: \"%s\" has %zu numbers, expected %zu", c->name, name, count, n);
    memcpy(out, x, n * sizeof *out);
    free(x);
}

static inline double golden_number(const golden_case *c, const char *key, double otherwise)
{
    double v = otherwise;
    const iso_json *j = iso_json_key(c->params, key);
    if (j)
        assert_true(iso_json_num(j, &v));
    return v;
}

static inline size_t golden_size(const golden_case *c, const char *key)
{
    double v = golden_number(c, key, -1);
    if (v < 0)
        fail_msg("%s: parameter \"%s\" is missing", c->name, key);
    return (size_t)v;
}

static inline const char *golden_text(const golden_case *c, const char *key)
{
    return iso_json_str(iso_json_key(c->params, key));
}

static inline void golden_compare_f64(golden_case *c, const char *name, const double *got, size_t n)
{
    size_t count;
    golden_need(c, name);
    double *want = golden_f64(c, name, &count), diff = 0, norm = 0;
    if (count != n)
        fail_msg("%s: \"%s\" has %zu numbers, got %zu", c->name, name, count, n);
    for (size_t i = 0; i < n; i++) {
        /* rtol 0: bit for bit after rounding to the type of the test */
        double w = c->rtol == 0 ? (double)(float)want[i] : want[i];
        diff += (got[i] - w) * (got[i] - w);
        norm += w * w;
    }
    free(want);
    bool is_good = norm > 0 ? sqrt(diff) <= c->rtol * sqrt(norm) : diff == 0;
    double off = norm > 0 ? sqrt(diff / norm) : sqrt(diff);
    if (off > c->worst || isnan(off)) {
        c->worst = off;
        snprintf(c->worst_name, sizeof c->worst_name, "%s", name);
    }
    c->compared++;
    if (!is_good) {
        printf("FAILED: %s: %s is %.2e off, allowed %.0e\n", c->name, name, off, c->rtol);
        c->failed++;
    }
}

static inline void golden_compare(golden_case *c, const char *name, const float *got, size_t n)
{
    double *wide = iso_calloc(n, sizeof *wide);
    for (size_t i = 0; i < n; i++)
        wide[i] = (double)got[i];
    golden_compare_f64(c, name, wide, n);
    free(wide);
}

static inline void golden_compare_number(golden_case *c, const char *name, double got)
{
    golden_compare_f64(c, name, &got, 1);
}

/* Every tensor whose name begins so has been compared: nothing expected is left out. */
static inline void golden_expect_compared(golden_case *c, size_t extra)
{
    size_t expected = 0;
    for (size_t i = 0; i < c->st.count; i++) {
        const char *n = c->st.items[i].name;
        expected += strncmp(n, "out/", 4) == 0 || strncmp(n, "grad/", 5) == 0 ||
                    strncmp(n, "grad_t/", 7) == 0;
    }
    if (c->compared != expected + extra) {
        printf("FAILED: %s: %zu of %zu expected tensors were compared\n", c->name, c->compared,
               expected + extra);
        c->failed++;
    }
}

static inline void golden_one(const char *folder, const iso_json *j, golden_fn *fn, size_t *passed,
                              size_t *failed)
{
    iso_error e = {0};
    golden_case c = {.name = iso_json_str(iso_json_key(j, "name")),
                     .params = iso_json_key(j, "params")};
    char *path = iso_path_join(folder, iso_json_str(iso_json_key(j, "file")));
    assert_true(iso_json_num(iso_json_key(j, "rtol"), &c.rtol));
    if (iso_safetensors_open(&c.st, path, &e))
        fail_msg("%s", e.text);
    fn(&c);
    if (c.failed || !c.compared) {
        printf("FAILED: %s\n", c.name);
        (*failed)++;
    } else {
        printf("  %-28s %3zu tensors, worst %.1e of %.0e %s\n", c.name, c.compared, c.worst, c.rtol,
               c.worst_name);
        (*passed)++;
    }
    iso_safetensors_close(&c.st);
    free(path);
}

static inline void run_golden(const char *topic, const golden_kind *kinds)
{
    const char *root = getenv("ISO_GOLDEN_DIR");
    char *folder = iso_path_join(root ? root : "../shared/golden", topic);
    char *manifest = iso_path_join(folder, "manifest.json");
    iso_error e = {0};
    iso_json *all = NULL;
    size_t passed = 0, failed = 0, absent = 0, elsewhere = 0;
    if (!iso_path_exists(manifest)) {
        printf("no golden cases at %s: nothing was tested here (set ISO_GOLDEN_DIR)\n", manifest);
        assert_null(root); /* a folder that was named must be there */
        goto done;
    }
    if (iso_json_read(manifest, (size_t)1 << 24, &all, &e))
        fail_msg("%s", e.text);
    const iso_json *cases = iso_json_key(all, "cases");
    for (size_t i = 0; i < iso_json_count(cases); i++) {
        const iso_json *j = iso_json_at(cases, i);
        const char *kind = iso_json_str(iso_json_key(j, "kind"));
        const golden_kind *k = kinds;
        while (k->kind && strcmp(k->kind, kind) != 0)
            k++;
        if (k->kind && k->fn) {
            golden_one(folder, j, k->fn, &passed, &failed);
        } else if (k->kind) {
            elsewhere++;
        } else {
            printf("not built: %s (%s)\n", iso_json_str(iso_json_key(j, "name")), kind);
            absent++;
        }
    }
    for (const golden_kind *k = kinds; elsewhere && k->kind; k++)
        if (!k->fn)
            printf("kind %s: %s\n", k->kind, k->other);
    printf("%zu cases passed, %zu failed, %zu not built, %zu in other runners\n", passed, failed,
           absent, elsewhere);
    iso_json_free(all);
    assert_int_equal(failed, 0);
    assert_true(passed > 0);
done:
    free(manifest);
    free(folder);
}

#endif
