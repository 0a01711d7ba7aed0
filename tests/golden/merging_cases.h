/* Golden merging cases, shared by the library's runner and the command's: where they lie, the loop
 * over the manifest with its last line, and the comparison (golden/merging/README). */
#ifndef ISO_TESTS_MERGING_CASES_H
#define ISO_TESTS_MERGING_CASES_H

#include "core/json.h"
#include "core/peft.h"
#include "merge/robust/robust.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_INPUTS = 32 };

/* |got - expected|_F <= rtol |expected|_F; exactly zero where expected is. */
static inline bool is_close(const double *got, const iso_tensor *expected, double rtol, char *why,
                            size_t why_bytes)
{
    size_t n = iso_tensor_count(expected);
    double *want = iso_calloc(n, sizeof *want), diff = 0, norm = 0;
    assert_int_equal(iso_tensor_to_f64(expected, want, NULL), ISO_OK);
    for (size_t i = 0; i < n; i++) {
        diff += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    free(want);
    snprintf(why, why_bytes, "relative difference %.2e, allowed %.0e",
             norm > 0 ? sqrt(diff / norm) : sqrt(diff), rtol);
    return norm > 0 ? sqrt(diff) <= rtol * sqrt(norm) : diff == 0.0;
}

static inline bool compare_dense(const iso_named_tensor *got, size_t count,
                                 const iso_safetensors *want, double rtol, char *why,
                                 size_t why_bytes)
{
    if (count != want->count) {
        snprintf(why, why_bytes, "%zu tensors, expected %zu", count, want->count);
        return false;
    }
    for (size_t i = 0; i < want->count; i++) {
        assert_string_equal(got[i].name, want->items[i].name);
        size_t n = iso_tensor_count(&got[i].view);
        double *values = iso_calloc(n, sizeof *values);
        assert_int_equal(iso_tensor_to_f64(&got[i].view, values, NULL), ISO_OK);
        bool is_good = iso_tensor_same_shape(&got[i].view, &want->items[i].view) &&
                       is_close(values, &want->items[i].view, rtol, why, why_bytes);
        free(values);
        if (!is_good)
            return false;
    }
    return true;
}

static inline bool compare_lora(const iso_lora_layer *layers, size_t count,
                                const iso_safetensors *want, double rtol, char *why,
                                size_t why_bytes)
{
    if (count != want->count) {
        snprintf(why, why_bytes, "%zu layers, expected %zu", count, want->count);
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const iso_lora_layer *l = &layers[i];
        char *name = iso_strf("%s.delta", l->module);
        const iso_named_tensor *expected = iso_safetensors_find(want, name);
        free(name);
        assert_non_null(expected);
        double *product = iso_calloc(l->out * l->in, sizeof *product);
        for (size_t a = 0; a < l->out; a++)
            for (size_t r = 0; r < l->rank; r++)
                for (size_t b = 0; b < l->in; b++)
                    product[a * l->in + b] +=
                        l->scale * (double)l->B[a * l->rank + r] * (double)l->A[r * l->in + b];
        bool is_good = is_close(product, &expected->view, rtol, why, why_bytes);
        free(product);
        if (!is_good)
            return false;
    }
    return true;
}

/* One case through what is tested; false with the reason in `why`. */
typedef bool case_fn(const char *folder, const iso_json *c, const iso_method *method, double rtol,
                     const iso_safetensors *want, char *why, size_t why_bytes);

static inline bool open_and_run(const char *folder, const iso_json *c, const iso_method *method,
                                case_fn *run_case, char *why, size_t why_bytes)
{
    iso_error e = {0};
    double rtol = 0;
    iso_safetensors want = {0};
    char *path = iso_path_join(folder, iso_json_str(iso_json_key(c, "expected")));
    assert_true(iso_json_count(iso_json_key(c, "inputs")) <= MAX_INPUTS);
    assert_true(iso_json_num(iso_json_key(c, "rtol"), &rtol));
    bool is_good = iso_safetensors_open(&want, path, &e) == ISO_OK;
    if (is_good)
        is_good = run_case(folder, c, method, rtol, &want, why, why_bytes);
    else
        snprintf(why, why_bytes, "%s", e.text);
    iso_safetensors_close(&want);
    free(path);
    return is_good;
}

static inline void run_golden_merging(case_fn *run_case)
{
    const char *root = getenv("ISO_GOLDEN_DIR");
    char *folder = iso_path_join(root ? root : "../shared/golden", "merging");
    char *manifest = iso_path_join(folder, "manifest.json");
    iso_error e = {0};
    if (!iso_path_exists(manifest)) {
        printf("no golden cases at %s: nothing was tested here (set ISO_GOLDEN_DIR)\n", manifest);
        assert_null(root); /* a folder that was named must be there */
        free(manifest);
        free(folder);
        return;
    }
    iso_json *all = NULL;
    if (iso_json_read(manifest, (size_t)1 << 24, &all, &e))
        fail_msg("%s", e.text);
    const iso_json *cases = iso_json_key(all, "cases");
    size_t passed = 0, failed = 0, absent = 0;
    for (size_t i = 0; i < iso_json_count(cases); i++) {
        const iso_json *c = iso_json_at(cases, i);
        const char *name = iso_json_str(iso_json_key(c, "name")),
                   *method_name = iso_json_str(iso_json_key(c, "method"));
        const iso_method *method = iso_method_find(method_name);
        if (!method)
            method = iso_robust_find(method_name);
        char why[ISO_ERROR_BYTES] = "";
        if (!method) {
            printf("not built: %s (%s)\n", name, method_name);
            absent++;
        } else if (open_and_run(folder, c, method, run_case, why, sizeof why)) {
            passed++;
        } else {
            printf("FAILED: %s: %s\n", name, why);
            failed++;
        }
    }
    printf("%zu cases passed, %zu not built\n", passed, absent);
    iso_json_free(all);
    free(manifest);
    free(folder);
    assert_int_equal(failed, 0);
    assert_true(passed > 0);
}

#endif
