/* The flat container of an update (S32). */
#include "tests/crypto/support.h"

static iso_err unpack(const void *bytes, size_t size, iso_container_file *files, size_t *count)
{
    iso_code code;
    iso_error e = {.text = ""};
    iso_err err = iso_container_unpack(bytes, size, files, count, &code, &e);
    assert_int_equal(code, err ? ISO_CODE_CONTAINER : ISO_CODE_OK);
    return err;
}

static void S32_bytes_and_order(void **state)
{
    (void)state;
    const iso_container_file in[] = {
        {.name = "metadata.json", .data = (const uint8_t *)"m", .size = 1},
        {.name = "adapter_config.json", .data = (const uint8_t *)"{}", .size = 2},
        {.name = "head.safetensors", .data = NULL, .size = 0},
    };
    static const char expected[] = "\x03\0\0\0"
                                   "\x13\0adapter_config.json\x02\0\0\0\0\0\0\0{}"
                                   "\x10\0head.safetensors\0\0\0\0\0\0\0\0"
                                   "\x0d\0metadata.json\x01\0\0\0\0\0\0\0m";
    iso_buf out = {0};
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t count;
    assert_ok(iso_container_pack(in, 3, &out, E));
    assert_int_equal(out.size, sizeof expected - 1);
    assert_memory_equal(out.data, expected, out.size);
    assert_int_equal(unpack(out.data, out.size, files, &count), ISO_OK);
    assert_int_equal(count, 3);
    assert_string_equal(files[0].name, "adapter_config.json");
    assert_int_equal(files[1].size, 0);
    assert_memory_equal(iso_container_find(files, count, "metadata.json")->data, "m", 1);
    assert_null(iso_container_find(files, count, "adapter_model.safetensors"));
    for (size_t n = 0; n < out.size; n++) { /* every prefix, in memory of its own */
        uint8_t *copy = malloc(n ? n : 1);
        memcpy(copy, out.data, n);
        assert_int_equal(unpack(copy, n, files, &count), ISO_ERR_DATA);
        assert_int_equal(count, 0);
        free(copy);
    }
    iso_buf_free(&out);
}

static void S32_what_cannot_be_packed(void **state)
{
    (void)state;
    const iso_container_file twice[] = {{.name = "metadata.json"}, {.name = "metadata.json"}};
    const iso_container_file other[] = {{.name = "../metadata.json"}};
    iso_buf out = {0};
    iso_error e;
    assert_int_equal(iso_container_pack(twice, 2, &out, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_container_pack(other, 1, &out, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_container_pack(twice, 0, &out, &e), ISO_ERR_USAGE);
    assert_int_equal(out.size, 0);
    iso_buf_free(&out);
}

static void S32_what_is_refused(void **state)
{
    (void)state;
#define CONFIG "\x13\0adapter_config.json\0\0\0\0\0\0\0\0"
#define META   "\x0d\0metadata.json\0\0\0\0\0\0\0\0"
    static const struct {
        const char *name, *bytes;
        size_t size;
    } rows[] = {
#define ROW(NAME, TEXT) {NAME, TEXT, sizeof(TEXT) - 1}
        ROW("none", "\0\0\0\0"),
        ROW("nine", "\x09\0\0\0" CONFIG),
        ROW("2^32 - 1", "\xff\xff\xff\xff" CONFIG),
        ROW("fewer than named", "\x02\0\0\0" CONFIG),
        ROW("more than named", "\x01\0\0\0" CONFIG META),
        ROW("trailing byte", "\x01\0\0\0" CONFIG "x"),
        ROW("not sorted", "\x02\0\0\0" META CONFIG),
        ROW("twice", "\x02\0\0\0" CONFIG CONFIG),
        ROW("unknown name", "\x01\0\0\0\x0d\0metadata.jsox\0\0\0\0\0\0\0\0"),
        ROW("empty name", "\x01\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ROW("path", "\x01\0\0\0\x10\0../metadata.json\0\0\0\0\0\0\0\0"),
        ROW("long name", "\x01\0\0\0\xff\xffmetadata.json\0\0\0\0\0\0\0\0"),
        ROW("size past the end", "\x01\0\0\0\x0d\0metadata.json\x01\0\0\0\0\0\0\0"),
        ROW("size 2^64 - 1", "\x01\0\0\0\x0d\0metadata.json\xff\xff\xff\xff\xff\xff\xff\xffx"),
    };
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t count;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t *copy = malloc(rows[i].size);
        memcpy(copy, rows[i].bytes, rows[i].size);
        if (unpack(copy, rows[i].size, files, &count) != ISO_ERR_DATA)
            fail_msg("accepted: %s", rows[i].name);
        free(copy);
    }
    assert_int_equal(unpack("\x02\0\0\0" CONFIG META, 4 + 29 + 23, files, &count), ISO_OK);
}

static void S32_folders_there_and_back(void **state)
{
    (void)state;
    char *from = scratch_folder(), *to = scratch_folder(), *path, *below;
    iso_buf a = {0}, b = {0}, text = {0};
    iso_code code;
    iso_error e;
    assert_int_equal(iso_container_pack_folder(from, 1 << 20, &a, &e), ISO_ERR_DATA); /* empty */
    path = iso_path_join(from, "adapter_config.json");
    assert_ok(iso_write_file(path, "{}\n", 3, 0644, E));
    free(path);
    path = iso_path_join(from, "notes.txt"); /* not of the set: stays at home */
    assert_ok(iso_write_file(path, "private", 7, 0644, E));
    free(path);
    assert_int_equal(iso_container_pack_folder(from, 2, &a, &e), ISO_ERR_DATA); /* ceiling */
    assert_ok(iso_container_pack_folder(from, 1 << 20, &a, E));
    below = iso_path_join(to, "new");
    assert_ok(iso_container_unpack_folder(a.data, a.size, below, &code, E));
    assert_int_equal(code, ISO_CODE_OK);
    assert_ok(iso_container_pack_folder(below, 1 << 20, &b, E));
    assert_int_equal(a.size, b.size);
    assert_memory_equal(a.data, b.data, a.size);
    iso_names names = {0};
    assert_ok(iso_list_dir(below, &names, E));
    assert_int_equal(names.count, 1);
    iso_names_free(&names);
    a.data[0] = 9;
    assert_int_equal(iso_container_unpack_folder(a.data, a.size, below, &code, &e), ISO_ERR_DATA);
    assert_int_equal(code, ISO_CODE_CONTAINER);
    free(below);
    iso_buf_free(&a);
    iso_buf_free(&b);
    iso_buf_free(&text);
    remove_folder(from);
    remove_folder(to);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S32_bytes_and_order),
        cmocka_unit_test(S32_what_cannot_be_packed),
        cmocka_unit_test(S32_what_is_refused),
        cmocka_unit_test(S32_folders_there_and_back),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
