/* Memory: what a refusal may allocate (S40), and every allocation failed once (STYLE "Tests").
 *
 * The program puts its own malloc before libc's; under a sanitizer, which does the same, there is
 * nothing to count and the tests are skipped: the release preset runs them. */
#include "crypto/manifest.h"
#include "crypto/roster.h"
#include "tests/crypto/support.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAS_OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_OWN_MALLOC 0
#endif
#endif
#ifndef HAS_OWN_MALLOC
#define HAS_OWN_MALLOC 1
#endif

static long fail_at;     /* the n-th allocation from now fails; 0: none */
static long counted;     /* since the watch began */
static size_t largest;   /* of them */
static bool is_watching; /* cmocka's own allocations are not our business */

#if HAS_OWN_MALLOC

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void *malloc(size_t size);
void *calloc(size_t n, size_t size);
void *realloc(void *p, size_t size);
void *aligned_alloc(size_t alignment, size_t size);

static bool may_allocate(size_t size)
{
    if (!is_watching)
        return true;
    if (size > largest)
        largest = size;
    return ++counted != fail_at;
}

void *malloc(size_t size)
{
    return may_allocate(size) ? __libc_malloc(size) : NULL;
}

void *calloc(size_t n, size_t size)
{
    return may_allocate(n * size) ? __libc_calloc(n, size) : NULL;
}

void *realloc(void *p, size_t size)
{
    return may_allocate(size) ? __libc_realloc(p, size) : NULL;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return may_allocate(size) ? __libc_memalign(alignment, size) : NULL;
}

#endif

static void watch(long n)
{
    fail_at = n;
    counted = 0;
    largest = 0;
    is_watching = true;
}

static void unwatch(void)
{
    is_watching = false;
    fail_at = 0;
}

/* ---- S40 ---- */

static void S40_refusals_allocate_no_more_than_a_chunk_and_64_KiB(void **state)
{
    (void)state;
    if (!HAS_OWN_MALLOC)
        skip();
    iso_key sign = key_of(ISO_KEY_SITE_SIGN, 1), merge = key_of(ISO_KEY_MERGE, 2);
    uint8_t federation[16];
    memset(federation, 0xfe, 16);
    const iso_open_options opt = {
        .merge_key = &merge, .sign_pk = sign.public_key, .federation_id = federation};
    iso_buf payload = payload_of(200000, true), sealed = {0};
    iso_envelope h = header_of(65536, 0);
    assert_ok(
        iso_envelope_seal(&h, payload.data, payload.size, &sign, merge.public_key, &sealed, E));
    size_t refused = 0;
    for (size_t k = 0; k < 900; k++) {
        iso_buf got = {0};
        iso_code code;
        iso_error e;
        size_t at = k < 448 ? (k < 384 ? k : sealed.size - 64 + (k - 384))
                            : 384 + (k - 448) * 400; /* header, signature, body */
        size_t size = k % 3 == 2 ? sealed.size - 1 - k : sealed.size;
        sealed.data[at] ^= 0x40;
        watch(0);
        iso_err err = iso_envelope_open_memory(sealed.data, size, &opt, &h, &got, &code, &e);
        unwatch();
        sealed.data[at] ^= 0x40;
        refused += err != ISO_OK;
        if (largest > 65536 + 64 * 1024)
            fail_msg("byte %zu: an allocation of %zu bytes", at, largest);
        assert_null(got.data);
    }
    assert_int_equal(refused, 900);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    iso_key_free(&sign);
    iso_key_free(&merge);
}

/* ---- every allocation failed once ---- */

typedef struct {
    iso_key sign, merge;
    iso_buf payload, sealed, manifest, roster;
} things;

static iso_err do_seal(things *t, iso_error *e)
{
    iso_buf out = {0};
    iso_envelope h = header_of(65536, ISO_COMPRESSION_ZSTD);
    iso_err err = iso_envelope_seal(&h, t->payload.data, t->payload.size, &t->sign,
                                    t->merge.public_key, &out, e);
    iso_buf_free(&out);
    return err;
}

static iso_err do_open(things *t, iso_error *e)
{
    uint8_t federation[16];
    memset(federation, 0xfe, 16);
    const iso_open_options opt = {
        .merge_key = &t->merge, .sign_pk = t->sign.public_key, .federation_id = federation};
    iso_buf got = {0};
    iso_envelope h;
    iso_code code;
    iso_err err =
        iso_envelope_open_memory(t->sealed.data, t->sealed.size, &opt, &h, &got, &code, e);
    if (err && (code != ISO_CODE_INTERNAL || got.data))
        abort(); /* our own want of memory is not the site's fault */
    iso_buf_free(&got);
    return err;
}

