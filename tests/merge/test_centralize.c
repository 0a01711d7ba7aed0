/* Centralization: what it refuses, that a difference computes the same generation on another
 * machine, that threads change no bit. Its formula is checked by the golden cases. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/parallel.h"
#include "core/rng.h"
#include "merge/difference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OUT = 6, IN = 5, K = 2, BLOCKS = 3, TENSORS = 3 };

typedef struct {
    char folder[64];
    float weight[2][OUT * IN], bias[OUT];
    iso_named_tensor tensors[TENSORS];
    iso_safetensors backbone;
    iso_buf bytes;
    iso_digest generation;
} fixture;

static void fill(float *x, size_t n, uint64_t step)
{
    iso_rng r = iso_rng_make(3, ISO_RNG_TEST, step);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)iso_rng_normal(&r);
}

static char *in_folder(const fixture *f, const char *name)
{
    return iso_path_join(f->folder, name);
}

/* A block folder; form lora where is_lora. */
static void write_block(const fixture *f, const char *name, uint64_t seed, bool is_lora,
                        const iso_digest *generation)
{
    float x[4][K * OUT];
    char hex[ISO_DIGEST_HEX];
    iso_json *c = iso_json_object();
    iso_error e = {0};
    char *folder = in_folder(f, name);
    for (size_t i = 0; i < 4; i++)
        fill(x[i], K * OUT, seed * 10 + i);
    iso_named_tensor factors[4] = {
        {"encoder.a.factor.a", {.dtype = ISO_F32, .ndim = 2, .shape = {K, OUT}, .data = x[0]}},
        {"encoder.a.factor.b", {.dtype = ISO_F32, .ndim = 2, .shape = {K, IN}, .data = x[1]}},
        {"encoder.a.factor.r", {.dtype = ISO_F32, .ndim = 2, .shape = {K, OUT}, .data = x[2]}},
        {"encoder.a.factor.s", {.dtype = ISO_F32, .ndim = 2, .shape = {K, IN}, .data = x[3]}}};
    iso_named_tensor lora[2] = {{"base_model.model.encoder.a.lora_A.weight",
                                 {.dtype = ISO_F32, .ndim = 2, .shape = {K, IN}, .data = x[0]}},
                                {"base_model.model.encoder.a.lora_B.weight",
                                 {.dtype = ISO_F32, .ndim = 2, .shape = {OUT, K}, .data = x[1]}}};
    iso_hex(hex, generation->b, ISO_DIGEST_BYTES);
    iso_json_set(c, "peft_type", iso_json_string("ISOFED_FACTORISED"));
    iso_json_set(c, "form", iso_json_string(is_lora ? "lora" : "both"));
    iso_json_set(c, "k", iso_json_integer(K));
    iso_json_set(c, "generation", iso_json_string(hex));
    if (iso_peft_parts_write(folder, c, is_lora ? lora : factors, is_lora ? 2 : 4, &e))
        fail_msg("%s", e.text);
    iso_json_free(c);
    free(folder);
}

static int setup(void **state)
{
    static fixture f;
    iso_error e = {0};
    memset(&f, 0, sizeof f);
    strcpy(f.folder, "/tmp/isofed-test-XXXXXX");
    assert_non_null(mkdtemp(f.folder));
    fill(f.weight[0], OUT * IN, 100);
    fill(f.weight[1], OUT * IN, 101);
    fill(f.bias, OUT, 102);
    f.tensors[0] = (iso_named_tensor){
        "encoder.a.weight", {.dtype = ISO_F32, .ndim = 2, .shape = {OUT, IN}, .data = f.weight[0]}};
    f.tensors[1] = (iso_named_tensor){
        "encoder.b.weight", {.dtype = ISO_F32, .ndim = 2, .shape = {OUT, IN}, .data = f.weight[1]}};
    f.tensors[2] = (iso_named_tensor){
        "encoder.a.bias", {.dtype = ISO_F32, .ndim = 1, .shape = {OUT}, .data = f.bias}};
    assert_int_equal(iso_safetensors_write_buf(&f.bytes, f.tensors, TENSORS, NULL, 0, &e), ISO_OK);
    assert_int_equal(iso_safetensors_parse(&f.backbone, f.bytes.data, f.bytes.size, "backbone", &e),
                     ISO_OK);
    f.generation = iso_tensor_list_digest(f.backbone.items, f.backbone.count);
    write_block(&f, "one", 1, false, &f.generation);
    write_block(&f, "two", 2, false, &f.generation);
    write_block(&f, "three", 3, true, &f.generation);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    iso_error e = {0};
    iso_safetensors_close(&f->backbone);
    iso_buf_free(&f->bytes);
    return iso_remove_tree(f->folder, &e) != ISO_OK;
}

static void open_blocks(const fixture *f, iso_block blocks[BLOCKS])
{
    static const char *const names[BLOCKS] = {"one", "two", "three"};
    iso_error e = {0};
    for (size_t i = 0; i < BLOCKS; i++) {
        char *folder = in_folder(f, names[i]);
        if (iso_block_open(&blocks[i], folder, &e))
            fail_msg("%s", e.text);
        free(folder);
    }
}

