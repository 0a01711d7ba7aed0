/* minisign's files, judged by the minisign program itself (S91, T18). */
#include "crypto/minisign.h"
#include "tests/crypto/support.h"

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Runs `minisign`, quiet, with nothing to read; its exit status, or -1 if it is not installed. */
static int minisign(char *const argv[])
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 0);
        dup2(null, 1);
        dup2(null, 2);
        execvp("minisign", argv);
        _exit(127);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status) == 127 ? -1 : WEXITSTATUS(status);
}

static bool minisign_is_installed(void)
{
    char *const argv[] = {(char[]){"minisign"}, (char[]){"-v"}, NULL};
    return minisign(argv) >= 0;
}

/* Files of one test in a folder of its own. */
typedef struct {
    char *folder, *pub, *key, *file, *sig;
} place;

static place open_place(void)
{
    place p = {.folder = scratch_folder()};
    p.pub = iso_path_join(p.folder, "minisign.pub");
    p.key = iso_path_join(p.folder, "minisign.key");
    p.file = iso_path_join(p.folder, "release.json");
    p.sig = iso_path_join(p.folder, "release.json.minisig");
    assert_ok(iso_write_file(p.file, "{\"number\":1}\n", 13, 0644, E));
    return p;
}

static void close_place(place *p)
{
    remove_folder(p->folder);
    free(p->pub);
    free(p->key);
    free(p->file);
    free(p->sig);
}

static int verify_by_program(const place *p)
{
    char *const argv[] = {(char[]){"minisign"},
                          (char[]){"-V"},
                          (char[]){"-H"},
                          (char[]){"-m"},
                          p->file,
                          (char[]){"-p"},
                          p->pub,
                          NULL};
    return minisign(argv);
}

static void write_public(const place *p, const iso_minisign_key *k)
{
    iso_buf text = {0};
    assert_ok(iso_minisign_public_format(&k->public_part, &text, E));
    assert_ok(iso_write_file(p->pub, text.data, text.size, 0644, E));
    iso_buf_free(&text);
}

static void S91_minisign_verifies_what_we_sign(void **state)
{
    (void)state;
    if (!minisign_is_installed())
        skip();
    place p = open_place();
    iso_minisign_key k;
    iso_buf sig = {0};
    assert_ok(iso_minisign_make(&k, E));
    write_public(&p, &k);
    assert_ok(iso_minisign_sign(&k, "{\"number\":1}\n", 13, "isofed-release number=1", &sig, E));
    assert_ok(iso_write_file(p.sig, sig.data, sig.size, 0644, E));
    assert_int_equal(verify_by_program(&p), 0);
    /* and it is a judge: a changed file, a changed comment are refused */
    assert_ok(iso_write_file(p.file, "{\"number\":2}\n", 13, 0644, E));
    assert_int_not_equal(verify_by_program(&p), 0);
    assert_ok(iso_write_file(p.file, "{\"number\":1}\n", 13, 0644, E));
    char *comment = strstr((char *)sig.data, "number=1");
    comment[7] = '2';
    assert_ok(iso_write_file(p.sig, sig.data, sig.size, 0644, E));
    assert_int_not_equal(verify_by_program(&p), 0);
    iso_buf_free(&sig);
    iso_minisign_free(&k);
    close_place(&p);
}