static iso_err do_key(things *t, iso_error *e)
{
    iso_buf text = {0};
    iso_key back;
    iso_err err = iso_key_format(&t->sign, NULL, NULL, &text, e);
    if (!err)
        err = iso_key_parse(text.data, text.size, "k", ISO_KEY_ANY, NULL, &back, e);
    if (!err)
        iso_key_free(&back);
    iso_buf_free(&text);
    return err;
}

static iso_err do_manifest(things *t, iso_error *e)
{
    iso_arena arena = {0};
    iso_manifest m;
    iso_buf again = {0};
    iso_err err = iso_manifest_parse(t->manifest.data, t->manifest.size, &arena, &m, e);
    if (!err)
        err = iso_manifest_format(&m, &again, e);
    iso_buf_free(&again);
    iso_arena_free(&arena);
    return err;
}

static iso_err do_roster(things *t, iso_error *e)
{
    iso_roster r;
    iso_buf again = {0};
    iso_err err = iso_roster_parse(t->roster.data, t->roster.size, &r, e);
    if (!err)
        err = iso_roster_format(&r, &again, e);
    iso_buf_free(&again);
    return err;
}

static iso_buf small_manifest(void)
{
    const iso_manifest_file file = {.path = "adapter/adapter_model.safetensors", .size = 1};
    const iso_manifest_task task = {.score = 0.5};
    const iso_manifest_score score = {"accuracy", 0.5};
    const iso_manifest_parameter parameter = {"alpha", "1"};
    const iso_manifest m = {.number = 1,
                            .created_ms = 1,
                            .valid_until_ms = 2,
                            .method = "iso_c",
                            .spectrum = "rank",
                            .min_software = "0.1.0",
                            .files = &file,
                            .file_count = 1,
                            .tasks = &task,
                            .task_count = 1,
                            .scores = &score,
                            .score_count = 1,
                            .parameters = &parameter,
                            .parameter_count = 1};
    iso_buf out = {0};
    assert_ok(iso_manifest_format(&m, &out, E));
    return out;
}

static iso_buf small_roster(void)
{
    iso_roster r = {.version = 1, .merge_count = 1, .release_count = 1, .threshold = 1};
    iso_buf out = {0};
    iso_merge_key_id(r.merge[0].pk, r.merge[0].id);
    assert_ok(iso_roster_format(&r, &out, E));
    return out;
}

static void F_every_allocation_fails_once_without_harm(void **state)
{
    (void)state;
    if (!HAS_OWN_MALLOC)
        skip();
    static const struct {
        const char *name;
        iso_err (*run)(things *t, iso_error *e);
        long least; /* allocations that it surely makes */
    } rows[] = {{"seal", do_seal, 5},
                {"open", do_open, 4},
                {"key", do_key, 1},
                {"manifest", do_manifest, 60},
                {"roster", do_roster, 40}};
    things t = {.sign = key_of(ISO_KEY_SITE_SIGN, 1), .merge = key_of(ISO_KEY_MERGE, 2)};
    iso_envelope h = header_of(65536, ISO_COMPRESSION_ZSTD);
    t.payload = payload_of(100000, false);
    assert_ok(iso_envelope_seal(&h, t.payload.data, t.payload.size, &t.sign, t.merge.public_key,
                                &t.sealed, E));
    assert_int_equal(h.compression, ISO_COMPRESSION_ZSTD);
    t.manifest = small_manifest();
    t.roster = small_roster();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_err err = ISO_ERR_MEMORY;
        long n = 0, failures = 0;
        while (err && n < 5000) {
            iso_error e = {.text = ""};
            watch(++n);
            err = rows[i].run(&t, &e);
            unwatch();
            failures += err != ISO_OK;
            if (err && !e.text[0])
                fail_msg("%s, allocation %ld: no sentence", rows[i].name, n);
        }
        if (err || failures < rows[i].least)
            fail_msg("%s: %ld allocations failed, then %s", rows[i].name, failures,
                     iso_err_name(err));
    }
    iso_buf_free(&t.payload);
    iso_buf_free(&t.sealed);
    iso_buf_free(&t.manifest);
    iso_buf_free(&t.roster);
    iso_key_free(&t.sign);
    iso_key_free(&t.merge);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S40_refusals_allocate_no_more_than_a_chunk_and_64_KiB),
        cmocka_unit_test(F_every_allocation_fails_once_without_harm),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
