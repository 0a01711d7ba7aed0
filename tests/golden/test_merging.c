/* Golden merging cases: $ISO_GOLDEN_DIR/merging, else ../shared/golden/merging; iterates over the
 * manifest. A case whose method is not registered is listed and counted, never skipped silently. */
#include "core/json.h"
#include "core/parallel.h"
#include "core/peft.h"
#include "merge/merge.h"

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
static bool is_close(const double *got, const iso_tensor *expected, double rtol, char *why,
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

static iso_err options_of(const iso_json *c, const iso_method *method, size_t T, double *weights,
                          iso_merge_options *o, iso_error *e)
{
    *o = iso_merge_defaults(method);
    const iso_json *params = iso_json_key(c, "params");
    for (size_t i = 0; i < iso_json_count(params); i++) {
        const char *key;
        const iso_json *v = iso_json_member(params, i, &key);
        double number;
        if (strcmp(key, "convention") == 0) {
            o->args.convention =
                strcmp(iso_json_str(v), "rank") == 0 ? ISO_CONVENTION_RANK : ISO_CONVENTION_DENSE;
        } else if (strcmp(key, "compat") == 0) {
            o->is_reference = true;
        } else if (strcmp(key, "weights") == 0) {
            for (size_t t = 0; t < T; t++)
                assert_true(iso_json_num(iso_json_at(v, t), &weights[t]));
            o->weights = weights;
        } else if (iso_json_num(v, &number)) {
            iso_err err = iso_method_set(method, &o->args, key, number, e);
            if (err)
                return err;
        }
    }
    return ISO_OK;
}

static bool compare_dense(const iso_merged_dense *got, const iso_safetensors *want, double rtol,
                          char *why, size_t why_bytes)
{
    if (got->count != want->count) {
        snprintf(why, why_bytes, "%zu tensors, expected %zu", got->count, want->count);
        return false;
    }
    for (size_t i = 0; i < want->count; i++) {
        assert_string_equal(got->tensors[i].name, want->items[i].name);
        assert_int_equal(got->tensors[i].view.dtype, ISO_F64);
        if (!is_close(got->tensors[i].view.data, &want->items[i].view, rtol, why, why_bytes))
            return false;
    }
    return true;
}

static bool run_dense(const char *folder, const iso_json *inputs, const iso_merge_options *o,
                      const iso_safetensors *want, double rtol, char *why, size_t why_bytes)
{
    static iso_safetensors files[MAX_INPUTS];
    iso_dense_input in[MAX_INPUTS];
    iso_error e = {0};
    iso_merged_dense got = {0};
    size_t T = iso_json_count(inputs);
    bool is_good = false;
    memset(files, 0, sizeof files);
    for (size_t t = 0; t < T; t++) {
        char *path = iso_path_join(folder, iso_json_str(iso_json_at(inputs, t)));
        iso_err err = iso_safetensors_open(&files[t], path, &e);
        free(path);
        if (err)
            goto done;
        in[t] =
            (iso_dense_input){iso_json_str(iso_json_at(inputs, t)), files[t].items, files[t].count};
    }
    if (iso_merge_dense(in, T, NULL, ISO_DTYPE_COUNT, o, &got, &e) == ISO_OK)
        is_good = compare_dense(&got, want, rtol, why, why_bytes);
done:
    if (e.text[0])
        snprintf(why, why_bytes, "%s", e.text);
    iso_merged_dense_free(&got);
    for (size_t t = 0; t < T; t++)
        iso_safetensors_close(&files[t]);
    return is_good;
}

static bool compare_lora(const iso_merged_lora *got, const iso_safetensors *want, double rtol,
                         char *why, size_t why_bytes)
{
    if (got->count != want->count) {
        snprintf(why, why_bytes, "%zu layers, expected %zu", got->count, want->count);
        return false;
    }
    for (size_t i = 0; i < got->count; i++) {
        const iso_lora_layer *l = &got->layers[i];
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

static bool run_lora(const char *folder, const iso_json *inputs, const iso_merge_options *o,
                     const iso_safetensors *want, double rtol, char *why, size_t why_bytes)
{
    static iso_peft adapters[MAX_INPUTS];
    iso_lora_input in[MAX_INPUTS];
    iso_error e = {0};
    iso_merged_lora got = {0};
    size_t T = iso_json_count(inputs);
    bool is_good = false;
    memset(adapters, 0, sizeof adapters);
    for (size_t t = 0; t < T; t++) {
        char *path = iso_path_join(folder, iso_json_str(iso_json_at(inputs, t)));
        iso_err err = iso_peft_open(&adapters[t], path, true, &e);
        free(path);
        if (err)
            goto done;
        in[t] = (iso_lora_input){iso_json_str(iso_json_at(inputs, t)), adapters[t].layers,
                                 adapters[t].count};
    }
    if (iso_merge_lora(in, T, o, &got, &e) == ISO_OK)
        is_good = compare_lora(&got, want, rtol, why, why_bytes);
done:
    if (e.text[0])
        snprintf(why, why_bytes, "%s", e.text);
    iso_merged_lora_free(&got);
    for (size_t t = 0; t < T; t++)
        iso_peft_close(&adapters[t]);
    return is_good;
}

static bool run_case(const char *folder, const iso_json *c, const iso_method *method, char *why,
                     size_t why_bytes)
{
    iso_error e = {0};
    double weights[MAX_INPUTS], rtol = 0;
    const iso_json *inputs = iso_json_key(c, "inputs");
    iso_merge_options o;
    iso_safetensors want = {0};
    assert_true(iso_json_count(inputs) <= MAX_INPUTS);
    assert_true(iso_json_num(iso_json_key(c, "rtol"), &rtol));
    bool is_good = false;
    char *path = iso_path_join(folder, iso_json_str(iso_json_key(c, "expected")));
    if (options_of(c, method, iso_json_count(inputs), weights, &o, &e) ||
        iso_safetensors_open(&want, path, &e))
        snprintf(why, why_bytes, "%s", e.text);
    else if (strcmp(iso_json_str(iso_json_key(c, "kind")), "lora") == 0)
        is_good = run_lora(folder, inputs, &o, &want, rtol, why, why_bytes);
    else
        is_good = run_dense(folder, inputs, &o, &want, rtol, why, why_bytes);
    free(path);
    iso_safetensors_close(&want);
    return is_good;
}

static void golden_merging(void **state)
{
    (void)state;
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
        char why[ISO_ERROR_BYTES] = "";
        if (!method) {
            printf("not built: %s (%s)\n", name, method_name);
            absent++;
        } else if (run_case(folder, c, method, why, sizeof why)) {
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

int main(void)
{
    iso_set_threads(0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_merging)};
    return cmocka_run_group_tests_name("golden merging", tests, NULL, NULL);
}
