/* safetensors: each rule of specs/security.md 9.1 broken once, shards, round trips, digest. */
#include "core/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char *scratch_dir(void)
{
    char *path = iso_strdup("/tmp/isofed-test-st-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static void remove_dir(char *path)
{
    iso_error e;
    assert_int_equal(iso_remove_tree(path, &e), ISO_OK);
    free(path);
}

/* A file image of exactly its size on the heap, so that ASan sees a read beyond it. */
static uint8_t *image(const char *header, size_t header_bytes, size_t data_bytes, size_t *size)
{
    *size = 8 + header_bytes + data_bytes;
    uint8_t *p = malloc(*size);
    assert_non_null(p);
    iso_put_u64(p, header_bytes);
    memcpy(p + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        p[8 + header_bytes + i] = (uint8_t)i;
    return p;
}

#define T(name, type, shape, begin, end)                                                           \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end  \
    "]}"

static void S9_1_header_rules(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data;
        iso_err code;
        const char *says;
    } rows[] = {
        {"{}", 0, ISO_OK, NULL},
        {"{" T("a", "F32", "[2]", 0, 8) "}", 8, ISO_OK, NULL},
        {"{" T("a", "F32", "[]", 0, 4) "}   \n", 4, ISO_OK, NULL},
        {"{ \"a\" : { \"shape\" : [ 1 , 2 ] , \"dtype\" : \"U8\" , \"data_offsets\" : [ 0 , 2 ] } "
         "}",
         2, ISO_OK, NULL},
        {"{" T("b", "U8", "[3]", 2, 5) "," T("a", "I16", "[1]", 0, 2) "}", 5, ISO_OK, NULL},
        {"{" T("z", "F32", "[0,5]", 4, 4) "," T("a", "F32", "[1]", 0, 4) "," T("y", "F32", "[0]", 0,
                                                                               0) "}",
         4, ISO_OK, NULL},
        {"{\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"}," T("a", "U8", "[1]", 0, 1) "}", 1,
         ISO_OK, NULL},
        {"{\"__metadata__\":{}}", 0, ISO_OK, NULL},
        {"{" T("\\u00e9\\ud83d\\ude00\\/", "U8", "[1]", 0, 1) "}", 1, ISO_OK, NULL},
        /* not an object, not whole, too much */
        {"[]", 0, ISO_ERR_DATA, "expected {"},
        {" {}", 0, ISO_ERR_DATA, "expected {"},
        {"{} x", 0, ISO_ERR_DATA, "text after"},
        {"{", 0, ISO_ERR_DATA, "expected a string"},
        {"{\"a\"", 0, ISO_ERR_DATA, "expected :"},
        {"{\"a\":1}", 0, ISO_ERR_DATA, "expected an object"},
        {"{\"a\":[]}", 0, ISO_ERR_DATA, "expected an object"},
        {"{" T("a", "U8", "[1]", 0, 1) ",}", 1, ISO_ERR_DATA, "expected a string"},
        {"{" T("a", "U8", "[1]", 0, 1) "}{}", 1, ISO_ERR_DATA, "text after"},
        {"{\"a\":{\"dtype\":{\"dtype\":{\"dtype\":{}}}}}", 0, ISO_ERR_DATA, "expected a string"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[[1]],\"data_offsets\":[0,1]}}", 1, ISO_ERR_DATA,
         "tensor \"a\""},
        /* names */
        {"{" T("a", "U8", "[1]", 0, 1) "," T("a", "U8", "[1]", 1, 2) "}", 2, ISO_ERR_DATA,
         "tensor \"a\" stands twice"},
        {"{" T("a", "U8", "[1]", 0, 1) "," T("\\u0061", "U8", "[1]", 1, 2) "}", 2, ISO_ERR_DATA,
         "stands twice"},
        {"{" T("", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "1 to 512"},
        {"{" T("a\\u0000", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "bad escape"},
        {"{" T("\\ud800x", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "bad escape"},
        {"{" T("\\q", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "bad escape"},
        {"{" T("\xff", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "not UTF-8"},
        {"{" T("\xc0\xaf", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "not UTF-8"},
        {"{" T("\xed\xa0\x80", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "not UTF-8"},
        {"{" T("a\nb", "U8", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "control character"},
        {"{\"a", 0, ISO_ERR_DATA, "without an end"},
        {"{\"a\\", 0, ISO_ERR_DATA, "bad escape"},
        /* fields */
        {"{" T("a", "F128", "[1]", 0, 1) "}", 1, ISO_ERR_DATA, "tensor \"a\": type \"F128\""},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, ISO_ERR_DATA, "dtype is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, ISO_ERR_DATA, "shape is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, ISO_ERR_DATA, "data_offsets is missing"},
        {"{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
         ISO_ERR_DATA, "repeated field \"dtype\""},
        {"{\"a\":{\"dtype\":\"U8\",\"more\":1,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
         ISO_ERR_DATA, "unknown field \"more\""},
        /* numbers */
        {"{" T("a", "U8", "[-1]", 0, 1) "}", 1, ISO_ERR_DATA, "tensor \"a\""},
        {"{" T("a", "U8", "[1.0]", 0, 1) "}", 1, ISO_ERR_DATA, "in a shape"},
        {"{" T("a", "U8", "[1e3]", 0, 1000) "}", 1000, ISO_ERR_DATA, "in a shape"},
        {"{" T("a", "U8", "[01]", 0, 1) "}", 1, ISO_ERR_DATA, "whole number"},
        {"{" T("a", "U8", "[9223372036854775808]", 0, 1) "}", 1, ISO_ERR_DATA, "whole number"},
        {"{" T("a", "U8", "[99999999999999999999999]", 0, 1) "}", 1, ISO_ERR_DATA, "whole number"},
        {"{" T("a", "U8", "[\"1\"]", 0, 1) "}", 1, ISO_ERR_DATA, "whole number"},
        {"{" T("a", "F32", "[4611686018427387904,4]", 0, 0) "}", 0, ISO_ERR_DATA, "overflows"},
        {"{" T("a", "F64", "[4611686018427387904]", 0, 0) "}", 0, ISO_ERR_DATA, "overflows"},
        {"{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, ISO_ERR_DATA, "more than 8"},
        /* offsets */
        {"{" T("a", "U8", "[4]", 4, 0) "}", 4, ISO_ERR_DATA, "reversed"},
        {"{" T("a", "U8", "[4]", 0, 3) "}", 4, ISO_ERR_DATA, "hold 3 bytes"},
        {"{" T("a", "F32", "[4]", 0, 4) "}", 4, ISO_ERR_DATA, "hold 4 bytes"},
        {"{" T("a", "U8", "[4]", -4, 0) "}", 4, ISO_ERR_DATA, "whole number"},
        {"{" T("a", "U8", "[4]", 1, 5) "}", 5, ISO_ERR_DATA, "leaves a gap"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 5, 9) "}", 9, ISO_ERR_DATA,
         "\"b\" leaves a gap"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 3, 7) "}", 7, ISO_ERR_DATA,
         "\"b\" overlaps"},
        {"{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 0, 4) "}", 4, ISO_ERR_DATA,
         "overlaps"},
        {"{" T("a", "U8", "[4]", 0, 4) "}", 3, ISO_ERR_DATA,
         "ends at byte 4 of the data, which has 3"},
        {"{" T("a", "U8", "[4]", 0, 4) "}", 5, ISO_ERR_DATA, "1 bytes after the last"},
        {"{" T("a", "U8", "[4]", 9223372036854775800, 9223372036854775804) "}", 4, ISO_ERR_DATA,
         "tensor \"a\""},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, ISO_ERR_DATA,
         "two data_offsets"},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, ISO_ERR_DATA,
         "two data_offsets"},
        {"{}", 1, ISO_ERR_DATA, "after the last"},
        /* __metadata__ */
        {"{\"__metadata__\":{\"a\":1}}", 0, ISO_ERR_DATA, "expected a string"},
        {"{\"__metadata__\":[\"a\"]}", 0, ISO_ERR_DATA, "__metadata__"},
        {"{\"__metadata__\":{\"a\":{\"b\":\"c\"}}}", 0, ISO_ERR_DATA, "expected a string"},
        {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0, ISO_ERR_DATA, "key \"a\" stands twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, ISO_ERR_DATA, "stands twice"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t size;
        uint8_t *p = image(rows[i].header, strlen(rows[i].header), rows[i].data, &size);
        iso_error e = {0};
        iso_safetensors st;
        iso_err got = iso_safetensors_parse(&st, p, size, "it", &e);
        if (got != rows[i].code || (rows[i].says && !strstr(e.text, rows[i].says)))
            fail_msg("%s: code %d, \"%s\"", rows[i].header, got, e.text);
        if (got)
            assert_int_equal(strncmp(e.text, "it: ", 4), 0);
        for (size_t k = 0; !got && k < st.count; k++) {
            const uint8_t *data = st.items[k].view.data;
            assert_true(data >= p + 8 && data + iso_tensor_bytes(&st.items[k].view) <= p + size);
            if (k)
                assert_true(strcmp(st.items[k - 1].name, st.items[k].name) < 0);
            assert_ptr_equal(iso_safetensors_find(&st, st.items[k].name), &st.items[k]);
        }
        iso_safetensors_close(&st);
        free(p);
    }
}

static void S9_1_length_field(void **state)
{
    (void)state;
    static const uint64_t lengths[] = {
        0, 3, 1u << 20, 16u << 20 | 1, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 63};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t size;
        uint8_t *p = image("{}", 2, 0, &size);
        iso_put_u64(p, lengths[i]);
        iso_error e;
        iso_safetensors st;
        assert_int_equal(iso_safetensors_parse(&st, p, size, "it", &e), ISO_ERR_DATA);
        assert_non_null(strstr(e.text, "header of"));
        free(p);
    }
    for (size_t size = 0; size < 8; size++) {
        uint8_t *p = calloc(1, size ? size : 1);
        iso_safetensors st;
        assert_int_equal(iso_safetensors_parse(&st, p, size, "it", NULL), ISO_ERR_DATA);
        free(p);
    }
}

static void S9_1_long_names_and_many_tensors(void **state)
{
    (void)state;
    iso_error e;
    iso_safetensors st;
    for (size_t length = 512; length <= 513; length++) {
        iso_buf header = {0};
        char name[514];
        memset(name, 'n', length);
        name[length] = 0;
        assert_int_equal(iso_buf_printf(&header, &e,
                                        "{\"%s\":{\"dtype\":\"U8\",\"shape\":[0],"
                                        "\"data_offsets\":[0,0]}}",
                                        name),
                         ISO_OK);
        size_t size;
        uint8_t *p = image((char *)header.data, header.size, 0, &size);
        assert_int_equal(iso_safetensors_parse(&st, p, size, "it", &e),
                         length == 512 ? ISO_OK : ISO_ERR_DATA);
        iso_safetensors_close(&st);
        free(p);
        iso_buf_free(&header);
    }
    for (int n = 100000; n <= 100001; n++) {
        iso_buf header = {0};
        for (int i = 0; i < n; i++)
            assert_int_equal(iso_buf_printf(&header, &e,
                                            "%s\"%d\":{\"dtype\":\"U8\",\"shape\":[0],"
                                            "\"data_offsets\":[0,0]}",
                                            i ? "," : "{", i),
                             ISO_OK);
        assert_int_equal(iso_buf_append(&header, "}", 1, &e), ISO_OK);
        size_t size;
        uint8_t *p = image((char *)header.data, header.size, 0, &size);
        iso_err got = iso_safetensors_parse(&st, p, size, "it", &e);
        assert_int_equal(got, n == 100000 ? ISO_OK : ISO_ERR_DATA);
        if (!got) {
            assert_int_equal(st.count, n);
            /* The spans, freed again, are a fifth more. */
            assert_true(st.arena.held_bytes + (size_t)n * 24 <= 4 * header.size);
            assert_non_null(iso_safetensors_find(&st, "77777"));
        } else {
            assert_non_null(strstr(e.text, "more than 100000 tensors"));
        }
        iso_safetensors_close(&st);
        free(p);
        iso_buf_free(&header);
    }
}

/* ---- writing ---- */

static const double numbers[4] = {1, 2, 3, 4};

static void what_is_written_is_read(void **state)
{
    (void)state;
    const iso_named_tensor tensors[] = {
        {"z\"\\\n\xc3\xa9", {ISO_U8, 1, {3}, numbers}},
        {"b", {ISO_F32, 2, {1, 3}, numbers}},
        {"a", {ISO_F64, 1, {2}, numbers}},
        {"empty", {ISO_F32, 2, {0, 7}, NULL}},
        {"scalar", {ISO_BF16, 0, {0}, numbers}},
        {"half", {ISO_F16, 1, {1}, numbers}},
    };
    enum { N = sizeof tensors / sizeof *tensors };
    static const char *const meta[] = {"format", "pt", "note", "a \"quoted\" line\n"};
    char *folder = scratch_dir(), *path = iso_path_join(folder, "model.safetensors");
    iso_error e;
    iso_buf buf = {0}, file = {0};
    iso_safetensors st;
    assert_int_equal(iso_safetensors_write(path, tensors, N, meta, 2, &e), ISO_OK);
    assert_int_equal(iso_safetensors_write_buf(&buf, tensors, N, meta, 2, &e), ISO_OK);
    assert_int_equal(iso_read_file(path, 1 << 20, &file, &e), ISO_OK);
    assert_int_equal(buf.size, file.size);
    assert_memory_equal(buf.data, file.data, buf.size);
    const char *const ways[] = {path, folder};
    for (int way = 0; way < 2; way++) {
        if (iso_safetensors_open(&st, ways[way], &e))
            fail_msg("%s", e.text);
        assert_int_equal(st.count, N);
        assert_string_equal(iso_safetensors_meta(&st, "note"), meta[3]);
        assert_null(iso_safetensors_meta(&st, "nothing"));
        assert_null(iso_safetensors_find(&st, "nothing"));
        for (size_t i = 0; i < N; i++) {
            const iso_named_tensor *t = iso_safetensors_find(&st, tensors[i].name);
            assert_non_null(t);
            assert_int_equal(t->view.dtype, tensors[i].view.dtype);
            assert_true(iso_tensor_same_shape(&t->view, &tensors[i].view));
            size_t bytes = iso_tensor_bytes(&t->view);
            if (bytes)
                assert_memory_equal(t->view.data, tensors[i].view.data, bytes);
            assert_int_equal((uintptr_t)t->view.data % iso_dtype_bytes(t->view.dtype), 0);
        }
        iso_digest in = iso_tensor_list_digest(tensors, N);
        iso_digest out = iso_tensor_list_digest(st.items, st.count);
        assert_true(iso_digest_equal(&in, &out)); /* whatever the order */
        iso_safetensors_close(&st);
    }
    iso_buf_free(&buf);
    iso_buf_free(&file);
    free(path);
    remove_dir(folder);
}

static void what_could_not_be_read_is_not_written(void **state)
{
    (void)state;
    char name[514] = {0};
    memset(name, 'n', 513);
    const char *const names[] = {"", name, "\xff", "__metadata__", "twice"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        iso_named_tensor t[] = {{names[i], {ISO_U8, 1, {1}, numbers}},
                                {"twice", {ISO_U8, 1, {1}, numbers}}};
        iso_buf out = {0};
        iso_error e;
        assert_int_equal(iso_safetensors_write_buf(&out, t, 2, NULL, 0, &e), ISO_ERR_DATA);
        assert_int_equal(out.size, 0);
        assert_int_equal(iso_safetensors_write("/tmp/isofed-test-never", t, 2, NULL, 0, &e),
                         ISO_ERR_DATA);
        assert_false(iso_path_exists("/tmp/isofed-test-never"));
        iso_buf_free(&out);
    }
}

/* The bytes that the digest covers, put together by hand. */
static void digest_is_that_of_the_canonical_list(void **state)
{
    (void)state;
    static const float values[2] = {1, -2};
    const iso_named_tensor tensors[] = {{"w", {ISO_F32, 2, {1, 2}, values}},
                                        {"b", {ISO_U8, 0, {0}, "\x07"}}};
    uint8_t bytes[] = {1, 0, 0, 0, 'b', 8, 0, 7,                            /* b */
                       1, 0, 0, 0, 'w', 1, 2, 1, 0, 0, 0,    0,    0, 0, 0, /* w, F32, 2 dims, 1 */
                       2, 0, 0, 0, 0,   0, 0, 0, 0, 0, 0x80, 0x3F, 0, 0, 0, 0xC0};
    iso_digest want = iso_digest_of(bytes, sizeof bytes), got = iso_tensor_list_digest(tensors, 2);
    assert_true(iso_digest_equal(&want, &got));
}

/* ---- shards ---- */

static void write_shard(const char *folder, const char *file, const char *const *names, size_t n)
{
    iso_named_tensor t[4];
    for (size_t i = 0; i < n; i++)
        t[i] = (iso_named_tensor){names[i], {ISO_F64, 1, {2}, numbers}};
    char *path = iso_path_join(folder, file);
    iso_error e;
    assert_int_equal(iso_safetensors_write(path, t, n, NULL, 0, &e), ISO_OK);
    free(path);
}

static void S9_1_sharded_index(void **state)
{
    (void)state;
    static const struct {
        const char *index;
        iso_err code;
        const char *says;
    } rows[] = {
        {"{\"metadata\":{\"total_size\":48},\"weight_map\":{\"a\":\"1.st\",\"c\":\"1.st\",\"b\":"
         "\"2.st\"}}",
         ISO_OK, NULL},
        {"{\"metadata\":{\"total_size\":48.0},\"weight_map\":{\"b\":\"2.st\",\"a\":\"1.st\",\"c\":"
         "\"1.st\"}}",
         ISO_OK, NULL},
        {"{\"weight_map\":{\"a\":\"1.st\",\"c\":\"1.st\"}}", ISO_OK, NULL},
        {"{\"weight_map\":{}}", ISO_OK, NULL},
        {"{\"metadata\":{\"total_size\":47},\"weight_map\":{\"b\":\"2.st\"}}", ISO_ERR_DATA,
         "total_size is not the 16 bytes"},
        {"{\"metadata\":{\"total_size\":\"16\"},\"weight_map\":{\"b\":\"2.st\"}}", ISO_ERR_DATA,
         "total_size"},
        {"{}", ISO_ERR_DATA, "weight_map"},
        {"[]", ISO_ERR_DATA, "weight_map"},
        {"{\"weight_map\":[]}", ISO_ERR_DATA, "weight_map"},
        {"{\"weight_map\":{\"a\":1}}", ISO_ERR_DATA, "weight_map[\"a\"] is not a string"},
        {"{\"weight_map\":{\"b\":\"../2.st\"}}", ISO_ERR_DATA, "plain name"},
        {"{\"weight_map\":{\"b\":\"/etc/passwd\"}}", ISO_ERR_DATA, "plain name"},
        {"{\"weight_map\":{\"b\":\"sub/2.st\"}}", ISO_ERR_DATA, "plain name"},
        {"{\"weight_map\":{\"b\":\"..\"}}", ISO_ERR_DATA, "plain name"},
        {"{\"weight_map\":{\"b\":\"\"}}", ISO_ERR_DATA, "plain name"},
        {"{\"weight_map\":{\"b\":\"link.st\"}}", ISO_ERR_DATA, "symbolic link"},
        {"{\"weight_map\":{\"b\":\"none.st\"}}", ISO_ERR_DATA, "none.st"},
        {"{\"weight_map\":{\"b\":\"sub\"}}", ISO_ERR_DATA, "not a regular file"},
        {"{\"weight_map\":{\"a\":\"1.st\"}}", ISO_ERR_DATA,
         "\"c\" of 1.st is not in its weight_map"},
        {"{\"weight_map\":{\"b\":\"2.st\",\"x\":\"2.st\"}}", ISO_ERR_DATA, "\"x\" is not in 2.st"},
        {"{\"weight_map\":{\"b\":\"2.st\",\"b\":\"3.st\"}}", ISO_ERR_DATA, "duplicate"},
        {"{\"weight_map\":{\"a\":\"1.st\",\"c\":\"1.st\",\"b\":\"3.st\"}}", ISO_ERR_DATA,
         "\"a\" of 3.st is not in its weight_map"}, /* the same tensor in two shards */
    };
    static const char *const one[] = {"a", "c"}, *const two[] = {"b"}, *const three[] = {"a", "b"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *folder = scratch_dir(),
             *index = iso_path_join(folder, "model.safetensors.index.json");
        char *link = iso_path_join(folder, "link.st"), *sub = iso_path_join(folder, "sub");
        iso_error e = {0};
        iso_safetensors st;
        write_shard(folder, "1.st", one, 2);
        write_shard(folder, "2.st", two, 1);
        write_shard(folder, "3.st", three, 2);
        assert_int_equal(symlink("2.st", link), 0);
        assert_int_equal(iso_make_dirs(sub, 0755, &e), ISO_OK);
        assert_int_equal(iso_write_file(index, rows[i].index, strlen(rows[i].index), 0644, &e),
                         ISO_OK);
        iso_err got = iso_safetensors_open(&st, i % 2 ? folder : index, &e);
        if (got != rows[i].code || (rows[i].says && !strstr(e.text, rows[i].says)))
            fail_msg("%s: code %d, \"%s\"", rows[i].index, got, e.text);
        for (size_t k = 0; !got && k < st.count; k++)
            assert_memory_equal(st.items[k].view.data, numbers, 16);
        iso_safetensors_close(&st);
        free(index);
        free(link);
        free(sub);
        remove_dir(folder);
    }
}

static void S9_1_what_is_no_safetensors_file(void **state)
{
    (void)state;
    char *folder = scratch_dir(), *fifo = iso_path_join(folder, "pipe.safetensors");
    iso_error e;
    iso_safetensors st;
    char command[128];
    snprintf(command, sizeof command, "mkfifo '%s'", fifo);
    assert_int_equal(system(command), 0);
    const char *const paths[] = {folder, fifo, "/dev/zero", "/nowhere.safetensors", "model.bin"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        assert_int_equal(iso_safetensors_open(&st, paths[i], &e), ISO_ERR_DATA);
        iso_safetensors_close(&st); /* still fine */
    }
    free(fifo);
    remove_dir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S9_1_header_rules),
        cmocka_unit_test(S9_1_length_field),
        cmocka_unit_test(S9_1_long_names_and_many_tensors),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(what_could_not_be_read_is_not_written),
        cmocka_unit_test(digest_is_that_of_the_canonical_list),
        cmocka_unit_test(S9_1_sharded_index),
        cmocka_unit_test(S9_1_what_is_no_safetensors_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
