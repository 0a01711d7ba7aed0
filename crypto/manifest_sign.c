/* Signature of release.json: minisign's, with a trusted comment that names the release (S91). */
#include "crypto/manifest.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* The trusted comment of S91 for a manifest and its text. */
static void comment_for(const iso_manifest *m, const void *text, size_t size,
                        char out[ISO_MINISIGN_COMMENT_MAX])
{
    char federation[33], digest[65], generation[65];
    iso_digest d = iso_digest_of(text, size);
    iso_hex(federation, m->federation, 16);
    iso_hex(digest, d.b, 32);
    iso_hex(generation, m->generation_digest.b, 32);
    snprintf(out, ISO_MINISIGN_COMMENT_MAX,
             "isofed-release federation=%s number=%" PRIu64 " digest=%s generation=%s", federation,
             m->number, digest, generation);
}

iso_err iso_manifest_sign(const iso_minisign_key *k, const void *text, size_t size,
                          iso_buf *signature, iso_error *e)
{
    char comment[ISO_MINISIGN_COMMENT_MAX];
    iso_arena arena = {0};
    iso_manifest m;
    iso_err err = iso_manifest_parse(text, size, &arena, &m, e);
    if (!err) {
        comment_for(&m, text, size, comment);
        err = iso_minisign_sign(k, text, size, comment, signature, e);
    }
    iso_arena_free(&arena);
    return err;
}

iso_err iso_manifest_verify(const iso_minisign_public *p, const void *text, size_t size,
                            const void *signature, size_t signature_bytes, iso_arena *arena,
                            iso_manifest *out, iso_error *e)
{
    char comment[ISO_MINISIGN_COMMENT_MAX], expected[ISO_MINISIGN_COMMENT_MAX];
    memset(out, 0, sizeof *out);
    if (size > ISO_MANIFEST_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "manifest: is larger than 256 KiB");
    iso_err err = iso_minisign_verify(p, text, size, signature, signature_bytes,
                                      "release.json.minisig", comment, e);
    if (!err)
        err = iso_manifest_parse(text, size, arena, out, e);
    if (err)
        return err;
    comment_for(out, text, size, expected);
    if (strcmp(comment, expected) != 0) {
        memset(out, 0, sizeof *out);
        return iso_fail(e, ISO_ERR_TRUST,
                        "release.json.minisig: trusted comment does not name this release");
    }
    return ISO_OK;
}
