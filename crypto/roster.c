#include "crypto/roster.h"
#include "crypto/json_fields.h"
#include "crypto/key.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const states[ISO_ROSTER_STATES] = {"active", "decrypt-only", "retired"};

/* ---- struct to text ---- */

/* Validity of a key, the same for both lists. */
typedef struct {
    uint64_t not_before_ms, not_after_ms;
    iso_roster_state state;
} validity;

static iso_json *key_json(const uint8_t *id, size_t id_bytes, const uint8_t pk[32], validity v)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "id", iso_json_hex(id, id_bytes));
    iso_json_set(o, "pk", iso_json_hex(pk, 32));
    iso_json_set(o, "not_before_ms", iso_json_integer((int64_t)v.not_before_ms));
    iso_json_set(o, "not_after_ms", iso_json_integer((int64_t)v.not_after_ms));
    iso_json_set(o, "state", iso_json_string(states[v.state]));
    return o;
}

static iso_json *build(const iso_roster *r)
{
    iso_json *o = iso_json_object(), *merge = iso_json_array(), *release = iso_json_array();
    iso_json *root = iso_json_object();
    for (size_t i = 0; i < r->merge_count; i++) {
        const iso_roster_merge *k = &r->merge[i];
        validity v = {k->not_before_ms, k->not_after_ms, k->state};
        iso_json_push(merge, key_json(k->id, 16, k->pk, v));
    }
    for (size_t i = 0; i < r->release_count; i++) {
        const iso_roster_release *k = &r->release[i];
        validity v = {k->not_before_ms, k->not_after_ms, k->state};
        iso_json_push(release, key_json(k->key.key_id, 8, k->key.public_key, v));
    }
    iso_json_set(root, "id", iso_json_hex(r->root.key_id, 8));
    iso_json_set(root, "pk", iso_json_hex(r->root.public_key, 32));
    iso_json_set(o, "format", iso_json_integer(ISO_ROSTER_FORMAT));
    iso_json_set(o, "federation", iso_json_hex(r->federation_id, 16));
    iso_json_set(o, "version", iso_json_integer((int64_t)r->version));
    iso_json_set(o, "coordinator_transport", iso_json_hex(r->coordinator_transport_pk, 32));
    iso_json_set(o, "audit", iso_json_hex(r->audit_pk, 32));
    iso_json_set(o, "root", root);
    iso_json_set(o, "merge", merge);
    iso_json_set(o, "release", release);
    iso_json_set(o, "threshold", iso_json_integer(r->threshold));
    return o;
}

iso_err iso_roster_format(const iso_roster *r, iso_buf *out, iso_error *e)
{
    size_t start = out->size;
    iso_roster again;
    if (r->merge_count > ISO_ROSTER_KEYS_MAX || r->release_count > ISO_ROSTER_KEYS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "roster: more than %d keys in a list",
                        ISO_ROSTER_KEYS_MAX);
    for (size_t i = 0; i < r->merge_count; i++)
        if ((unsigned)r->merge[i].state >= ISO_ROSTER_STATES)
            return iso_fail(e, ISO_ERR_DATA, "roster: state %d", (int)r->merge[i].state);
    for (size_t i = 0; i < r->release_count; i++)
        if ((unsigned)r->release[i].state >= ISO_ROSTER_STATES)
            return iso_fail(e, ISO_ERR_DATA, "roster: state %d", (int)r->release[i].state);
    iso_json *o = build(r);
    iso_err err = iso_json_dump(o, ISO_JSON_CANONICAL, out, e);
    iso_json_free(o);
    if (!err) /* what we write, sites must be able to read */
        err = iso_roster_parse(out->data + start, out->size - start, &again, e);
    if (!err && (again.merge_count != r->merge_count || again.release_count != r->release_count))
        err = iso_nomem(e, out->size - start); /* a list lost an element on the way */
    if (err)
        out->size = start;
    return err;
}

/* ---- text to struct ---- */

static iso_err read_key(const iso_json *o, size_t id_bytes, uint8_t *id, uint8_t pk[32],
                        validity *v, iso_error *e)
{
    static const char *const keys[] = {"id", "pk", "not_before_ms", "not_after_ms", "state", NULL};
    const char *state = NULL;
    iso_err err = iso_fields_exact(o, "roster key", keys, e);
    if (!err)
        err = iso_field_hex(o, "id", id, id_bytes, e);
    if (!err)
        err = iso_field_hex(o, "pk", pk, 32, e);
    if (!err)
        err = iso_field_u64(o, "not_before_ms", &v->not_before_ms, e);
    if (!err)
        err = iso_field_u64(o, "not_after_ms", &v->not_after_ms, e);
    if (!err)
        err = iso_json_need_str(o, "state", &state, e);
    if (err)
        return err;
    if (v->not_after_ms && v->not_after_ms <= v->not_before_ms)
        return iso_fail(e, ISO_ERR_DATA, "roster: a key ends before it begins");
    unsigned k = 0;
    while (k < ISO_ROSTER_STATES && strcmp(states[k], state) != 0)
        k++;
    if (k == ISO_ROSTER_STATES)
        return iso_fail(e, ISO_ERR_DATA, "roster: state \"%.40s\" is not known", state);
    v->state = (iso_roster_state)k;
    return ISO_OK;
}

