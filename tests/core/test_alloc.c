/* Every allocation refused once: the n-th fails, n = 1, 2, 3 ... until the work passes. Each
 * failure must be told as ISO_ERR_MEMORY, leave nothing behind (LeakSanitizer) and no half-written
 * file. The linker puts the functions below in place of the allocator's (tests/CMakeLists.txt);
 * jansson gets them by its own switch. What libyaml and libpng allocate inside is not counted. */
#include "core/peft.h"
#include "core/report.h"
#include "core/yaml.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static long left = -1; /* calls that still succeed; negative: no limit */
static bool has_failed;

static bool is_refused(void)
{
    if (left < 0)
        return false;
    if (left == 0) {
        has_failed = true; /* once: the program goes on with its clean-up */
        left = -1;
        return true;
    }
    left--;
    return false;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);

void *__wrap_malloc(size_t n)
{
    return is_refused() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    return is_refused() ? NULL : __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    return is_refused() ? NULL : __real_realloc(p, n);
}

void *__wrap_aligned_alloc(size_t alignment, size_t n)
{
    return is_refused() ? NULL : __real_aligned_alloc(alignment, n);
}

/* ---- the works ---- */

static char folder[] = "/tmp/isofed-test-alloc-XXXXXX";
static char path[64], adapter[64], shards[64];

static const float values[64] = {1, 2, 3};
static const iso_named_tensor tensors[] = {{"b", {ISO_F32, 2, {2, 3}, values}},
                                           {"a", {ISO_F64, 1, {3}, values}}};
static const char *const meta[] = {"format", "pt"};

static iso_err write_tensors(iso_error *e)
{
    iso_err err = iso_safetensors_write(path, tensors, 2, meta, 1, e);
    if (err == ISO_ERR_MEMORY) { /* whole or not at all */
        long mark = left;
        left = -1;
        iso_names names;
        assert_int_equal(iso_list_dir(folder, &names, NULL), ISO_OK);
        for (size_t i = 0; i < names.count; i++)
            assert_null(strstr(names.names[i], ".tmp"));
        iso_names_free(&names);
        left = mark;
    }
    return err;
}

static iso_err open_tensors(iso_error *e)
{
    iso_safetensors st;
    iso_err err = iso_safetensors_open(&st, path, e);
    iso_safetensors_close(&st);
    return err;
}

static iso_err open_shards(iso_error *e)
{
    iso_safetensors st;
    iso_err err = iso_safetensors_open(&st, shards, e);
    iso_safetensors_close(&st);
    return err;
}

static char module_a[] = "x.q", module_b[] = "x.k";

static iso_peft_output an_adapter(const iso_json *extra)
{
    static iso_lora_layer layers[2];
    layers[0] = (iso_lora_layer){
        module_a, 4, 3, 2, 0.5, (float *)(uintptr_t)values, (float *)(uintptr_t)values};
    layers[1] = layers[0];
    layers[1].module = module_b;
    layers[1].rank = 1;
    return (iso_peft_output){.layers = layers, .count = 2, .base_model = "base", .extra = extra};
}

static iso_err write_adapter(iso_error *e)
{
    iso_json *extra = iso_json_object();
    iso_json_set(extra, "method", iso_json_string("iso_cts"));
    iso_peft_output o = an_adapter(extra);
    iso_err err = extra ? iso_peft_write(adapter, &o, e) : ISO_ERR_MEMORY;
    iso_json_free(extra);
    return err;
}

static iso_err write_adapter_to_memory(iso_error *e)
{
    iso_buf config = {0}, data = {0};
    iso_peft_output o = an_adapter(NULL);
    iso_err err = iso_peft_write_bufs(&o, &config, &data, e);
    iso_buf_free(&config);
    iso_buf_free(&data);
    return err;
}

static iso_err open_adapter(iso_error *e)
{
    iso_peft p;
    iso_err err = iso_peft_open(&p, adapter, true, e);
    iso_peft_close(&p);
    return err;
}

/* No result is looked at but the last: the mark must carry every failure to it. */
static iso_err build_json(iso_error *e)
{
    iso_buf out = {0};
    iso_json *root = iso_json_object(), *list = iso_json_array();
    for (int i = 0; i < 12; i++) {
        iso_json *item = iso_json_object();
        iso_json_set(item, "text", iso_json_string("bad \xff text"));
        iso_json_set(item, "number", iso_json_float9(i));
        iso_json_push(list, item);
    }
    iso_json_set(root, "copy", iso_json_copy(list));
    iso_json_set(root, "list", list);
    iso_err err = iso_json_dump(root, ISO_JSON_CANONICAL, &out, e);
    if (!err)
        assert_int_equal(out.size, 912);
    iso_buf_free(&out);
    iso_json_free(root);
    return err;
}

static iso_err parse_json(iso_error *e)
{
    static const char text[] = "{\"a\":[1,2,{\"b\":\"c\"}],\"d\":1}\n";
    return iso_json_check_canonical(text, strlen(text), "it", e);
}

