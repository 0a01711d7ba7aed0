#include "crypto/key.h"
#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/text.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    KEY_FILE_MAX_BYTES = 4096,
    LINES_MAX = 8,
    PASSES_MIN = 1,
    PASSES_MAX = 10,
    SECRET_FILE_BYTES = 32 /* Ed25519 seed or X25519 secret */
};
static const uint64_t memory_min = 8ull << 20, memory_max = 1ull << 30;

typedef struct {
    const char *name;
    bool signs;
} kind_row;

static const kind_row kinds[ISO_KEY_KINDS] = {
    [ISO_KEY_ANY] = {"any", false},
    [ISO_KEY_COORDINATOR_TRANSPORT] = {"coordinator-transport", false},
    [ISO_KEY_SITE_TRANSPORT] = {"site-transport", false},
    [ISO_KEY_SITE_SIGN] = {"site-sign", true},
    [ISO_KEY_MERGE] = {"merge", false},
    [ISO_KEY_AUDIT] = {"audit", true},
    [ISO_KEY_BACKUP] = {"backup", false},
};

const char *iso_key_kind_name(iso_key_kind kind)
{
    return (unsigned)kind < ISO_KEY_KINDS ? kinds[kind].name : "unknown";
}

bool iso_key_kind_parse(const char *name, iso_key_kind *out)
{
    for (unsigned k = 1; k < ISO_KEY_KINDS; k++)
        if (strcmp(kinds[k].name, name) == 0) {
            *out = (iso_key_kind)k;
            return true;
        }
    return false;
}

bool iso_key_kind_signs(iso_key_kind kind)
{
    return (unsigned)kind < ISO_KEY_KINDS && kinds[kind].signs;
}

/* ---- pairs ---- */

static size_t secret_bytes(iso_key_kind kind)
{
    return iso_key_kind_signs(kind) ? ISO_ED25519_SECRET_BYTES : SECRET_FILE_BYTES;
}

iso_err iso_key_from_seed(iso_key_kind kind, const uint8_t seed[ISO_SEED_BYTES],
                          uint64_t created_ms, iso_key *out, iso_error *e)
{
    memset(out, 0, sizeof *out);
    if (kind <= ISO_KEY_ANY || kind >= ISO_KEY_KINDS)
        return iso_fail(e, ISO_ERR_INTERNAL, "key kind %d", (int)kind);
    uint8_t *secret = iso_secret_alloc(secret_bytes(kind));
    if (!secret)
        return iso_nomem(e, secret_bytes(kind));
    out->kind = kind;
    out->created_ms = created_ms / 1000 * 1000; /* the file holds seconds */
    if (iso_key_kind_signs(kind)) {
        crypto_sign_seed_keypair(out->public_key, secret, seed);
    } else {
        memcpy(secret, seed, SECRET_FILE_BYTES);
        crypto_scalarmult_base(out->public_key, secret);
    }
    out->secret = secret;
    return ISO_OK;
}

iso_err iso_key_make(iso_key_kind kind, uint64_t created_ms, iso_key *out, iso_error *e)
{
    memset(out, 0, sizeof *out);
    uint8_t *seed = iso_secret_alloc(ISO_SEED_BYTES);
    if (!seed)
        return iso_nomem(e, ISO_SEED_BYTES);
    iso_random(seed, ISO_SEED_BYTES);
    iso_err err = iso_key_from_seed(kind, seed, created_ms, out, e);
    iso_secret_free(seed);
    return err;
}

void iso_key_free(iso_key *k)
{
    iso_secret_free(k->secret);
    memset(k, 0, sizeof *k);
}

iso_kdf_cost iso_kdf_moderate(void)
{
    return (iso_kdf_cost){.passes = crypto_pwhash_OPSLIMIT_MODERATE,
                          .memory_bytes = crypto_pwhash_MEMLIMIT_MODERATE};
}

/* ---- the file's text ----
 *
 * Lines 1-6 (magic to salt) are bound into the key of the secretbox, exactly as written, so that
 * editing any of them makes opening fail (S10). */

