/* Key files (S10, S11, S13), passphrases (S12). */
#include "crypto/passphrase.h"
#include "tests/crypto/support.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* 8 MiB and one pass: the least that is allowed, so that tests stay quick. */
static const iso_kdf_cost quick = {.passes = 1, .memory_bytes = 8 << 20};

static void S13_every_kind_there_and_back(void **state)
{
    (void)state;
    for (int kind = ISO_KEY_ANY + 1; kind < ISO_KEY_KINDS; kind++)
        for (int sealed = 0; sealed < 2; sealed++) {
            iso_key k, back;
            iso_buf text = {0};
            const char *pass = sealed ? "correct horse" : NULL;
            assert_ok(iso_key_make((iso_key_kind)kind, 1764072000999, &k, E));
            assert_ok(iso_key_format(&k, pass, &quick, &text, E));
            assert_ok(iso_key_parse(text.data, text.size, "k", (iso_key_kind)kind, pass, &back, E));
            assert_int_equal(back.kind, kind);
            assert_int_equal(back.created_ms, 1764072000000);
            assert_int_equal(back.is_bare, !sealed);
            assert_memory_equal(back.public_key, k.public_key, 32);
            assert_memory_equal(back.secret, k.secret, iso_key_kind_signs(k.kind) ? 64 : 32);
            iso_key_free(&back);
            assert_ok(iso_key_parse_public(text.data, text.size, "k", &back, E));
            assert_memory_equal(back.public_key, k.public_key, 32);
            assert_null(back.secret);
            iso_key_free(&k);
            iso_buf_free(&text);
        }
}

static void S10_the_text_is_the_contract(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_SITE_SIGN, 1);
    iso_buf text = {0};
    assert_ok(iso_key_format(&k, "secret", &quick, &text, E));
    char *line = (char *)text.data;
    static const char *const starts[] = {"isofed key 1\n",
                                         "kind: site-sign\n",
                                         "public: ",
                                         "created: 2023-11-14T22:13:20Z\n",
                                         "kdf: argon2id 1 8388608\n",
                                         "salt: ",
                                         "nonce: ",
                                         "secret: "};
    for (size_t i = 0; i < 8; i++) {
        assert_int_equal(strncmp(line, starts[i], strlen(starts[i])), 0);
        line = strchr(line, '\n') + 1;
    }
    assert_int_equal(*line, 0);
    text.size = 0;
    assert_ok(iso_key_format(&k, NULL, NULL, &text, E));
    assert_non_null(strstr((char *)text.data, "\nkdf: none\nsecret: "));
    assert_null(strstr((char *)text.data, "salt"));
    iso_kdf_cost moderate = iso_kdf_moderate();
    assert_int_equal(moderate.passes, 3);
    assert_int_equal(moderate.memory_bytes, 268435456);
    iso_buf_free(&text);
    iso_key_free(&k);
}

/* Each byte of a sealed file changed, in a way that keeps it a plausible file: never opens. */
static void S10_editing_any_line_makes_opening_fail(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_MERGE, 1), back;
    iso_buf text = {0};
    iso_error e;
    assert_ok(iso_key_format(&k, "secret", &quick, &text, E));
    size_t cheap = 0;
    for (size_t i = 0; i < text.size; i++) {
        uint8_t kept = text.data[i];
        text.data[i] = kept == '1' ? '2' : kept == 'A' ? 'B' : (uint8_t)(kept ^ 1);
        iso_err err = iso_key_parse(text.data, text.size, "k", ISO_KEY_ANY, "secret", &back, &e);
        if (err == ISO_OK)
            fail_msg("byte %zu (%c) was not missed", i, kept);
        assert_null(back.secret);
        cheap += err != ISO_ERR_TRUST;
        text.data[i] = kept;
    }
    assert_in_range(cheap, 50, text.size); /* most edits are found before Argon2id runs */
    iso_buf_free(&text);
    iso_key_free(&k);
}