typedef struct {
    iso_yaml_strings tasks;
    const char *name;
} settings;

static iso_err read_yaml(iso_error *e)
{
    static const char text[] = "name: x\ntasks: [a, b, c, d, e, f, g, h, i, j]\n";
    static const iso_yaml_row rows[] = {
        {.key = "name", .type = ISO_YAML_STRING, .offset = offsetof(settings, name)},
        {.key = "tasks", .type = ISO_YAML_STRINGS, .offset = offsetof(settings, tasks)},
        {0},
    };
    iso_arena arena = {0};
    const iso_yaml *y;
    settings s = {0};
    iso_err err = iso_yaml_parse(text, strlen(text), "f", &arena, &y, e);
    if (!err)
        err = iso_yaml_fill(y, rows, "f", &s, &arena, e);
    iso_arena_free(&arena);
    return err;
}

static iso_err list_and_make(iso_error *e)
{
    iso_names names;
    iso_err err = iso_list_dir(folder, &names, e);
    if (err)
        return err;
    iso_names_free(&names);
    return iso_make_dirs(adapter, 0755, e);
}

static iso_err write_report(iso_error *e)
{
    static const char *const names[] = {"steel", "solar"}, *const cells[] = {"a", "1", "b", "2"};
    static const double y[] = {1, 2, 3, 4};
    const iso_series lines[] = {{"a", NULL, y, 4}, {"b", NULL, y, 3}};
    const iso_span spans[] = {{"a", "x", 0, 1, 0}, {"b", "y", 1, 2, 1}};
    iso_plot p = {.title = "plot", .x_label = "x", .y_label = "y"};
    iso_report r = {0};
    iso_buf svg = {0};
    iso_err err = iso_report_begin(&r, "title", "subtitle", e);
    if (!err)
        err = iso_report_text(&r, e, "%d", 5);
    if (!err)
        err = iso_report_table(&r, "caption", names, 2, cells, 2, e);
    if (!err)
        err = iso_svg_lines(&svg, &p, lines, 2, e);
    if (!err)
        err = iso_svg_bars(&svg, &p, names, 2, names, 2, y, e);
    if (!err)
        err = iso_svg_heatmap(&svg, &p, names, 2, names, 2, y, "%.1f", e);
    if (!err)
        err = iso_svg_timeline(&svg, &p, spans, 2, e);
    if (!err)
        err = iso_report_svg(&r, &svg, "caption", e);
    if (!err)
        err = iso_report_image(&r, (const uint8_t *)values, 2, 2, "picture", e);
    iso_buf_free(&svg);
    iso_report_free(&r);
    return err;
}

static const struct {
    const char *name;
    iso_err (*run)(iso_error *e);
    long least; /* allocations that it takes at least: the counting works */
    bool with_jansson;
} works[] = {
    {"write_tensors", write_tensors, 5, true},
    {"open_tensors", open_tensors, 3, false},
    {"open_shards", open_shards, 7, false},
    {"write_adapter", write_adapter, 20, true},
    {"write_adapter_to_memory", write_adapter_to_memory, 15, true},
    {"open_adapter", open_adapter, 7, false},
    {"build_json", build_json, 50, true},
    {"parse_json", parse_json, 3, false},
    {"read_yaml", read_yaml, 4, false},
    {"list_and_make", list_and_make, 4, false},
    {"write_report", write_report, 8, false},
};

static void every_refused_allocation_is_told(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof works / sizeof *works; i++) {
        iso_error e = {0};
        json_set_alloc_funcs(works[i].with_jansson ? __wrap_malloc : __real_malloc, free);
        if (works[i].run(&e))
            fail_msg("%s: %s", works[i].name, e.text);
        long n = 0;
        for (has_failed = true; has_failed; n++) {
            memset(&e, 0, sizeof e);
            has_failed = false;
            left = n;
            iso_err err = works[i].run(&e);
            left = -1;
            if (err != (has_failed ? ISO_ERR_MEMORY : ISO_OK))
                fail_msg("%s: allocation %ld: code %d, \"%s\"", works[i].name, n + 1, err, e.text);
        }
        print_message("%s: %ld allocations\n", works[i].name, n - 1);
        if (n - 1 < works[i].least)
            fail_msg("%s: only %ld allocations were seen", works[i].name, n - 1);
    }
}

static int set_up(void **state)
{
    (void)state;
    iso_error e;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/model.safetensors", folder);
    snprintf(adapter, sizeof adapter, "%s/adapter", folder);
    snprintf(shards, sizeof shards, "%s/shards.index.json", folder);
    static const char index[] =
        "{\"weight_map\":{\"a\":\"model.safetensors\",\"b\":\"model.safetensors\"}}";
    return iso_write_file(shards, index, strlen(index), 0644, &e) ? -1 : 0;
}

static int tear_down(void **state)
{
    (void)state;
    iso_error e;
    return iso_remove_tree(folder, &e) ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_refused_allocation_is_told),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
