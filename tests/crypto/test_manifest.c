/* release.json and its signature (S90 - S92, S97). */
#include "crypto/manifest.h"
#include "tests/crypto/support.h"

static const iso_manifest_task tasks[] = {
    {.id = {2}, .score = 0.91, .baseline = 0.5, .samples = 640, .updates = 2},
    {.id = {1}, .score = 1, .baseline = 1.0 / 3, .samples = 10, .updates = 1},
};
static const iso_manifest_file files[] = {
    {.path = "heads/steel.safetensors", .size = 20, .digest = {{9}}},
    {.path = "adapter/adapter_model.safetensors", .size = 10, .digest = {{8}}},
};
static const iso_manifest_parameter parameters[] = {{"common_fraction", "0.8"}, {"alpha", "1"}};
static const iso_manifest_score scores[] = {{"mean_normalised", 0.97}};

static iso_manifest first_release(void)
{
    return (iso_manifest){
        .federation = {0xfe},
        .epoch = 0x0123456789abcdef,
        .number = 1,
        .created_ms = 1000,
        .valid_until_ms = 2000,
        .kind = ISO_RELEASE_MERGE,
        .generation = 0,
        .generation_digest = {{0x6e}},
        .method = "iso_cts",
        .spectrum = "rank",
        .parameters = parameters,
        .parameter_count = 2,
        .tasks = tasks,
        .task_count = 2,
        .files = files,
        .file_count = 2,
        .scores = scores,
        .score_count = 1,
        .audit_seq = 12,
        .audit_head = {{7}},
        .min_software = "0.1.0",
    };
}

#define Z30      "000000000000000000000000000000"
#define D(FIRST) "\"" FIRST Z30 Z30 "00\""
static const char text[] = "{\"audit_head\":" D(
    "07") ",\"audit_seq\":12,\"created_ms\":1000,"
          "\"epoch\":\"0123456789abcdef\",\"federation\":\"fe" Z30 "\","
          "\"files\":[{\"digest\":" D(
              "08") ",\"path\":\"adapter/adapter_model.safetensors\",\"size\":10},"
                    "{\"digest\":" D(
                        "09") ",\"path\":\"heads/steel.safetensors\",\"size\":20}],"
                              "\"format\":1,\"generation\":{\"digest\":" D(
                                  "6e") ",\"number\":0},\"kind\":\"merge\","
                                        "\"method\":{\"name\":\"iso_cts\",\"parameters\":{"
                                        "\"alpha\":\"1\",\"common_fraction\":\"0.8\"},"
                                        "\"spectrum\":\"rank\"},\"min_software\":\"0.1.0\","
                                        "\"number\":1,"
                                        "\"previous\":{\"digest\":" D(
                                            "00") ",\"number\":0},\"rollback_of\":0,"
                                                  "\"scores\":{\"mean_normalised\":\"0.97\"},"
                                                  "\"tasks\":[{\"baseline\":\"0.333333333\",\"id\":"
                                                  "\"01" Z30 "\",\"samples\":10,\"score\":\"1\","
                                                  "\"updates\":1},{\"baseline\":\"0.5\",\"id\":"
                                                  "\"02" Z30
                                                  "\",\"samples\":640,\"score\":\"0.91\","
                                                  "\"updates\":2}],\"valid_until_ms\":2000}\n";

static void S90_the_text_is_canonical_and_known(void **state)
{
    (void)state;
    iso_manifest m = first_release(), back;
    iso_buf out = {0};
    iso_arena arena = {0};
    uint64_t total = 0;
    assert_ok(iso_manifest_format(&m, &out, E));
    assert_int_equal(out.size, sizeof text - 1);
    assert_memory_equal(out.data, text, out.size);
    assert_ok(iso_manifest_parse(text, sizeof text - 1, &arena, &back, E));
    assert_int_equal(back.epoch, m.epoch);
    assert_int_equal(back.task_count, 2);
    assert_int_equal(back.tasks[0].id[0], 1); /* sorted */
    assert_int_equal(back.tasks[1].samples, 640);
    assert_string_equal(back.files[1].path, "heads/steel.safetensors");
    assert_string_equal(back.parameters[0].name, "alpha");
    assert_string_equal(back.method, "iso_cts");
    assert_true(back.scores[0].value == 0.97);
    assert_true(iso_manifest_total(&back, &total));
    assert_int_equal(total, 30);
    iso_buf again = {0};
    assert_ok(iso_manifest_format(&back, &again, E));
    assert_memory_equal(again.data, text, sizeof text - 1);
    iso_buf_free(&again);
    iso_buf_free(&out);
    iso_arena_free(&arena);
}