static iso_err box_key(const char *passphrase, const iso_kdf_cost *cost, const uint8_t salt[16],
                       const void *bound, size_t bound_bytes, uint8_t *key, iso_error *e)
{
    if (cost->passes < PASSES_MIN || cost->passes > PASSES_MAX || cost->memory_bytes < memory_min ||
        cost->memory_bytes > memory_max)
        return iso_fail(e, ISO_ERR_TRUST,
                        "KEY_KDF: argon2id %u %llu is outside 1-10 passes and 8 MiB-1 GiB",
                        cost->passes, (unsigned long long)cost->memory_bytes);
    uint8_t *stretched = iso_secret_alloc(32);
    if (!stretched)
        return iso_nomem(e, 32);
    iso_err err = ISO_OK;
    if (crypto_pwhash(stretched, 32, passphrase, strlen(passphrase), salt, cost->passes,
                      (size_t)cost->memory_bytes, crypto_pwhash_ALG_ARGON2ID13) != 0)
        err = iso_fail(e, ISO_ERR_MEMORY, "no memory for argon2id (%llu MiB)",
                       (unsigned long long)cost->memory_bytes >> 20);
    else
        crypto_generichash(key, 32, bound, bound_bytes, stretched, 32);
    iso_secret_free(stretched);
    return err;
}

static void time_text(uint64_t ms, char out[32])
{
    time_t seconds = (time_t)(ms / 1000);
    struct tm tm;
    if (!gmtime_r(&seconds, &tm) || strftime(out, 32, "%Y-%m-%dT%H:%M:%SZ", &tm) == 0)
        snprintf(out, 32, "1970-01-01T00:00:00Z");
}

/* Only the form that time_text() writes; years 1970 - 9999. */
static bool time_parse(const char *text, uint64_t *ms)
{
    struct tm tm = {0};
    char again[32];
    const char *end = strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm);
    if (!end || *end)
        return false;
    time_t seconds = timegm(&tm);
    if (seconds < 0)
        return false;
    *ms = (uint64_t)seconds * 1000;
    time_text(*ms, again);
    return strcmp(again, text) == 0;
}

iso_err iso_key_format(const iso_key *k, const char *passphrase, const iso_kdf_cost *cost,
                       iso_buf *out, iso_error *e)
{
    char public_text[48], created[32], salt_text[28], nonce_text[36], secret_text[72];
    uint8_t salt[16], nonce[24], box[SECRET_FILE_BYTES + crypto_secretbox_MACBYTES];
    iso_kdf_cost moderate = iso_kdf_moderate();
    if (!cost)
        cost = &moderate;
    if (!k->secret)
        return iso_fail(e, ISO_ERR_INTERNAL, "key without its secret");
    if (passphrase && !passphrase[0])
        return iso_fail(e, ISO_ERR_USAGE, "the passphrase is empty");

    size_t start = out->size;
    uint8_t *key = NULL;
    /* All of it at once: a buffer that grows would leave copies of the secret on the heap. */
    iso_err err = iso_buf_reserve(out, 1024, e);
    if (err)
        return err;
    iso_base64_encode(k->public_key, 32, public_text);
    time_text(k->created_ms, created);
    err = iso_buf_printf(out, e, "isofed key 1\nkind: %s\npublic: %s\ncreated: %s\n",
                         iso_key_kind_name(k->kind), public_text, created);
    if (err)
        goto done;
    if (!passphrase) {
        /* The first 32 bytes of libsodium's Ed25519 secret are its seed. */
        iso_base64_encode(k->secret, SECRET_FILE_BYTES, secret_text);
        err = iso_buf_printf(out, e, "kdf: none\nsecret: %s\n", secret_text);
        goto done;
    }
    iso_random(salt, sizeof salt);
    iso_random(nonce, sizeof nonce);
    iso_base64_encode(salt, sizeof salt, salt_text);
    iso_base64_encode(nonce, sizeof nonce, nonce_text);
    err = iso_buf_printf(out, e, "kdf: argon2id %u %llu\nsalt: %s\n", cost->passes,
                         (unsigned long long)cost->memory_bytes, salt_text);
    if (err)
        goto done;
    key = iso_secret_alloc(32);
    if (!key) {
        err = iso_nomem(e, 32);
        goto done;
    }
    err = box_key(passphrase, cost, salt, out->data + start, out->size - start, key, e);
    if (err)
        goto done;
    crypto_secretbox_easy(box, k->secret, SECRET_FILE_BYTES, nonce, key);
    iso_base64_encode(box, sizeof box, secret_text);
    err = iso_buf_printf(out, e, "nonce: %s\nsecret: %s\n", nonce_text, secret_text);
done:
    iso_secret_free(key);
    iso_wipe(secret_text, sizeof secret_text);
    if (err)
        out->size = start;
    return err;
}

/* A key file cut into its lines. */
typedef struct {
    const char *value[LINES_MAX]; /* after "name: ", terminated, in `copy` */
    size_t bound_bytes;           /* of lines 1-6 with their newlines */
    bool is_bare;
    char *copy; /* owned, locked */
} key_lines;