static void close_blocks(iso_block blocks[BLOCKS])
{
    for (size_t i = 0; i < BLOCKS; i++)
        iso_block_close(&blocks[i]);
}

static void a_step_changes_what_blocks_have_and_nothing_else(void **state)
{
    fixture *f = *state;
    iso_block blocks[BLOCKS];
    iso_generation g = {0};
    iso_error e = {0};
    open_blocks(f, blocks);
    if (iso_centralize(&g, &f->backbone, blocks, BLOCKS, &(iso_centralize_options){0}, &e))
        fail_msg("%s", e.text);
    assert_int_equal(g.changed, 1);
    assert_true(iso_digest_equal(&g.before, &f->generation));
    assert_false(iso_digest_equal(&g.after, &f->generation));
    for (size_t t = 0; t < g.count; t++) {
        size_t bytes = iso_tensor_bytes(&g.tensors[t].view);
        bool is_same = memcmp(g.tensors[t].view.data, f->backbone.items[t].view.data, bytes) == 0;
        assert_int_equal(is_same, strcmp(g.tensors[t].name, "encoder.a.weight") != 0);
    }
    iso_generation_free(&g);
    close_blocks(blocks);
}

static void a_difference_gives_the_same_generation(void **state)
{
    fixture *f = *state;
    static const char *const methods[] = {NULL, "iso_c"};
    static const double weights[BLOCKS] = {1.0, 3.0, 0.7};
    for (size_t m = 0; m < 2; m++) {
        iso_block blocks[BLOCKS];
        iso_generation g = {0}, again = {0}, other = {0};
        iso_safetensors step = {0};
        iso_error e = {0};
        iso_centralize_options o = {.method = methods[m] ? iso_method_find(methods[m]) : NULL,
                                    .weights = weights};
        if (o.method)
            o.args = iso_merge_defaults(o.method).args;
        char *path = in_folder(f, "difference.safetensors");
        open_blocks(f, blocks);
        iso_set_threads(1);
        if (iso_centralize(&g, &f->backbone, blocks, BLOCKS, &o, &e) ||
            iso_difference_write(path, &g, blocks, BLOCKS, &o, &e))
            fail_msg("%s", e.text);
        iso_set_threads(2);
        if (iso_safetensors_open(&step, path, &e) ||
            iso_difference_apply(&again, &f->backbone, &step, &e))
            fail_msg("%s", e.text);
        iso_set_threads(1);
        assert_true(iso_digest_equal(&g.after, &again.after));
        /* to another backbone it is not applied */
        f->weight[1][0] += 1.0F;
        iso_safetensors changed = f->backbone;
        iso_named_tensor items[TENSORS];
        memcpy(items, f->backbone.items, sizeof items);
        for (size_t t = 0; t < TENSORS; t++)
            if (strcmp(items[t].name, "encoder.b.weight") == 0)
                items[t].view.data = f->weight[1];
        changed.items = items;
        assert_int_equal(iso_difference_apply(&other, &changed, &step, &e), ISO_ERR_TRUST);
        assert_non_null(strstr(e.text, "it starts from generation"));
        f->weight[1][0] -= 1.0F;
        iso_safetensors_close(&step);
        iso_generation_free(&g);
        iso_generation_free(&again);
        close_blocks(blocks);
        free(path);
    }
}

static void blocks_of_another_generation_are_refused(void **state)
{
    fixture *f = *state;
    iso_block block;
    iso_generation g = {0};
    iso_error e = {0};
    write_block(f, "stranger", 9, false, &(iso_digest){{7}});
    char *folder = in_folder(f, "stranger");
    assert_int_equal(iso_block_open(&block, folder, &e), ISO_OK);
    assert_int_equal(iso_centralize(&g, &f->backbone, &block, 1, &(iso_centralize_options){0}, &e),
                     ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "was trained on generation 07"));
    iso_block_close(&block);
    free(folder);
}

static void bad_weights_are_refused(void **state)
{
    fixture *f = *state;
    iso_block blocks[BLOCKS];
    iso_generation g = {0};
    iso_error e = {0};
    static const double bad[][BLOCKS] = {{0, 0, 0}, {1, -1, 1}};
    open_blocks(f, blocks);
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(iso_centralize(&g, &f->backbone, blocks, BLOCKS,
                                        &(iso_centralize_options){.weights = bad[i]}, &e),
                         ISO_ERR_USAGE);
    assert_int_equal(iso_centralize(&g, &f->backbone, blocks, 0, &(iso_centralize_options){0}, &e),
                     ISO_ERR_USAGE);
    close_blocks(blocks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_changes_what_blocks_have_and_nothing_else),
        cmocka_unit_test(a_difference_gives_the_same_generation),
        cmocka_unit_test(blocks_of_another_generation_are_refused),
        cmocka_unit_test(bad_weights_are_refused)};
    return cmocka_run_group_tests_name("centralize", tests, setup, teardown);
}