static void S91_we_verify_what_minisign_signs(void **state)
{
    (void)state;
    if (!minisign_is_installed())
        skip();
    place p = open_place();
    iso_minisign_public pub;
    iso_minisign_key key;
    iso_buf sig = {0};
    char comment[ISO_MINISIGN_COMMENT_MAX];
    char *const make[] = {(char[]){"minisign"},
                          (char[]){"-G"},
                          (char[]){"-W"},
                          (char[]){"-p"},
                          p.pub,
                          (char[]){"-s"},
                          p.key,
                          NULL};
    char *const sign[] = {(char[]){"minisign"},
                          (char[]){"-S"},
                          (char[]){"-W"},
                          (char[]){"-H"},
                          (char[]){"-s"},
                          p.key,
                          (char[]){"-m"},
                          p.file,
                          (char[]){"-t"},
                          (char[]){"made by minisign"},
                          NULL};
    assert_int_equal(minisign(make), 0);
    assert_int_equal(minisign(sign), 0);
    assert_ok(iso_minisign_public_read(p.pub, &pub, E));
    assert_ok(iso_read_file(p.sig, 8192, &sig, E));
    assert_ok(
        iso_minisign_verify(&pub, "{\"number\":1}\n", 13, sig.data, sig.size, "s", comment, E));
    assert_string_equal(comment, "made by minisign");
    iso_error e;
    assert_int_equal(
        iso_minisign_verify(&pub, "{\"number\":2}\n", 13, sig.data, sig.size, "s", comment, &e),
        ISO_ERR_TRUST);
    assert_string_equal(comment, "");
    /* its secret key is ours to use as well */
    assert_int_equal(chmod(p.key, 0600), 0);
    assert_ok(iso_minisign_key_read(p.key, NULL, &key, E));
    assert_memory_equal(&key.public_part, &pub, sizeof pub);
    iso_minisign_free(&key);
    iso_buf_free(&sig);
    close_place(&p);
}

static void S91_minisign_signs_with_our_secret_key(void **state)
{
    (void)state;
    if (!minisign_is_installed())
        skip();
    place p = open_place();
    iso_minisign_key k;
    iso_buf sig = {0};
    assert_ok(iso_minisign_make(&k, E));
    write_public(&p, &k);
    assert_ok(iso_minisign_key_write(&k, p.key, NULL, E));
    char *const sign[] = {(char[]){"minisign"}, (char[]){"-S"}, (char[]){"-W"},
                          (char[]){"-H"},       (char[]){"-s"}, p.key,
                          (char[]){"-m"},       p.file,         NULL};
    assert_int_equal(minisign(sign), 0);
    assert_int_equal(verify_by_program(&p), 0);
    assert_ok(iso_read_file(p.sig, 8192, &sig, E));
    assert_ok(iso_minisign_verify(&k.public_part, "{\"number\":1}\n", 13, sig.data, sig.size, "s",
                                  NULL, E));
    iso_buf_free(&sig);
    iso_minisign_free(&k);
    close_place(&p);
}

static iso_minisign_key key_from(uint8_t fill)
{
    uint8_t id[8], seed[32];
    iso_minisign_key k;
    memset(id, fill, 8);
    memset(seed, fill, 32);
    assert_ok(iso_minisign_from_seed(id, seed, &k, E));
    return k;
}

static void S91_secret_key_files(void **state)
{
    (void)state;
    for (int sealed = 0; sealed < 2; sealed++) {
        iso_minisign_key k = key_from(1), back;
        iso_buf text = {0};
        iso_error e;
        const char *pass = sealed ? "pass" : NULL;
        assert_ok(iso_minisign_key_format(&k, pass, true, &text, E));
        assert_ok(iso_minisign_key_parse(text.data, text.size, "k", pass, &back, E));
        assert_memory_equal(back.secret, k.secret, 64);
        assert_memory_equal(&back.public_part, &k.public_part, sizeof k.public_part);
        iso_minisign_free(&back);
        if (sealed) {
            assert_int_equal(iso_minisign_key_parse(text.data, text.size, "k", "Pass", &back, &e),
                             ISO_ERR_TRUST);
            assert_int_equal(iso_minisign_key_parse(text.data, text.size, "k", NULL, &back, &e),
                             ISO_ERR_TRUST);
        }
        /* the public half of the secret changed: 8 characters from the end of secret */
        char *line = strchr((char *)text.data, '\n') + 1;
        line[sealed ? 120 : 150] = line[sealed ? 120 : 150] == 'A' ? 'B' : 'A';
        assert_int_equal(iso_minisign_key_parse(text.data, text.size, "k", pass, &back, &e),
                         ISO_ERR_TRUST);
        assert_null(back.secret);
        iso_buf_free(&text);
        iso_minisign_free(&k);
    }
}

