/* Vocabulary of the wire, the envelope and the cores: refusal codes, kinds, metrics, ceilings.
 *
 * Numbers are the contract of specs/security.md 4.3 and 9.3; none is ever given a new meaning.
 * Here and not in proto/, because crypto/ (envelope) and the pure cores speak of them as well. */
#ifndef ISO_CORE_WIRE_H
#define ISO_CORE_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    ISO_ID_BYTES = 16,
    ISO_NONCE_BYTES = 32,
    ISO_TOKEN_ID_BYTES = 4,
    ISO_FINGERPRINT_BYTES = 20
};

/* Codes of a refusal (enum Code of the schema). */
typedef enum {
    ISO_CODE_OK = 0,
    ISO_CODE_BAD_MESSAGE = 1,
    ISO_CODE_VERSION = 2,
    ISO_CODE_NOT_PERMITTED = 3,
    ISO_CODE_RATE = 4,
    ISO_CODE_BUSY = 5,
    ISO_CODE_INTERNAL = 6,
    ISO_CODE_UNKNOWN_ENUM = 7,
    ISO_CODE_FEDERATION = 8,
    ISO_CODE_EPOCH = 9,
    ISO_CODE_TOKEN_UNKNOWN = 20,
    ISO_CODE_TOKEN_USED = 21,
    ISO_CODE_TOKEN_EXPIRED = 22,
    ISO_CODE_MAC = 23,
    ISO_CODE_PENDING = 24,
    ISO_CODE_REVOKED = 25,
    ISO_CODE_NAME_TAKEN = 26,
    ISO_CODE_QUARANTINED = 27,
    ISO_CODE_BAD_ENVELOPE = 40,
    ISO_CODE_WRONG_SITE = 41,
    ISO_CODE_TASK = 42,
    ISO_CODE_TOO_LARGE = 43,
    ISO_CODE_QUOTA = 44,
    ISO_CODE_DISK = 45,
    ISO_CODE_ROUND_CLOSED = 46,
    ISO_CODE_GENERATION = 47,
    ISO_CODE_BASE = 48,
    ISO_CODE_MERGE_KEY = 49,
    ISO_CODE_SIGNATURE = 50,
    ISO_CODE_SEQUENCE = 51,
    ISO_CODE_EQUIVOCATION = 52,
    ISO_CODE_CHUNK = 53,
    ISO_CODE_BODY_DIGEST = 54,
    ISO_CODE_UPLOAD_UNKNOWN = 55,
    ISO_CODE_SEAL_MODE = 56,
    ISO_CODE_SEALED = 60,
    ISO_CODE_STREAM = 61,
    ISO_CODE_STREAM_TAG = 62,
    ISO_CODE_TRUNCATED = 63,
    ISO_CODE_INNER_MISMATCH = 64,
    ISO_CODE_INFLATE = 65,
    ISO_CODE_CONTAINER = 66,
    ISO_CODE_BAD_FILE = 67,
    ISO_CODE_SHAPE = 68,
    ISO_CODE_NONFINITE = 69,
    ISO_CODE_NORM = 70,
    ISO_CODE_OUTLIER = 71,
    ISO_CODE_EMPTY = 72,
    ISO_CODE_BLOB_UNKNOWN = 80,
    ISO_CODE_RELEASE_OLD = 81,
    ISO_CODE_RELEASE_EXPIRED = 82,
    ISO_CODE_RELEASE_SIGNATURE = 83,
    ISO_CODE_RELEASE_MISMATCH = 84,
    ISO_CODE_END /* one above the largest; not a code */
} iso_code;

/* Names as in the schema, "BAD_MESSAGE"; "UNKNOWN" for a number that is no code. */
const char *iso_code_name(iso_code code);
/* One sentence for people: what it means for the site and what to do. */
const char *iso_code_sentence(iso_code code);
/* The same request may be sent again later (4.5); every other code is final for that update. */
bool iso_code_is_retryable(iso_code code);
bool iso_code_is_known(uint32_t number);
bool iso_code_parse(const char *name, iso_code *out);

typedef enum {
    ISO_SITE_UNKNOWN = 0,
    ISO_SITE_PENDING = 1,
    ISO_SITE_ACTIVE = 2,
    ISO_SITE_PAUSED = 3,
    ISO_SITE_REVOKED = 4,
    ISO_SITE_QUARANTINED = 5,
    ISO_SITE_STATES
} iso_site_state;
const char *iso_site_state_name(iso_site_state s); /* "active" */