static iso_err split(const void *text, size_t size, const char *what, key_lines *out, iso_error *e)
{
    static const char *const sealed[] = {
        "", "kind: ", "public: ", "created: ", "kdf: ", "salt: ", "nonce: ", "secret: "};
    static const char *const bare[] = {"", "kind: ", "public: ", "created: ", "kdf: ", "secret: "};
    memset(out, 0, sizeof *out);
    if (size > KEY_FILE_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "%s: larger than a key file can be", what);
    char *copy = iso_secret_alloc(size + 1);
    if (!copy)
        return iso_nomem(e, size + 1);
    memcpy(copy, text, size);
    out->copy = copy;

    const char *lines[LINES_MAX];
    size_t count = 0, at = 0;
    while (at < size) {
        char *end = memchr(copy + at, '\n', size - at);
        if (!end || count == LINES_MAX)
            return iso_fail(e, ISO_ERR_DATA, "%s: not an isofed key file (line %zu)", what,
                            count + 1);
        *end = 0;
        if (strlen(copy + at) != (size_t)(end - copy) - at)
            return iso_fail(e, ISO_ERR_DATA, "%s: line %zu holds a NUL", what, count + 1);
        lines[count++] = copy + at;
        at = (size_t)(end - copy) + 1;
        if (count == 6)
            out->bound_bytes = at;
    }
    if (count == 0 || strcmp(lines[0], "isofed key 1") != 0)
        return iso_fail(e, ISO_ERR_DATA, "%s: does not start with \"isofed key 1\"", what);
    out->is_bare = count > 4 && strcmp(lines[4], "kdf: none") == 0;
    const char *const *names = out->is_bare ? bare : sealed;
    size_t expected = out->is_bare ? 6 : 8;
    if (count != expected)
        return iso_fail(e, ISO_ERR_DATA, "%s: has %zu lines, should have %zu", what, count,
                        expected);
    for (size_t i = 1; i < count; i++) {
        if (strncmp(lines[i], names[i], strlen(names[i])) != 0)
            return iso_fail(e, ISO_ERR_DATA, "%s: line %zu should start with \"%s\"", what, i + 1,
                            names[i]);
        out->value[i] = lines[i] + strlen(names[i]);
    }
    return ISO_OK;
}

/* "argon2id <passes> <bytes>", decimal, one encoding only. */
static bool parse_kdf(const char *text, iso_kdf_cost *out)
{
    unsigned passes;
    unsigned long long bytes;
    char again[64];
    if (strlen(text) > 40 || sscanf(text, "argon2id %9u %15llu", &passes, &bytes) != 2)
        return false;
    snprintf(again, sizeof again, "argon2id %u %llu", passes, bytes);
    *out = (iso_kdf_cost){.passes = passes, .memory_bytes = bytes};
    return strcmp(again, text) == 0;
}

static iso_err parse_head(const key_lines *l, const char *what, iso_key *out, iso_error *e)
{
    if (!iso_key_kind_parse(l->value[1], &out->kind))
        return iso_fail(e, ISO_ERR_DATA, "%s: kind \"%.40s\" is not known", what, l->value[1]);
    if (!iso_base64_decode(l->value[2], strlen(l->value[2]), out->public_key, 32))
        return iso_fail(e, ISO_ERR_DATA, "%s: public key should be base64 of 32 bytes", what);
    if (!time_parse(l->value[3], &out->created_ms))
        return iso_fail(e, ISO_ERR_DATA, "%s: created should be like 2026-11-24T12:00:00Z", what);
    out->is_bare = l->is_bare;
    return ISO_OK;
}

