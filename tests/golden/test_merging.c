/* Golden merging cases through the library: $ISO_GOLDEN_DIR/merging, else ../shared/golden/merging;
 * iterates over the manifest. A case whose method is not registered is listed and counted. */
#include "tests/golden/merging_cases.h"

#include "core/parallel.h"

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
        is_good = compare_dense(got.tensors, got.count, want, rtol, why, why_bytes);
done:
    if (e.text[0])
        snprintf(why, why_bytes, "%s", e.text);
    iso_merged_dense_free(&got);
    for (size_t t = 0; t < T; t++)
        iso_safetensors_close(&files[t]);
    return is_good;
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
        is_good = compare_lora(got.layers, got.count, want, rtol, why, why_bytes);
done:
    if (e.text[0])
        snprintf(why, why_bytes, "%s", e.text);
    iso_merged_lora_free(&got);
    for (size_t t = 0; t < T; t++)
        iso_peft_close(&adapters[t]);
    return is_good;
}

static bool run_case(const char *folder, const iso_json *c, const iso_method *method, double rtol,
                     const iso_safetensors *want, char *why, size_t why_bytes)
{
    iso_error e = {0};
    double weights[MAX_INPUTS];
    const iso_json *inputs = iso_json_key(c, "inputs");
    iso_merge_options o;
    if (options_of(c, method, iso_json_count(inputs), weights, &o, &e)) {
        snprintf(why, why_bytes, "%s", e.text);
        return false;
    }
    bool is_lora = strcmp(iso_json_str(iso_json_key(c, "kind")), "lora") == 0;
    return is_lora ? run_lora(folder, inputs, &o, want, rtol, why, why_bytes)
                   : run_dense(folder, inputs, &o, want, rtol, why, why_bytes);
}

static void golden_merging(void **state)
{
    (void)state;
    run_golden_merging(run_case);
}

int main(void)
{
    iso_set_threads(0);
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_merging)};
    return cmocka_run_group_tests_name("golden merging", tests, NULL, NULL);
}