/* Text with one part replaced. */
static iso_buf replaced(const char *from, const char *to)
{
    iso_buf out = {0};
    const char *at = strstr(text, from);
    assert_non_null(at);
    assert_ok(iso_buf_printf(&out, E, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from)));
    return out;
}

static void S90_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name, *from, *to;
    } rows[] = {
        {"blank", "\"number\":1", "\"number\": 1"},
        {"no newline", "2000}\n", "2000}"},
        {"two newlines", "2000}\n", "2000}\n\n"},
        {"keys in another order", "\"created_ms\":1000,\"epoch\":\"0123456789abcdef\"",
         "\"epoch\":\"0123456789abcdef\",\"created_ms\":1000"},
        {"key twice", "\"format\":1", "\"format\":1,\"format\":1"},
        {"unknown key", "\"format\":1", "\"formas\":1,\"format\":1"},
        {"missing key", "\"rollback_of\":0,", ""},
        {"format 2", "\"format\":1", "\"format\":2"},
        {"number as float", "\"audit_seq\":12", "\"audit_seq\":12.0"},
        {"number negative", "\"audit_seq\":12", "\"audit_seq\":-1"},
        {"number past 63 bits", "\"audit_seq\":12", "\"audit_seq\":9223372036854775808"},
        {"number 0", "\"number\":1,\"previous\"", "\"number\":0,\"previous\""},
        {"gap to the previous", "\"number\":1,\"previous\"", "\"number\":2,\"previous\""},
        {"first with a previous digest", "\"previous\":{\"digest\":\"00",
         "\"previous\":{\"digest\":\"01"},
        {"upper-case hex", "\"6e", "\"6E"},
        {"short hex", "\"0123456789abcdef\"", "\"0123456789abcde\""},
        {"float not as written", "\"score\":\"0.91\"", "\"score\":\"0.910\""},
        {"float NaN", "\"score\":\"0.91\"", "\"score\":\"nan\""},
        {"float infinite", "\"score\":\"0.91\"", "\"score\":\"inf\""},
        {"float as a number", "\"score\":\"0.91\"", "\"score\":0.91"},
        {"kind unknown", "\"kind\":\"merge\"", "\"kind\":\"merga\""},
        {"force without rollback", "\"format\":1", "\"force\":true,\"format\":1"},
        {"force false", "\"format\":1", "\"force\":false,\"format\":1"},
        {"rollback of itself", "\"rollback_of\":0", "\"rollback_of\":1"},
        {"expires before it begins", "\"valid_until_ms\":2000", "\"valid_until_ms\":1000"},
        {"files not sorted", "adapter/adapter_model", "i/adapter_model"},
        {"path absolute", "adapter/adapter_model", "/adapter/adapter_model"},
        {"path up", "adapter/adapter_model", "../adapter_model"},
        {"path dot", "adapter/adapter_model", "adapter/./model"},
        {"path hidden", "adapter/adapter_model", "adapter/.model"},
        {"path empty part", "adapter/adapter_model", "adapter//model"},
        {"path backslash", "adapter/adapter_model", "adapter\\\\model"},
        {"tasks not sorted", "\"id\":\"01", "\"id\":\"03"},
        {"task twice", "\"id\":\"01", "\"id\":\"02"},
        {"unknown key of a task", "\"id\":\"01", "\"ia\":1,\"id\":\"01"},
        {"method without spectrum", ",\"spectrum\":\"rank\"", ""},
        {"parameter is a number", "\"alpha\":\"1\"", "\"alpha\":1"},
        {"control in a text", "\"min_software\":\"0.1.0\"", "\"min_software\":\"0.1\\n0\""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_buf b = replaced(rows[i].from, rows[i].to);
        iso_arena arena = {0};
        iso_manifest m;
        iso_error e;
        if (iso_manifest_parse(b.data, b.size, &arena, &m, &e) != ISO_ERR_DATA)
            fail_msg("accepted: %s", rows[i].name);
        assert_int_equal(m.number, 0);
        iso_arena_free(&arena);
        iso_buf_free(&b);
    }
    for (size_t n = 0; n < sizeof text - 1; n++) {
        iso_arena arena = {0};
        iso_manifest m;
        iso_error e;
        assert_int_equal(iso_manifest_parse(text, n, &arena, &m, &e), ISO_ERR_DATA);
        iso_arena_free(&arena);
    }
    char *large = malloc(ISO_MANIFEST_MAX_BYTES + 1);
    memset(large, ' ', ISO_MANIFEST_MAX_BYTES + 1);
    iso_arena arena = {0};
    iso_manifest m;
    iso_error e;
    assert_int_equal(iso_manifest_parse(large, ISO_MANIFEST_MAX_BYTES + 1, &arena, &m, &e),
                     ISO_ERR_DATA);
    free(large);
    iso_arena_free(&arena);
}