static iso_err read_merge(const iso_json *o, iso_roster *out, iso_error *e)
{
    const iso_json *list = NULL;
    iso_err err = iso_field_array(o, "merge", ISO_ROSTER_KEYS_MAX, &list, e);
    if (err)
        return err;
    out->merge_count = iso_json_count(list);
    for (size_t i = 0; i < out->merge_count; i++) {
        iso_roster_merge *k = &out->merge[i];
        validity v = {0};
        uint8_t id[16];
        err = read_key(iso_json_at(list, i), 16, k->id, k->pk, &v, e);
        if (err)
            return err;
        iso_merge_key_id(k->pk, id);
        if (memcmp(id, k->id, 16) != 0)
            return iso_fail(e, ISO_ERR_DATA, "roster: a merge key's id is not its key's");
        for (size_t j = 0; j < i; j++)
            if (memcmp(out->merge[j].id, k->id, 16) == 0)
                return iso_fail(e, ISO_ERR_DATA, "roster: a merge key is there twice");
        k->not_before_ms = v.not_before_ms;
        k->not_after_ms = v.not_after_ms;
        k->state = v.state;
    }
    return ISO_OK;
}

static iso_err read_release(const iso_json *o, iso_roster *out, iso_error *e)
{
    const iso_json *list = NULL;
    iso_err err = iso_field_array(o, "release", ISO_ROSTER_KEYS_MAX, &list, e);
    if (err)
        return err;
    out->release_count = iso_json_count(list);
    for (size_t i = 0; i < out->release_count; i++) {
        iso_roster_release *k = &out->release[i];
        validity v = {0};
        err = read_key(iso_json_at(list, i), 8, k->key.key_id, k->key.public_key, &v, e);
        if (err)
            return err;
        if (v.state == ISO_ROSTER_DECRYPT_ONLY)
            return iso_fail(e, ISO_ERR_DATA, "roster: a release key cannot be decrypt-only");
        for (size_t j = 0; j < i; j++)
            if (memcmp(out->release[j].key.key_id, k->key.key_id, 8) == 0)
                return iso_fail(e, ISO_ERR_DATA, "roster: a release key is there twice");
        k->not_before_ms = v.not_before_ms;
        k->not_after_ms = v.not_after_ms;
        k->state = v.state;
    }
    return ISO_OK;
}

static iso_err read_all(const iso_json *o, iso_roster *out, iso_error *e)
{
    static const char *const keys[] = {
        "format",  "federation", "version", "coordinator_transport", "audit", "root", "merge",
        "release", "threshold",  NULL};
    static const char *const root_keys[] = {"id", "pk", NULL};
    int64_t format = 0, threshold = 0;
    const iso_json *root = NULL;
    iso_err err = iso_fields_exact(o, "roster", keys, e);
    if (!err)
        err = iso_json_need_int(o, "format", ISO_ROSTER_FORMAT, ISO_ROSTER_FORMAT, &format, e);
    if (!err)
        err = iso_field_hex(o, "federation", out->federation_id, 16, e);
    if (!err)
        err = iso_field_u64(o, "version", &out->version, e);
    if (!err)
        err = iso_field_hex(o, "coordinator_transport", out->coordinator_transport_pk, 32, e);
    if (!err)
        err = iso_field_hex(o, "audit", out->audit_pk, 32, e);
    if (!err)
        err = iso_field_object(o, "root", &root, e);
    if (!err)
        err = iso_fields_exact(root, "root", root_keys, e);
    if (!err)
        err = iso_field_hex(root, "id", out->root.key_id, 8, e);
    if (!err)
        err = iso_field_hex(root, "pk", out->root.public_key, 32, e);
    if (!err)
        err = read_merge(o, out, e);
    if (!err)
        err = read_release(o, out, e);
    if (!err)
        err = iso_json_need_int(o, "threshold", 1, 2, &threshold, e);
    if (err)
        return err;
    out->threshold = (uint32_t)threshold;
    if (out->version == 0)
        return iso_fail(e, ISO_ERR_DATA, "roster: versions count from 1");
    return ISO_OK;
}

iso_err iso_roster_parse(const void *text, size_t size, iso_roster *out, iso_error *e)
{
    iso_json *o = NULL;
    memset(out, 0, sizeof *out);
    if (size > ISO_MANIFEST_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "roster: is larger than 256 KiB");
    iso_err err = iso_json_parse(text, size, "roster", &o, e);
    if (!err)
        err = iso_json_check_canonical(text, size, "roster", e);
    if (!err)
        err = read_all(o, out, e);
    iso_json_free(o);
    if (err)
        memset(out, 0, sizeof *out);
    return err;
}