static void S10_wrong_passphrase_wrong_kind_no_passphrase(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_MERGE, 1), back;
    iso_buf text = {0};
    iso_error e;
    assert_ok(iso_key_format(&k, "secret", &quick, &text, E));
    assert_int_equal(iso_key_parse(text.data, text.size, "k", ISO_KEY_ANY, "Secret", &back, &e),
                     ISO_ERR_TRUST);
    assert_int_equal(iso_key_parse(text.data, text.size, "k", ISO_KEY_ANY, NULL, &back, &e),
                     ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "passphrase"));
    assert_int_equal(iso_key_parse(text.data, text.size, "k", ISO_KEY_AUDIT, "secret", &back, &e),
                     ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "merge"));
    assert_int_equal(iso_key_format(&k, "", &quick, &text, &e), ISO_ERR_USAGE);
    iso_buf_free(&text);
    iso_key_free(&k);
}

static void S13_a_public_key_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_AUDIT, 1), other = key_of(ISO_KEY_AUDIT, 2), back;
    iso_buf text = {0};
    iso_error e;
    memcpy(k.public_key, other.public_key, 32);
    assert_ok(iso_key_format(&k, NULL, NULL, &text, E));
    assert_int_equal(iso_key_parse(text.data, text.size, "k", ISO_KEY_ANY, NULL, &back, &e),
                     ISO_ERR_TRUST);
    assert_null(back.secret);
    iso_buf_free(&text);
    iso_key_free(&k);
    iso_key_free(&other);
}

static void S10_malformed_files_and_kdf_bombs(void **state)
{
    (void)state;
#define PUBLIC "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
#define SALT   "AAAAAAAAAAAAAAAAAAAAAA=="
#define NONCE  "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
#define SEALED "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
#define HEAD   "isofed key 1\nkind: merge\npublic: " PUBLIC "\ncreated: 2026-11-24T12:00:00Z\n"
#define TAIL   "salt: " SALT "\nnonce: " NONCE "\nsecret: " SEALED "\n"
    static const struct {
        const char *name, *text, *word;
        iso_err err;
    } rows[] = {
        {"empty", "", "isofed key 1", ISO_ERR_DATA},
        {"other magic", "isofed key 2\n", "isofed key 1", ISO_ERR_DATA},
        {"no newline at the end", HEAD "kdf: none\nsecret: " PUBLIC, "line", ISO_ERR_DATA},
        {"line too many", HEAD "kdf: none\nsecret: " PUBLIC "\n\n", "lines", ISO_ERR_DATA},
        {"carriage return", "isofed key 1\r\n", "isofed key 1", ISO_ERR_DATA},
        {"kind unknown",
         "isofed key 1\nkind: mirge\npublic: " PUBLIC
         "\ncreated: 2026-11-24T12:00:00Z\nkdf: none\nsecret: " PUBLIC "\n",
         "mirge", ISO_ERR_DATA},
        {"created wrong",
         "isofed key 1\nkind: merge\npublic: " PUBLIC
         "\ncreated: 2026-13-24T12:00:00Z\nkdf: none\nsecret: " PUBLIC "\n",
         "created", ISO_ERR_DATA},
        {"created not canonical",
         "isofed key 1\nkind: merge\npublic: " PUBLIC
         "\ncreated: 2026-11-24T1:00:00Z\nkdf: none\nsecret: " PUBLIC "\n",
         "created", ISO_ERR_DATA},
        {"kdf memory bomb", HEAD "kdf: argon2id 3 1099511627776\n" TAIL, "KEY_KDF", ISO_ERR_TRUST},
        {"kdf passes bomb", HEAD "kdf: argon2id 11 8388608\n" TAIL, "KEY_KDF", ISO_ERR_TRUST},
        {"kdf no pass", HEAD "kdf: argon2id 0 8388608\n" TAIL, "KEY_KDF", ISO_ERR_TRUST},
        {"kdf little memory", HEAD "kdf: argon2id 1 8388607\n" TAIL, "KEY_KDF", ISO_ERR_TRUST},
        {"kdf negative", HEAD "kdf: argon2id -1 8388608\n" TAIL, "kdf", ISO_ERR_DATA},
        {"kdf leading zero", HEAD "kdf: argon2id 01 8388608\n" TAIL, "kdf", ISO_ERR_DATA},
        {"kdf other", HEAD "kdf: scrypt 1 8388608\n" TAIL, "kdf", ISO_ERR_DATA},
        {"kdf past 64 bits", HEAD "kdf: argon2id 1 99999999999999999999999\n" TAIL, "kdf",
         ISO_ERR_DATA},
        {"salt short",
         HEAD "kdf: argon2id 1 8388608\nsalt: AAAA\nnonce: " NONCE "\nsecret: " SEALED "\n", "salt",
         ISO_ERR_DATA},
        {"secret short", HEAD "kdf: none\nsecret: AAAA\n", "secret", ISO_ERR_DATA},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_key k;
        iso_error e = {.text = ""};
        iso_err err = iso_key_parse(rows[i].text, strlen(rows[i].text), "the file", ISO_KEY_ANY,
                                    "pass", &k, &e);
        if (err != rows[i].err || !strstr(e.text, rows[i].word))
            fail_msg("%s: %s: %s", rows[i].name, iso_err_name(err), e.text);
    }
    static const char with_nul[] = "isofed key 1\nkind: merge\0x\n";
    iso_key k;
    iso_error e;
    assert_int_equal(iso_key_parse(with_nul, sizeof with_nul - 1, "f", ISO_KEY_ANY, NULL, &k, &e),
                     ISO_ERR_DATA);
}