/* adapter_kind of the envelope header and TaskSpec. */
typedef enum {
    ISO_KIND_NONE = 0,
    ISO_KIND_LORA = 1,
    ISO_KIND_DATA = 2,
    ISO_KIND_TOAST = 3,
    ISO_KIND_FACTORISED = 4,
    ISO_KINDS
} iso_kind;
const char *iso_kind_name(iso_kind k); /* "lora" */
bool iso_kind_parse(const char *name, iso_kind *out);

/* metric id of the envelope header (AMENDMENT 16). */
typedef enum {
    ISO_METRIC_NONE = 0,
    ISO_METRIC_ACCURACY = 1,
    ISO_METRIC_BALANCED_ACCURACY = 2,
    ISO_METRIC_WER = 3,
    ISO_METRIC_CER = 4,
    ISO_METRIC_LOSS = 5,
    ISO_METRICS
} iso_metric;
const char *iso_metric_name(iso_metric m); /* "balanced_accuracy" */
bool iso_metric_parse(const char *name, iso_metric *out);
bool iso_metric_smaller_is_better(iso_metric m);

/* head_mode of TaskSpec (DESIGN 2). */
typedef enum { ISO_HEAD_FIXED = 0, ISO_HEAD_JOINT = 1, ISO_HEAD_MODES } iso_head_mode;

/* verdict of ReleaseVerdict (S94) and outcome of EvalResult. */
typedef enum {
    ISO_VERDICT_NONE = 0,
    ISO_VERDICT_ACCEPTED = 1,
    ISO_VERDICT_REJECTED = 2,   /* worse than the margin on the site's own data */
    ISO_VERDICT_UNVERIFIED = 3, /* signature, digest or shape did not hold */
    ISO_VERDICT_TOO_FEW = 4,    /* accepted untried: fewer than 30 samples */
    ISO_VERDICT_RETURNED = 5,   /* swap failed, the previous release serves again (S95) */
    ISO_VERDICTS
} iso_verdict;
const char *iso_verdict_name(iso_verdict v);
typedef enum {
    ISO_EVAL_NONE = 0,
    ISO_EVAL_SCORED = 1,
    ISO_EVAL_NO_DATA = 2,
    ISO_EVAL_FAILED = 3,
    ISO_EVALS
} iso_eval_outcome;

/* Ceilings (9.3). Those marked + may be configured upwards. */
enum {
    ISO_FRAME_MAX_BYTES = 327680,    /* ZMQ_MAXMSGSIZE */
    ISO_HEAD_MAX_BYTES = 16 * 1024,  /* frame 1: protobuf Envelope */
    ISO_CHUNK_MIN_BYTES = 64 * 1024, /* plain bytes of a chunk: power of two */
    ISO_CHUNK_MAX_BYTES = 256 * 1024,
    ISO_CHUNK_OVERHEAD_BYTES = 17,
    ISO_BODY_MAX_BYTES = 256 * 1024 + 17, /* frame 2 */
    ISO_FRAMES_A_MESSAGE = 2,
    ISO_CHUNKS_MAX = 1 << 20,
    ISO_CREDIT_CHUNKS = 8,
    ISO_TRANSFERS_A_PEER = 2,
    ISO_RELEASE_FILES_MAX = 64,
    ISO_MANIFEST_MAX_BYTES = 256 * 1024,
    ISO_AUDIT_ENTRY_MAX_BYTES = 4096,
    ISO_NAME_MAX = 64, /* characters of a site's name: letters, digits, ._- */
    ISO_TARGETS_MAX = 256,
    ISO_TARGET_NAME_MAX = 128,
    ISO_CLASSES_MAX = 256,
    ISO_CLASS_NAME_MAX = 128,
    ISO_RANK_MAX = 4096,
    ISO_NOTICES_MAX = 32,
    ISO_SENTENCE_MAX = 240,
    ISO_REASON_MAX = 240,
    ISO_KIND_PARAMETERS_MAX = 4096,
    ISO_ARENA_MAX_BYTES = 256 * 1024, /* what one head may take when unpacked (S48) */
    ISO_UNKNOWN_FIELDS_MAX = 32,
    ISO_REQUESTS_A_SECOND = 50,
    ISO_REQUESTS_BURST = 200
};
#define ISO_UPDATE_MAX_BYTES  (256ull << 20) /* + sealed update */
#define ISO_RELEASE_MAX_BYTES (4ull << 30)   /* + all files of a release */
#define ISO_POOL_MAX_BYTES    (256ull << 20) /* + chunk pool of the coordinator */
#define ISO_SAMPLES_MAX       1000000000ull
#define ISO_PLAIN_RATIO_MAX   20 /* inflate: payload bytes a compressed byte (S35) */

/* 1 to 64 of letters, digits and "._-", not starting with '.' or '-'. */
bool iso_name_is_valid(const char *name);

#endif