static void S91_kdf_bombs_are_refused(void **state)
{
    (void)state;
    /* "Ed" "Sc" "B2", zero salt, opslimit 2^40, memlimit 2^40 */
    uint8_t bytes[158] = "EdScB2";
    char text[512] = "untrusted comment: x\n";
    iso_minisign_key k;
    iso_error e;
    iso_put_u64(bytes + 38, 1ull << 40);
    iso_put_u64(bytes + 46, 1ull << 40);
    sodium_bin2base64(text + strlen(text), 400, bytes, sizeof bytes,
                      sodium_base64_VARIANT_ORIGINAL);
    assert_int_equal(iso_minisign_key_parse(text, strlen(text), "k", "p", &k, &e), ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "KEY_KDF"));
}

static void T18_every_byte_of_a_signature_but_the_untrusted_comment(void **state)
{
    (void)state;
    iso_minisign_key k = key_from(2);
    iso_buf sig = {0};
    iso_error e;
    assert_ok(iso_minisign_sign(&k, "data", 4, "isofed-roster x", &sig, E));
    size_t comment_end = (size_t)((char *)memchr(sig.data, '\n', sig.size) - (char *)sig.data);
    for (size_t i = 0; i < sig.size; i++) {
        sig.data[i] ^= 2;
        iso_err err =
            iso_minisign_verify(&k.public_part, "data", 4, sig.data, sig.size, "s", NULL, &e);
        bool is_free = i >= strlen("untrusted comment: ") && i < comment_end;
        if ((err == ISO_OK) != is_free)
            fail_msg("byte %zu: %s", i, err ? e.text : "accepted");
        sig.data[i] ^= 2;
    }
    for (size_t n = 0; n + 1 < sig.size; n++) /* cut (a missing last newline is fine) */
        assert_int_not_equal(
            iso_minisign_verify(&k.public_part, "data", 4, sig.data, n, "s", NULL, &e), ISO_OK);
    iso_buf_free(&sig);
    iso_minisign_free(&k);
}

static void S91_legacy_and_foreign_signatures_are_refused(void **state)
{
    (void)state;
    iso_minisign_key k = key_from(3), other = key_from(4);
    iso_buf sig = {0};
    iso_error e;
    uint8_t line[74] = "Ed", global[64], message[64 + 1] = {0}, id[8];
    char text[1024], base64[128], base64_global[128];
    /* a legacy signature, correct in itself: Ed25519 over the data, not its digest */
    memcpy(line + 2, k.public_part.key_id, 8);
    crypto_sign_detached(line + 10, NULL, (const uint8_t *)"data", 4, k.secret);
    memcpy(message, line + 10, 64);
    message[64] = 'c';
    crypto_sign_detached(global, NULL, message, 65, k.secret);
    sodium_bin2base64(base64, sizeof base64, line, 74, sodium_base64_VARIANT_ORIGINAL);
    sodium_bin2base64(base64_global, sizeof base64_global, global, 64,
                      sodium_base64_VARIANT_ORIGINAL);
    snprintf(text, sizeof text, "untrusted comment: u\n%s\ntrusted comment: c\n%s\n", base64,
             base64_global);
    assert_int_equal(
        iso_minisign_verify(&k.public_part, "data", 4, text, strlen(text), "s", NULL, &e),
        ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "legacy"));
    assert_ok(iso_minisign_sign(&k, "data", 4, "c", &sig, E));
    assert_int_equal(
        iso_minisign_verify(&other.public_part, "data", 4, sig.data, sig.size, "s", NULL, &e),
        ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "404040404040404"));
    assert_ok(iso_minisign_signer(sig.data, sig.size, "s", id, E));
    assert_memory_equal(id, k.public_part.key_id, 8);
    assert_int_equal(iso_minisign_sign(&k, "data", 4, "two\nlines", &sig, &e), ISO_ERR_INTERNAL);
    iso_buf_free(&sig);
    iso_minisign_free(&k);
    iso_minisign_free(&other);
}