static void S11_modes_links_and_folders(void **state)
{
    (void)state;
    char *folder = scratch_folder();
    char *path = iso_path_join(folder, "sign.key"), *link = iso_path_join(folder, "link.key");
    char *fifo = iso_path_join(folder, "fifo");
    iso_key k = key_of(ISO_KEY_SITE_SIGN, 1), back;
    iso_error e;
    struct stat st;
    assert_ok(iso_key_write(&k, path, NULL, NULL, E));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_ok(iso_key_read(path, ISO_KEY_SITE_SIGN, NULL, &back, E));
    assert_memory_equal(back.secret, k.secret, 64);
    iso_key_free(&back);
    static const mode_t loose[] = {0640, 0604, 0660, 0610, 0644};
    for (size_t i = 0; i < sizeof loose / sizeof loose[0]; i++) {
        assert_int_equal(chmod(path, loose[i]), 0);
        assert_int_equal(iso_key_read(path, ISO_KEY_SITE_SIGN, NULL, &back, &e), ISO_ERR_TRUST);
        assert_non_null(strstr(e.text, "chmod 600"));
        assert_int_equal(iso_exit_code(e.code), 4);
    }
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(symlink(path, link), 0);
    assert_int_equal(iso_key_read(link, ISO_KEY_SITE_SIGN, NULL, &back, &e), ISO_ERR_TRUST);
    assert_non_null(strstr(e.text, "symbolic link"));
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(iso_key_read(fifo, ISO_KEY_SITE_SIGN, NULL, &back, &e), ISO_ERR_TRUST);
    assert_int_equal(iso_key_read(folder, ISO_KEY_SITE_SIGN, NULL, &back, &e), ISO_ERR_TRUST);
    assert_int_equal(iso_key_write(&k, path, NULL, NULL, &e), ISO_ERR_TRUST); /* never over one */
    assert_int_equal(iso_key_write(&k, link, NULL, NULL, &e), ISO_ERR_TRUST);
    assert_ok(iso_key_read(path, ISO_KEY_SITE_SIGN, NULL, &back, E));
    iso_key_free(&back);
    iso_names names = {0};
    assert_ok(iso_list_dir(folder, &names, E));
    assert_int_equal(names.count, 3); /* no temporary file is left */
    iso_names_free(&names);
    if (geteuid() == 0) { /* a file of somebody else */
        assert_int_equal(chown(path, 12345, 12345), 0);
        assert_int_equal(iso_key_read(path, ISO_KEY_SITE_SIGN, NULL, &back, &e), ISO_ERR_TRUST);
        assert_non_null(strstr(e.text, "belongs to user"));
    }
    free(path);
    free(link);
    free(fifo);
    remove_folder(folder);
    iso_key_free(&k);
}

static void S12_passphrase_from_a_descriptor(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t size;
        const char *expected; /* NULL: refused */
    } rows[] = {{"open sesame\nrest", 16, "open sesame"},
                {"no newline", 10, "no newline"},
                {"\n", 1, NULL},
                {"", 0, NULL},
                {"a\0b\n", 4, NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int ends[2];
        char *got = NULL;
        iso_error e;
        assert_int_equal(pipe(ends), 0);
        assert_int_equal(write(ends[1], rows[i].text, rows[i].size), rows[i].size);
        close(ends[1]);
        iso_err err = iso_passphrase_from_fd(ends[0], &got, &e);
        close(ends[0]);
        if (rows[i].expected) {
            assert_int_equal(err, ISO_OK);
            assert_string_equal(got, rows[i].expected);
        } else {
            assert_int_equal(err, ISO_ERR_USAGE);
            assert_null(got);
        }
        iso_secret_free(got);
    }
}