static void S90_what_cannot_be_written(void **state)
{
    (void)state;
    iso_manifest_file two[2] = {files[0], files[0]};
    iso_manifest_parameter twice[2] = {parameters[0], parameters[0]};
    iso_manifest_task bad_task = tasks[0];
    iso_manifest m = first_release();
    iso_buf out = {0};
    iso_error e;
    m.files = two;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA);
    m = first_release();
    m.parameters = twice;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA);
    m = first_release();
    bad_task.score = strtod("nan", NULL);
    m.tasks = &bad_task;
    m.task_count = 1;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_NONFINITE);
    m = first_release();
    m.number = 5;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA);
    m = first_release();
    m.audit_seq = 1ull << 63;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA);
    m = first_release();
    m.min_software = "0.1.0\n";
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA);
    m = first_release();
    m.file_count = ISO_RELEASE_FILES_MAX + 1;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA);
    assert_int_equal(out.size, 0);
    iso_buf_free(&out);
}

static void S97_rollback_with_force(void **state)
{
    (void)state;
    iso_manifest m = first_release(), back;
    iso_buf out = {0};
    iso_arena arena = {0};
    iso_error e;
    m.number = 4;
    m.previous_number = 3;
    m.previous_digest.b[0] = 1;
    m.kind = ISO_RELEASE_ROLLBACK;
    assert_int_equal(iso_manifest_format(&m, &out, &e), ISO_ERR_DATA); /* of what? */
    m.rollback_of = 2;
    m.force = true;
    assert_ok(iso_manifest_format(&m, &out, E));
    assert_ok(iso_manifest_parse(out.data, out.size, &arena, &back, E));
    assert_true(back.force);
    assert_int_equal(back.rollback_of, 2);
    assert_int_equal(back.kind, ISO_RELEASE_ROLLBACK);
    iso_buf_free(&out);
    iso_arena_free(&arena);
}

static void S91_signature_and_its_comment(void **state)
{
    (void)state;
    uint8_t id[8] = {1}, seed[32] = {2};
    iso_minisign_key k, other;
    iso_buf sig = {0}, forged = {0};
    iso_arena arena = {0};
    iso_manifest m;
    iso_error e = {.text = ""};
    char expected[ISO_MINISIGN_COMMENT_MAX], digest[65];
    size_t n = sizeof text - 1;
    assert_ok(iso_minisign_from_seed(id, seed, &k, E));
    seed[0] = 3;
    assert_ok(iso_minisign_from_seed(id, seed, &other, E));
    assert_ok(iso_manifest_sign(&k, text, n, &sig, E));
    iso_digest d = iso_digest_of(text, n);
    iso_hex(digest, d.b, 32);
    snprintf(expected, sizeof expected,
             "\ntrusted comment: isofed-release federation=fe%s number=1 digest=%s "
             "generation=6e%s%s00\n",
             Z30, digest, Z30, Z30);
    assert_non_null(strstr((char *)sig.data, expected));
    assert_ok(iso_manifest_verify(&k.public_part, text, n, sig.data, sig.size, &arena, &m, E));
    assert_int_equal(m.number, 1);
    assert_int_equal(
        iso_manifest_verify(&other.public_part, text, n, sig.data, sig.size, &arena, &m, &e),
        ISO_ERR_TRUST);
    assert_int_equal(m.number, 0);
    /* signed rightly, but the comment speaks of something else (a roster, another number) */
    static const char *const comments[] = {"", "isofed-roster federation=fe", "isofed-release"};
    for (size_t i = 0; i < 3; i++) {
        forged.size = 0;
        assert_ok(iso_minisign_sign(&k, text, n, comments[i], &forged, E));
        assert_int_equal(
            iso_manifest_verify(&k.public_part, text, n, forged.data, forged.size, &arena, &m, &e),
            ISO_ERR_TRUST);
        assert_non_null(strstr(e.text, "trusted comment"));
    }
    assert_int_equal(iso_manifest_sign(&k, "{}\n", 3, &forged, &e), ISO_ERR_DATA);
    iso_buf_free(&sig);
    iso_buf_free(&forged);
    iso_arena_free(&arena);
    iso_minisign_free(&k);
    iso_minisign_free(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S90_the_text_is_canonical_and_known),
        cmocka_unit_test(S90_what_is_refused),
        cmocka_unit_test(S90_what_cannot_be_written),
        cmocka_unit_test(S97_rollback_with_force),
        cmocka_unit_test(S91_signature_and_its_comment),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