static void S91_windows_line_ends_are_read(void **state)
{
    (void)state;
    iso_minisign_key k = key_from(5);
    iso_minisign_public back;
    iso_buf text = {0}, crlf = {0};
    iso_error e;
    assert_ok(iso_minisign_public_format(&k.public_part, &text, E));
    for (size_t i = 0; i < text.size; i++)
        assert_ok(iso_buf_append(&crlf, text.data[i] == '\n' ? "\r\n" : (char *)text.data + i,
                                 text.data[i] == '\n' ? 2 : 1, E));
    assert_ok(iso_minisign_public_parse(crlf.data, crlf.size, "p", &back, E));
    assert_memory_equal(&back, &k.public_part, sizeof back);
    assert_int_equal(iso_minisign_public_parse("x\ny\n", 4, "p", &back, &e), ISO_ERR_DATA);
    assert_int_equal(iso_minisign_public_parse("", 0, "p", &back, &e), ISO_ERR_DATA);
    iso_buf_free(&text);
    iso_buf_free(&crlf);
    iso_minisign_free(&k);
}

static void A1_root_fingerprint_is_the_digest_of_the_file(void **state)
{
    (void)state;
    iso_minisign_key k = key_from(6);
    iso_buf text = {0};
    uint8_t a[20], b[20];
    iso_minisign_fingerprint(&k.public_part, a);
    assert_ok(iso_minisign_public_format(&k.public_part, &text, E));
    iso_digest d = iso_digest_of(text.data, text.size);
    assert_memory_equal(a, d.b, 20);
    k.public_part.key_id[0] ^= 1;
    iso_minisign_fingerprint(&k.public_part, b);
    assert_memory_not_equal(a, b, 20);
    iso_buf_free(&text);
    iso_minisign_free(&k);
}

/* One key in sixteen has an id with a leading zero, which minisign does not print. */
static void A1_root_pub_of_minisign_is_written_back_to_the_same_bytes(void **state)
{
    (void)state;
    if (!minisign_is_installed())
        skip();
    place p = open_place();
    for (int i = 0; i < 24; i++) {
        iso_minisign_public pub;
        iso_buf file = {0}, text = {0};
        char *const make[] = {(char[]){"minisign"}, (char[]){"-G"}, (char[]){"-f"},
                              (char[]){"-W"},       (char[]){"-p"}, p.pub,
                              (char[]){"-s"},       p.key,          NULL};
        assert_int_equal(minisign(make), 0);
        assert_ok(iso_read_file(p.pub, 8192, &file, E));
        assert_ok(iso_minisign_public_parse(file.data, file.size, "p", &pub, E));
        assert_ok(iso_minisign_public_format(&pub, &text, E));
        assert_int_equal(text.size, file.size);
        assert_memory_equal(text.data, file.data, file.size);
        iso_buf_free(&file);
        iso_buf_free(&text);
    }
    close_place(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S91_minisign_verifies_what_we_sign),
        cmocka_unit_test(S91_we_verify_what_minisign_signs),
        cmocka_unit_test(S91_minisign_signs_with_our_secret_key),
        cmocka_unit_test(S91_secret_key_files),
        cmocka_unit_test(S91_kdf_bombs_are_refused),
        cmocka_unit_test(T18_every_byte_of_a_signature_but_the_untrusted_comment),
        cmocka_unit_test(S91_legacy_and_foreign_signatures_are_refused),
        cmocka_unit_test(S91_windows_line_ends_are_read),
        cmocka_unit_test(A1_root_fingerprint_is_the_digest_of_the_file),
        cmocka_unit_test(A1_root_pub_of_minisign_is_written_back_to_the_same_bytes),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