/* ---- signatures ---- */

static void comment_for(const iso_roster *r, const void *text, size_t size,
                        char out[ISO_MINISIGN_COMMENT_MAX])
{
    char federation[33], digest[65];
    iso_digest d = iso_digest_of(text, size);
    iso_hex(federation, r->federation_id, 16);
    iso_hex(digest, d.b, 32);
    snprintf(out, ISO_MINISIGN_COMMENT_MAX,
             "isofed-roster federation=%s version=%" PRIu64 " digest=%s", federation, r->version,
             digest);
}

iso_err iso_roster_sign(const iso_minisign_key *root, const void *text, size_t size,
                        iso_buf *signature, iso_error *e)
{
    char comment[ISO_MINISIGN_COMMENT_MAX];
    iso_roster r;
    iso_err err = iso_roster_parse(text, size, &r, e);
    if (err)
        return err;
    comment_for(&r, text, size, comment);
    return iso_minisign_sign(root, text, size, comment, signature, e);
}

static bool same_key(const iso_minisign_public *a, const iso_minisign_public *b)
{
    return memcmp(a->key_id, b->key_id, 8) == 0 && memcmp(a->public_key, b->public_key, 32) == 0;
}

/* Signature by `root` over the text, with the comment that names it. */
static iso_err check_signed(const iso_minisign_public *root, const void *text, size_t size,
                            const void *signature, size_t signature_bytes, iso_roster *out,
                            iso_error *e)
{
    char comment[ISO_MINISIGN_COMMENT_MAX], expected[ISO_MINISIGN_COMMENT_MAX];
    iso_err err = iso_minisign_verify(root, text, size, signature, signature_bytes,
                                      "roster.json.minisig", comment, e);
    if (!err)
        err = iso_roster_parse(text, size, out, e);
    if (err)
        return err;
    comment_for(out, text, size, expected);
    if (strcmp(comment, expected) != 0)
        return iso_fail(e, ISO_ERR_TRUST,
                        "roster.json.minisig: trusted comment does not name this roster");
    return ISO_OK;
}

iso_err iso_roster_verify(const iso_minisign_public *root, const void *text, size_t size,
                          const void *signature, size_t signature_bytes, iso_roster *out,
                          iso_error *e)
{
    iso_roster r;
    memset(out, 0, sizeof *out);
    iso_err err = check_signed(root, text, size, signature, signature_bytes, &r, e);
    if (err)
        return err;
    if (!same_key(&r.root, root))
        return iso_fail(e, ISO_ERR_TRUST, "roster: names another root key than the one pinned");
    *out = r;
    return ISO_OK;
}

iso_err iso_roster_step(const iso_roster *held, const void *text, size_t size,
                        const void *signature, size_t signature_bytes, const void *second,
                        size_t second_bytes, iso_roster *out, iso_error *e)
{
    iso_roster r, same;
    iso_err err = check_signed(&held->root, text, size, signature, signature_bytes, &r, e);
    if (err)
        return err;
    if (memcmp(r.federation_id, held->federation_id, 16) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "roster: is of another federation");
    if (r.version != held->version + 1)
        return iso_fail(e, ISO_ERR_TRUST, "roster: version %" PRIu64 " cannot follow %" PRIu64,
                        r.version, held->version);
    if (!same_key(&r.root, &held->root)) {
        if (!second)
            return iso_fail(e, ISO_ERR_TRUST, "roster: the new root key has not signed it");
        err = check_signed(&r.root, text, size, second, second_bytes, &same, e);
        if (err)
            return err;
    }
    *out = r;
    return ISO_OK;
}

/* ---- choosing ---- */

static bool is_valid_at(uint64_t not_before_ms, uint64_t not_after_ms, uint64_t now_ms)
{
    return now_ms >= not_before_ms && (not_after_ms == 0 || now_ms < not_after_ms);
}

const iso_roster_merge *iso_roster_merge_now(const iso_roster *r, uint64_t now_ms)
{
    const iso_roster_merge *best = NULL;
    for (size_t i = 0; i < r->merge_count; i++) {
        const iso_roster_merge *k = &r->merge[i];
        if (k->state != ISO_ROSTER_ACTIVE ||
            !is_valid_at(k->not_before_ms, k->not_after_ms, now_ms))
            continue;
        if (!best || k->not_before_ms > best->not_before_ms)
            best = k;
    }
    return best;
}

const iso_roster_release *iso_roster_release_key(const iso_roster *r, const uint8_t key_id[8],
                                                 uint64_t now_ms)
{
    for (size_t i = 0; i < r->release_count; i++) {
        const iso_roster_release *k = &r->release[i];
        if (memcmp(k->key.key_id, key_id, 8) == 0 && k->state == ISO_ROSTER_ACTIVE &&
            is_valid_at(k->not_before_ms, k->not_after_ms, now_ms))
            return k;
    }
    return NULL;
}
