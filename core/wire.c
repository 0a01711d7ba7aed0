#include "core/wire.h"

#include <string.h>

typedef struct {
    iso_code code;
    bool is_retryable;
    const char *name;
    const char *sentence;
} code_row;

static const code_row codes[] = {
    {ISO_CODE_OK, false, "OK", "done"},
    {ISO_CODE_BAD_MESSAGE, false, "BAD_MESSAGE", "the message could not be read within its limits"},
    {ISO_CODE_VERSION, false, "VERSION",
     "no common protocol version; one of the two programs must be updated"},
    {ISO_CODE_NOT_PERMITTED, false, "NOT_PERMITTED", "this peer may not send this message now"},
    {ISO_CODE_RATE, true, "RATE", "too many requests; wait before the next"},
    {ISO_CODE_BUSY, true, "BUSY", "the coordinator has no room for it now; it will be tried again"},
    {ISO_CODE_INTERNAL, true, "INTERNAL", "the coordinator met an error of its own"},
    {ISO_CODE_UNKNOWN_ENUM, false, "UNKNOWN_ENUM",
     "the message names a kind that is not known here"},
    {ISO_CODE_FEDERATION, false, "FEDERATION", "this coordinator serves another federation"},
    {ISO_CODE_EPOCH, true, "EPOCH", "the coordinator was restored from a backup; greet it again"},
    {ISO_CODE_TOKEN_UNKNOWN, false, "TOKEN_UNKNOWN",
     "the token is not known here; ask for a new one"},
    {ISO_CODE_TOKEN_USED, false, "TOKEN_USED",
     "the token has been used with other keys; ask for a new one and tell the operator"},
    {ISO_CODE_TOKEN_EXPIRED, false, "TOKEN_EXPIRED", "the token has expired; ask for a new one"},
    {ISO_CODE_MAC, false, "MAC", "the proof does not fit the token"},
    {ISO_CODE_PENDING, true, "PENDING", "the site waits for the operator's approval"},
    {ISO_CODE_REVOKED, false, "REVOKED", "the site has been revoked"},
    {ISO_CODE_NAME_TAKEN, false, "NAME_TAKEN", "another site has this name; choose another"},
    {ISO_CODE_QUARANTINED, false, "QUARANTINED",
     "the site is quarantined; its updates are not used"},
    {ISO_CODE_BAD_ENVELOPE, false, "BAD_ENVELOPE", "the envelope's header does not hold"},
    {ISO_CODE_WRONG_SITE, false, "WRONG_SITE", "the envelope names another site or federation"},
    {ISO_CODE_TASK, false, "TASK", "the task, adapter kind or metric is not this site's"},
    {ISO_CODE_TOO_LARGE, false, "TOO_LARGE", "the update is larger than the task allows"},
    {ISO_CODE_QUOTA, false, "QUOTA", "the site's quota of unfinished uploads is used up"},
    {ISO_CODE_DISK, true, "DISK",
     "the coordinator has no disk space to spare; it will be tried again"},
    {ISO_CODE_ROUND_CLOSED, false, "ROUND_CLOSED", "the round is closed"},
    {ISO_CODE_GENERATION, false, "GENERATION",
     "the update was trained on another backbone generation"},
    {ISO_CODE_BASE, false, "BASE", "the update started from another adapter than the round's"},
    {ISO_CODE_MERGE_KEY, false, "MERGE_KEY",
     "the update is sealed to a merge key that is not in use"},
    {ISO_CODE_SIGNATURE, false, "SIGNATURE", "the signature does not hold under the site's key"},
    {ISO_CODE_SEQUENCE, false, "SEQUENCE", "the sequence number is not above the site's last"},
    {ISO_CODE_EQUIVOCATION, false, "EQUIVOCATION",
     "another update was signed for the same site, task and round"},
    {ISO_CODE_CHUNK, false, "CHUNK",
     "a chunk came out of order, outside its credit or with a wrong length"},
    {ISO_CODE_BODY_DIGEST, false, "BODY_DIGEST",
     "the bytes that arrived are not those that were signed"},
    {ISO_CODE_UPLOAD_UNKNOWN, true, "UPLOAD_UNKNOWN",
     "the upload is not known here; begin it again"},
    {ISO_CODE_SEAL_MODE, false, "SEAL_MODE", "the way of sealing is not known here"},
    {ISO_CODE_SEALED, false, "SEALED", "the key box does not open under the merge key"},
    {ISO_CODE_STREAM, false, "STREAM", "a sealed chunk was changed, moved or repeated"},
    {ISO_CODE_STREAM_TAG, false, "STREAM_TAG", "a sealed chunk has the wrong tag"},
    {ISO_CODE_TRUNCATED, false, "TRUNCATED", "the sealed update ends too early or too late"},
    {ISO_CODE_INNER_MISMATCH, false, "INNER_MISMATCH",
     "the sealed part names another sender than the header"},
    {ISO_CODE_INFLATE, false, "INFLATE", "the compressed payload does not hold its sizes"},
    {ISO_CODE_CONTAINER, false, "CONTAINER", "the payload is not a well-formed adapter container"},
    {ISO_CODE_BAD_FILE, false, "BAD_FILE", "a file of the adapter is malformed"},
    {ISO_CODE_SHAPE, false, "SHAPE", "names or shapes differ from the task's targets"},
    {ISO_CODE_NONFINITE, false, "NONFINITE", "the adapter holds NaN or infinity"},
    {ISO_CODE_NORM, false, "NORM", "the adapter's change is larger than the task's norm cap"},
    {ISO_CODE_OUTLIER, false, "OUTLIER", "the robust rule of the task left the update out"},
    {ISO_CODE_EMPTY, false, "EMPTY", "the update changes nothing"},
    {ISO_CODE_BLOB_UNKNOWN, false, "BLOB_UNKNOWN", "no such blob is served to this site"},
    {ISO_CODE_RELEASE_OLD, false, "RELEASE_OLD",
     "the release is not newer than what was seen before"},
    {ISO_CODE_RELEASE_EXPIRED, false, "RELEASE_EXPIRED", "the release's validity has ended"},
    {ISO_CODE_RELEASE_SIGNATURE, false, "RELEASE_SIGNATURE",
     "the release is not signed by a valid release key"},
    {ISO_CODE_RELEASE_MISMATCH, false, "RELEASE_MISMATCH",
     "the release is for another federation, generation or file list"},
};

