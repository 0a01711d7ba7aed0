/* Golden merging cases through the binary: `isofed merge` with the case's parameters as options. */
#include "tests/golden/merging_cases.h"

#include "tests/cli/run_isofed.h"

enum { MAX_ARGS = 64 };

typedef struct {
    const char *args[MAX_ARGS + 1];
    char *owned[MAX_ARGS + 1];
    size_t count;
} arguments;

static void add(arguments *a, char *text) /* takes ownership */
{
    assert_true(text && a->count < MAX_ARGS);
    a->owned[a->count] = text;
    a->args[a->count++] = text;
}

static void free_arguments(arguments *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->owned[i]);
}

static void add_parameter(arguments *a, const char *key, const iso_json *v)
{
    double number;
    if (strcmp(key, "convention") == 0 || strcmp(key, "compat") == 0) {
        add(a, iso_strf("--%s=%s", key, iso_json_str(v)));
    } else if (strcmp(key, "weights") == 0) {
        for (size_t i = 0; i < iso_json_count(v); i++) {
            assert_true(iso_json_num(iso_json_at(v, i), &number));
            add(a, iso_strf("--weights=%.17g", number));
        }
    } else if (iso_json_num(v, &number)) {
        add(a, iso_strf("--set=%s=%.17g", key, number));
    }
}

static bool compare_output(const char *out, bool is_lora, const iso_safetensors *want, double rtol,
                           char *why, size_t why_bytes)
{
    iso_error e = {0};
    bool is_good = false;
    if (is_lora) {
        iso_peft p = {0};
        if (iso_peft_open(&p, out, true, &e) == ISO_OK)
            is_good = compare_lora(p.layers, p.count, want, rtol, why, why_bytes);
        iso_peft_close(&p);
    } else {
        iso_safetensors st = {0};
        if (iso_safetensors_open(&st, out, &e) == ISO_OK)
            is_good = compare_dense(st.items, st.count, want, rtol, why, why_bytes);
        iso_safetensors_close(&st);
    }
    if (e.text[0])
        snprintf(why, why_bytes, "%s", e.text);
    return is_good;
}

static bool run_case(const char *folder, const iso_json *c, const iso_method *method, double rtol,
                     const iso_safetensors *want, char *why, size_t why_bytes)
{
    static run_result r;
    char *temp = make_temp_dir();
    bool is_lora = strcmp(iso_json_str(iso_json_key(c, "kind")), "lora") == 0;
    char *out = iso_path_join(temp, is_lora ? "merged" : "merged.safetensors");
    arguments a = {0};
    add(&a, iso_strdup("merge"));
    add(&a,
        iso_strf(iso_method_find(method->name) ? "--method=%s" : "--aggregate=%s", method->name));
    add(&a, iso_strdup("--allow-missing"));
    add(&a, iso_strdup("--threads=1"));
    const iso_json *params = iso_json_key(c, "params"), *inputs = iso_json_key(c, "inputs");
    for (size_t i = 0; i < iso_json_count(params); i++) {
        const char *key;
        const iso_json *v = iso_json_member(params, i, &key);
        add_parameter(&a, key, v);
    }
    for (size_t i = 0; i < iso_json_count(inputs); i++)
        add(&a, iso_path_join(folder, iso_json_str(iso_json_at(inputs, i))));
    add(&a, iso_strf("--out=%s", out));
    run_isofed(temp, a.args, &r);
    bool is_good = r.rc == 0;
    if (is_good)
        is_good = compare_output(out, is_lora, want, rtol, why, why_bytes);
    else
        snprintf(why, why_bytes, "exit code %d: %.180s", r.rc, r.err);
    free_arguments(&a);
    free(out);
    assert_int_equal(iso_remove_tree(temp, NULL), ISO_OK);
    free(temp);
    return is_good;
}

static void golden_merging_through_the_binary(void **state)
{
    (void)state;
    run_golden_merging(run_case);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_merging_through_the_binary)};
    return cmocka_run_group_tests_name("golden merging, isofed merge", tests, NULL, NULL);
}