/* The secret's 32 bytes into `seed`. */
static iso_err open_secret(const key_lines *l, const void *text, const char *what,
                           const char *passphrase, uint8_t *seed, iso_error *e)
{
    uint8_t salt[16], nonce[24], box[SECRET_FILE_BYTES + crypto_secretbox_MACBYTES];
    iso_kdf_cost cost;
    const char *secret = l->value[l->is_bare ? 5 : 7];
    if (l->is_bare) {
        if (!iso_base64_decode(secret, strlen(secret), seed, SECRET_FILE_BYTES))
            return iso_fail(e, ISO_ERR_DATA, "%s: secret should be base64 of 32 bytes", what);
        return ISO_OK;
    }
    if (!parse_kdf(l->value[4], &cost))
        return iso_fail(e, ISO_ERR_DATA, "%s: kdf should be \"none\" or \"argon2id PASSES BYTES\"",
                        what);
    if (!iso_base64_decode(l->value[5], strlen(l->value[5]), salt, sizeof salt) ||
        !iso_base64_decode(l->value[6], strlen(l->value[6]), nonce, sizeof nonce) ||
        !iso_base64_decode(secret, strlen(secret), box, sizeof box))
        return iso_fail(e, ISO_ERR_DATA, "%s: salt, nonce or secret is not base64 of its length",
                        what);
    if (!passphrase)
        return iso_fail(e, ISO_ERR_TRUST, "%s: is sealed: a passphrase is needed", what);
    uint8_t *key = iso_secret_alloc(32);
    if (!key)
        return iso_nomem(e, 32);
    iso_err err = box_key(passphrase, &cost, salt, text, l->bound_bytes, key, e);
    if (err)
        iso_error_context(e, "%s", what);
    else if (crypto_secretbox_open_easy(seed, box, sizeof box, nonce, key) != 0)
        err = iso_fail(e, ISO_ERR_TRUST, "%s: wrong passphrase, or the file was edited", what);
    iso_secret_free(key);
    return err;
}

iso_err iso_key_parse(const void *text, size_t size, const char *what, iso_key_kind expected,
                      const char *passphrase, iso_key *out, iso_error *e)
{
    key_lines lines;
    iso_key head = {0};
    uint8_t *seed = NULL;
    memset(out, 0, sizeof *out);
    iso_err err = split(text, size, what, &lines, e);
    if (!err)
        err = parse_head(&lines, what, &head, e);
    if (err)
        goto done;
    if (expected != ISO_KEY_ANY && head.kind != expected) {
        err = iso_fail(e, ISO_ERR_TRUST, "%s: is a %s key, a %s key is needed", what,
                       iso_key_kind_name(head.kind), iso_key_kind_name(expected));
        goto done;
    }
    seed = iso_secret_alloc(SECRET_FILE_BYTES);
    if (!seed) {
        err = iso_nomem(e, SECRET_FILE_BYTES);
        goto done;
    }
    err = open_secret(&lines, text, what, passphrase, seed, e);
    if (!err)
        err = iso_key_from_seed(head.kind, seed, head.created_ms, out, e);
    if (!err && memcmp(out->public_key, head.public_key, 32) != 0) /* S13 */
        err = iso_fail(e, ISO_ERR_TRUST, "%s: the public key does not belong to the secret", what);
    out->is_bare = head.is_bare;
done:
    iso_secret_free(seed);
    iso_secret_free(lines.copy);
    if (err)
        iso_key_free(out);
    return err;
}

iso_err iso_key_parse_public(const void *text, size_t size, const char *what, iso_key *out,
                             iso_error *e)
{
    key_lines lines;
    memset(out, 0, sizeof *out);
    iso_err err = split(text, size, what, &lines, e);
    if (!err)
        err = parse_head(&lines, what, out, e);
    iso_secret_free(lines.copy);
    if (err)
        memset(out, 0, sizeof *out);
    return err;
}

iso_err iso_key_write(const iso_key *k, const char *path, const char *passphrase,
                      const iso_kdf_cost *cost, iso_error *e)
{
    iso_buf text = {0};
    iso_err err = iso_key_format(k, passphrase, cost, &text, e);
    if (!err)
        err = iso_secret_file_write(path, text.data, text.size, e);
    if (text.data)
        iso_wipe(text.data, text.capacity);
    iso_buf_free(&text);
    return err;
}

iso_err iso_key_read(const char *path, iso_key_kind expected, const char *passphrase, iso_key *out,
                     iso_error *e)
{
    iso_buf text = {0};
    memset(out, 0, sizeof *out);
    iso_err err = iso_secret_file_read(path, KEY_FILE_MAX_BYTES, &text, e);
    if (!err)
        err = iso_key_parse(text.data, text.size, path, expected, passphrase, out, e);
    if (text.data)
        iso_wipe(text.data, text.capacity);
    iso_buf_free(&text);
    return err;
}

iso_err iso_key_read_public(const char *path, iso_key *out, iso_error *e)
{
    iso_buf text = {0};
    memset(out, 0, sizeof *out);
    iso_err err = iso_secret_file_read(path, KEY_FILE_MAX_BYTES, &text, e);
    if (!err)
        err = iso_key_parse_public(text.data, text.size, path, out, e);
    if (text.data)
        iso_wipe(text.data, text.capacity);
    iso_buf_free(&text);
    return err;
}