static const code_row *find_code(uint32_t number)
{
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if ((uint32_t)codes[i].code == number)
            return &codes[i];
    return NULL;
}

const char *iso_code_name(iso_code code)
{
    const code_row *row = find_code((uint32_t)code);
    return row ? row->name : "UNKNOWN";
}

const char *iso_code_sentence(iso_code code)
{
    const code_row *row = find_code((uint32_t)code);
    return row ? row->sentence : "unknown code";
}

bool iso_code_is_retryable(iso_code code)
{
    const code_row *row = find_code((uint32_t)code);
    return row && row->is_retryable;
}

bool iso_code_is_known(uint32_t number)
{
    return find_code(number) != NULL;
}

bool iso_code_parse(const char *name, iso_code *out)
{
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++)
        if (strcmp(codes[i].name, name) == 0) {
            *out = codes[i].code;
            return true;
        }
    return false;
}

/* ---- small vocabularies: the index is the number on the wire ---- */

static const char *const site_states[ISO_SITE_STATES] = {"unknown", "pending", "active",
                                                         "paused",  "revoked", "quarantined"};
static const char *const kinds[ISO_KINDS] = {"none", "lora", "data", "toast", "factorised"};
static const char *const metrics[ISO_METRICS] = {"none", "accuracy", "balanced_accuracy",
                                                 "wer",  "cer",      "loss"};
static const char *const verdicts[ISO_VERDICTS] = {"none",       "accepted", "rejected",
                                                   "unverified", "too_few",  "returned"};

static const char *word(const char *const *words, size_t count, uint32_t i)
{
    return i < count ? words[i] : "unknown";
}

/* Index of `name` from 1 on (0 is "none"), or 0. */
static uint32_t find_word(const char *const *words, size_t count, const char *name)
{
    for (uint32_t i = 1; i < count; i++)
        if (strcmp(words[i], name) == 0)
            return i;
    return 0;
}

const char *iso_site_state_name(iso_site_state s)
{
    return word(site_states, ISO_SITE_STATES, (uint32_t)s);
}

const char *iso_kind_name(iso_kind k)
{
    return word(kinds, ISO_KINDS, (uint32_t)k);
}

bool iso_kind_parse(const char *name, iso_kind *out)
{
    uint32_t i = find_word(kinds, ISO_KINDS, name);
    if (i)
        *out = (iso_kind)i;
    return i != 0;
}

const char *iso_metric_name(iso_metric m)
{
    return word(metrics, ISO_METRICS, (uint32_t)m);
}

bool iso_metric_parse(const char *name, iso_metric *out)
{
    uint32_t i = find_word(metrics, ISO_METRICS, name);
    if (i)
        *out = (iso_metric)i;
    return i != 0;
}

bool iso_metric_smaller_is_better(iso_metric m)
{
    return m == ISO_METRIC_WER || m == ISO_METRIC_CER || m == ISO_METRIC_LOSS;
}

const char *iso_verdict_name(iso_verdict v)
{
    return word(verdicts, ISO_VERDICTS, (uint32_t)v);
}

bool iso_name_is_valid(const char *name)
{
    size_t n = 0;
    for (; name[n]; n++) {
        char c = name[n];
        bool is_alnum = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (n == ISO_NAME_MAX || (!is_alnum && c != '.' && c != '_' && c != '-'))
            return false;
        if (n == 0 && (c == '.' || c == '-')) /* no hidden file, no option, no path step */
            return false;
    }
    return n > 0;
}