static void S12_passphrase_from_a_systemd_credential(void **state)
{
    (void)state;
    char *folder = scratch_folder(), *path = iso_path_join(folder, "merge"), *got = NULL;
    unsetenv("CREDENTIALS_DIRECTORY");
    assert_ok(iso_passphrase_from_credential("merge", &got, E));
    assert_null(got);
    setenv("CREDENTIALS_DIRECTORY", folder, 1);
    assert_ok(iso_passphrase_from_credential("merge", &got, E));
    assert_null(got);
    assert_ok(iso_write_file(path, "from systemd\n", 13, 0600, E));
    assert_ok(iso_passphrase_from_credential("merge", &got, E));
    assert_string_equal(got, "from systemd");
    iso_secret_free(got);
    unsetenv("CREDENTIALS_DIRECTORY");
    free(path);
    remove_folder(folder);
}

/* ---- the prompt, on a terminal of its own ---- */

/* Child: asks on its controlling terminal; exits 0 with the expected passphrase, 2 when refused. */
static void ask_as_child(const char *slave_name, const char *expected)
{
    char *got = NULL;
    iso_error e;
    setsid();
    int slave = open(slave_name, O_RDWR); /* becomes the controlling terminal */
    if (slave < 0)
        _exit(9);
    if (iso_passphrase_prompt("new passphrase", true, &got, &e) != ISO_OK)
        _exit(e.code == ISO_ERR_USAGE ? 2 : 9);
    _exit(strcmp(got, expected) == 0 ? 0 : 9);
}

/* Reads what the terminal shows until `until` appears; appends to `shown`. */
static void read_until(int master, const char *until, char *shown, size_t room)
{
    size_t n = strlen(shown);
    while (!strstr(shown, until)) {
        struct pollfd p = {.fd = master, .events = POLLIN};
        assert_int_equal(poll(&p, 1, 10000), 1);
        ssize_t got = read(master, shown + n, room - 1 - n);
        assert_true(got > 0);
        n += (size_t)got;
        shown[n] = 0;
    }
}

static void S12_the_prompt_asks_twice_without_echo(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second;
        int code;
    } rows[] = {{"hush hush\n", "hush hush\n", 0}, {"hush hush\n", "hush hash\n", 2}};
    for (size_t i = 0; i < 2; i++) {
        char shown[1024] = "";
        int status = 0, master = posix_openpt(O_RDWR | O_NOCTTY);
        assert_true(master >= 0);
        assert_int_equal(grantpt(master) | unlockpt(master), 0);
        char slave_name[64];
        assert_int_equal(ptsname_r(master, slave_name, sizeof slave_name), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            ask_as_child(slave_name, "hush hush");
        read_until(master, "new passphrase: ", shown, sizeof shown);
        assert_int_equal(write(master, rows[i].first, 10), 10);
        read_until(master, "again: ", shown, sizeof shown);
        assert_int_equal(write(master, rows[i].second, 10), 10);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(WEXITSTATUS(status), rows[i].code);
        assert_null(strstr(shown, "hush"));
        close(master);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S13_every_kind_there_and_back),
        cmocka_unit_test(S10_the_text_is_the_contract),
        cmocka_unit_test(S10_editing_any_line_makes_opening_fail),
        cmocka_unit_test(S10_wrong_passphrase_wrong_kind_no_passphrase),
        cmocka_unit_test(S13_a_public_key_that_does_not_fit_is_refused),
        cmocka_unit_test(S10_malformed_files_and_kdf_bombs),
        cmocka_unit_test(S11_modes_links_and_folders),
        cmocka_unit_test(S12_passphrase_from_a_descriptor),
        cmocka_unit_test(S12_passphrase_from_a_systemd_credential),
        cmocka_unit_test(S12_the_prompt_asks_twice_without_echo),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
