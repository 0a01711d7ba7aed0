/* release.json: the signed list of what a release is (specs/security.md S90 - S92, S97). Canonical
 * JSON, at most 256 KiB; a text that is not byte-identical to its own canonical form is refused,
 * and so is an unknown or missing key. */
#ifndef ISO_CRYPTO_MANIFEST_H
#define ISO_CRYPTO_MANIFEST_H

#include "core/digest.h"
#include "core/mem.h"
#include "core/wire.h"
#include "crypto/minisign.h"

typedef enum {
    ISO_RELEASE_MERGE,
    ISO_RELEASE_ROLLBACK,
    ISO_RELEASE_GENERATION,
    ISO_RELEASE_KINDS
} iso_release_kind;

enum {
    ISO_MANIFEST_TASKS_MAX = 256,
    ISO_MANIFEST_PAIRS_MAX = 256,
    ISO_MANIFEST_PATH_MAX = 256,
    ISO_MANIFEST_FORMAT = 1
};

typedef struct {
    uint8_t id[16];
    double score, baseline; /* gate's score of the merged release; what it is compared with */
    uint64_t samples, updates;
} iso_manifest_task;

typedef struct {
    const char *path; /* relative, '/' between, no "." or ".." or empty part */
    uint64_t size;
    iso_digest digest;
} iso_manifest_file;

typedef struct {
    const char *name, *value;
} iso_manifest_parameter;

typedef struct {
    const char *name;
    double value;
} iso_manifest_score;

/* Strings and arrays are the caller's (format) or in the arena (parse). */
typedef struct {
    uint8_t federation[16];
    uint64_t epoch;
    uint64_t number;
    uint64_t previous_number; /* 0 with a zero digest for the first release */
    iso_digest previous_digest;
    uint64_t created_ms, valid_until_ms;
    iso_release_kind kind;
    uint64_t rollback_of; /* 0 unless kind is rollback */
    bool force;           /* rollback only: sites that rejected it install it all the same (S97) */
    uint64_t generation;
    iso_digest generation_digest;
    const char *method;   /* "iso_cts" */
    const char *spectrum; /* "rank" or "dense" */
    const iso_manifest_parameter *parameters;
    size_t parameter_count;
    const iso_manifest_task *tasks;
    size_t task_count;
    const iso_manifest_file *files;
    size_t file_count;
    const iso_manifest_score *scores;
    size_t score_count;
    uint64_t audit_seq;
    iso_digest audit_head;
    const char *min_software; /* "0.1.0" */
} iso_manifest;

/* Files, tasks, parameters and scores come out sorted by path, id, name; duplicates are refused. */
iso_err iso_manifest_format(const iso_manifest *m, iso_buf *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_manifest_parse(const void *text, size_t size, iso_arena *arena, iso_manifest *out,
                           iso_error *e) ISO_MUST_CHECK;
/* Sum of file sizes; false on overflow. */
bool iso_manifest_total(const iso_manifest *m, uint64_t *bytes);
bool iso_release_path_is_valid(const char *path);

/* Trusted comment: "isofed-release federation=<hex> number=<n> digest=<hex> generation=<hex>",
 * digest = BLAKE2b-256 of the manifest's text. Signs; the text must parse. */
iso_err iso_manifest_sign(const iso_minisign_key *k, const void *text, size_t size,
                          iso_buf *signature, iso_error *e) ISO_MUST_CHECK;
/* Signature, comment equal to the manifest's values, canonical text: in that order. ISO_ERR_TRUST
 * or ISO_ERR_DATA. Federation, epoch, number rules, validity and roster are the caller's. */
iso_err iso_manifest_verify(const iso_minisign_public *p, const void *text, size_t size,
                            const void *signature, size_t signature_bytes, iso_arena *arena,
                            iso_manifest *out, iso_error *e) ISO_MUST_CHECK;

#endif
