/* Messages of the wire as plain structs: what the cores see (specs/security.md 4.3, S49).
 *
 * Conventions of every field, both ways:
 *   fixed arrays   sent as `bytes` of exactly that length; a field marked "or zero" may be absent,
 *                  which reads as all zero and is sent when all zero
 *   strings        NUL-terminated UTF-8, never NULL after decoding ("" when absent); NULL may be
 *                  given to the encoder for ""; at most the length named
 *   spans          borrowed bytes; size 0 when absent
 *   pointers       of a decoded message point into the arena given to iso_msg_decode()
 *   floats         finite */
#ifndef ISO_PROTO_MESSAGE_H
#define ISO_PROTO_MESSAGE_H

#include "core/digest.h"
#include "core/wire.h"

/* Protocol versions this program speaks (S50). */
enum { ISO_PROTO_VERSION_MIN = 1, ISO_PROTO_VERSION_MAX = 1 };

enum {
    ISO_MSG_HEADER_BYTES = 384, /* envelope header of UpdateBegin */
    ISO_MSG_SIGNATURE_BYTES = 64,
    ISO_MSG_RECEIPT_BYTES = 136,
    ISO_MSG_SIGNED_HEAD_BYTES = 216, /* head of the audit chain with its signature (S105) */
    ISO_SOFTWARE_MAX = 64,
    ISO_METRIC_NAME_MAX = 32,
    ISO_MODALITY_MAX = 32,
    ISO_WHAT_MAX = 64
};

/* Tag of the union: the field's number in the schema. */
typedef enum {
    ISO_MSG_NONE = 0,
    ISO_MSG_HELLO = 10,
    ISO_MSG_HELLO_REPLY = 11,
    ISO_MSG_ENROLL = 12,
    ISO_MSG_ENROLL_REPLY = 13,
    ISO_MSG_INVITE = 14,
    ISO_MSG_INVITE_REPLY = 15,
    ISO_MSG_UPDATE_BEGIN = 16,
    ISO_MSG_UPDATE_GRANT = 17,
    ISO_MSG_UPDATE_CHUNK = 18, /* ciphertext in frame 2 */
    ISO_MSG_CHUNK_ACK = 19,
    ISO_MSG_UPDATE_COMMIT = 20,
    ISO_MSG_RECEIPT = 21,
    ISO_MSG_RELEASE_OFFER = 22,
    ISO_MSG_BLOB_GET = 23,
    ISO_MSG_BLOB_CHUNK = 24, /* data in frame 2 */
    ISO_MSG_RELEASE_VERDICT = 25,
    ISO_MSG_EVAL_REQUEST = 26,
    ISO_MSG_EVAL_RESULT = 27,
    ISO_MSG_STATUS = 28,
    ISO_MSG_STATUS_REPLY = 29,
    ISO_MSG_ROSTER_OFFER = 30,
    ISO_MSG_ROTATE_KEYS = 31,
    ISO_MSG_PING = 32,
    ISO_MSG_PONG = 33,
    ISO_MSG_ERROR = 34,
    ISO_MSG_BYE = 35,
    ISO_MSG_END
} iso_msg_type;
/* "UpdateBegin"; "unknown" for a number that is no type. */
const char *iso_msg_type_name(iso_msg_type type);
/* True for the two types whose data travels in frame 2 (all others: frame 2 is empty, S47). */
bool iso_msg_has_body(iso_msg_type type);

typedef struct {
    const uint8_t *data;
    size_t size;
} iso_span;

/* First of a connection. A peer with a token sends a zero federation_id: it learns the federation
 * from the signed head of the reply. */
typedef struct {
    uint32_t min_version, max_version;
    const char *software;      /* <= 64 */
    uint8_t federation_id[16]; /* or zero */
    uint64_t roster_version;
    uint64_t release;      /* number that serves, 0: none */
    uint64_t release_head; /* highest number ever seen */
    uint64_t last_sequence;
    iso_span audit_head; /* newest signed head held, 216 bytes, or empty */
    uint64_t features;
    uint64_t wall_ms;
} iso_msg_hello;

typedef struct {
    uint32_t chunk_bytes; /* plain bytes of a blob chunk */
    uint32_t credit;
    uint64_t update_bytes;
    uint32_t requests_per_s;
    uint64_t blob_bytes;
} iso_msg_limits;

typedef struct {
    uint32_t version;
    uint8_t nonce[32];
    uint64_t epoch;
    uint64_t next_sequence;
    uint64_t roster_version;
    uint64_t release;
    iso_span signed_head; /* 216 bytes, or empty */
    uint64_t wall_ms;
    iso_msg_limits limits; /* all zero when absent */
    iso_site_state state;
    uint64_t features;
} iso_msg_hello_reply;

typedef struct {
    uint8_t transport_pk[32], sign_pk[32];
    const char *name; /* 1 - 64 of letters, digits, "._-" */
    uint8_t signature[64];
    uint8_t mac[32];
} iso_msg_enroll;

typedef struct {
    uint8_t site_id[16];
    iso_site_state state;
    uint64_t roster_version;
    uint8_t root_digest[32]; /* digest of the blob root.pub (minisign's two lines), or zero */
} iso_msg_enroll_reply;

typedef struct {
    uint32_t adapter_kind; /* iso_kind */
    uint32_t rank;         /* <= 4096 */
    float alpha;
    const char *const *targets; /* <= 256 names of <= 128 */
    size_t target_count;
    uint32_t steps;
    float learning_rate;
    uint64_t seed;
    uint32_t head_mode; /* iso_head_mode */
    float norm_cap;
    uint64_t update_bytes;
    uint32_t min_samples;
    const char *metric;         /* iso_metric_name, <= 32 */
    const char *const *classes; /* <= 256 names of <= 128 */
    size_t class_count;
    bool rslora;
    const char *modality;        /* "image", <= 32 */
    const char *kind_parameters; /* canonical JSON, <= 4096 */
    uint8_t head_digest[32];     /* the task's head as a blob, or zero */
} iso_msg_task_spec;

typedef struct {
    uint8_t invite_id[16], task_id[16];
    uint64_t round, generation;
    uint8_t generation_digest[32];
    uint8_t base_digest[32]; /* or zero: fresh start */
    uint64_t deadline_ms;    /* coordinator's wall clock */
    uint8_t merge_key_id[16];
    iso_msg_task_spec spec; /* must be there */
    bool start_release;
} iso_msg_invite;

typedef struct {
    uint8_t invite_id[16];
    bool accept;
    const char *reason; /* <= 240 */
    uint64_t samples;
    uint64_t ready_ms;
} iso_msg_invite_reply;

typedef struct {
    uint8_t header[ISO_MSG_HEADER_BYTES];
    uint8_t signature[64];
    uint8_t idempotency[16]; /* the update_id */
    uint8_t invite_id[16];   /* or zero */
} iso_msg_update_begin;

typedef struct {
    uint8_t upload_id[16];
    uint32_t next_chunk, credit;
    uint64_t expires_ms;
} iso_msg_update_grant;

typedef struct {
    uint8_t upload_id[16];
    uint32_t index; /* < 2^20 */
} iso_msg_update_chunk;

typedef struct {
    uint8_t upload_id[16];
    uint32_t received; /* all chunks below are written */
    uint32_t credit;
} iso_msg_chunk_ack;

typedef struct {
    uint8_t upload_id[16];
    uint8_t body_digest[32];
} iso_msg_update_commit;

typedef struct {
    uint8_t receipt[ISO_MSG_RECEIPT_BYTES];
    uint8_t signature[64];
} iso_msg_receipt;

typedef struct {
    uint64_t number;
    uint8_t
        manifest_digest[32]; /* of release.json; its signature is the blob named in PROTOCOL.md */
    iso_span signed_head;    /* 216 bytes, or empty */
    uint64_t valid_until_ms;
    uint8_t base_digest[32]; /* generation's digest, or zero */
    uint64_t bytes_total;
} iso_msg_release_offer;

typedef struct {
    uint8_t digest[32];
    uint32_t from_chunk, credit;
} iso_msg_blob_get;

typedef struct {
    uint8_t digest[32];
    uint32_t index, count; /* index < count <= 2^20 (count 0 only for an empty blob) */
    uint64_t size;         /* of the whole blob */
} iso_msg_blob_chunk;

typedef struct {
    uint64_t number;
    uint32_t verdict; /* iso_verdict */
    float before, delivered, refitted;
    const char *reason;    /* <= 240 */
    uint8_t signature[64]; /* over iso_verdict_bytes() */
} iso_msg_release_verdict;

typedef struct {
    uint8_t eval_id[16], task_id[16];
    uint8_t candidate_digest[32];
    uint64_t deadline_ms;
    const char *metric; /* <= 32 */
} iso_msg_eval_request;

typedef struct {
    uint8_t eval_id[16];
    float score;
    uint64_t samples;
    float margin;
    uint32_t outcome;      /* iso_eval_outcome */
    uint8_t signature[64]; /* over iso_eval_bytes() */
} iso_msg_eval_result;

typedef struct {
    uint64_t spool_samples, outbox, release;
    uint32_t state; /* client's own state number, for display */
    uint64_t disk_free;
    uint64_t since_event;
} iso_msg_status;

typedef struct {
    uint64_t event;
    iso_code code;
    uint8_t update_id[16]; /* or zero */
    const char *sentence;  /* <= 240 */
} iso_msg_notice;

typedef struct {
    const iso_msg_notice *notices; /* <= 32 */
    size_t notice_count;
    uint64_t next_event;
} iso_msg_status_reply;

typedef struct {
    uint64_t version;
    uint8_t digest[32]; /* blob of roster.json */
} iso_msg_roster_offer;

typedef struct {
    uint8_t transport_pk[32], sign_pk[32];
    uint8_t by_old[64], by_new[64]; /* over iso_rotate_bytes() */
} iso_msg_rotate_keys;

typedef struct {
    uint64_t t;
} iso_msg_ping;

typedef struct {
    uint64_t t, next_event;
} iso_msg_pong;

typedef struct {
    iso_code code;
    const char *sentence; /* <= 240 */
    uint64_t retry_after_ms;
    uint64_t about_id; /* request it answers, 0: none */
    iso_span what;     /* <= 64: update_id, upload_id, digest ... */
} iso_msg_error;

typedef struct {
    const char *reason; /* <= 240 */
} iso_msg_bye;

typedef struct {
    uint32_t version;
    uint64_t id;
    uint64_t epoch;
    iso_msg_type type;
    union {
        iso_msg_hello hello;
        iso_msg_hello_reply hello_reply;
        iso_msg_enroll enroll;
        iso_msg_enroll_reply enroll_reply;
        iso_msg_invite invite;
        iso_msg_invite_reply invite_reply;
        iso_msg_update_begin update_begin;
        iso_msg_update_grant update_grant;
        iso_msg_update_chunk update_chunk;
        iso_msg_chunk_ack chunk_ack;
        iso_msg_update_commit update_commit;
        iso_msg_receipt receipt;
        iso_msg_release_offer release_offer;
        iso_msg_blob_get blob_get;
        iso_msg_blob_chunk blob_chunk;
        iso_msg_release_verdict release_verdict;
        iso_msg_eval_request eval_request;
        iso_msg_eval_result eval_result;
        iso_msg_status status;
        iso_msg_status_reply status_reply;
        iso_msg_roster_offer roster_offer;
        iso_msg_rotate_keys rotate_keys;
        iso_msg_ping ping;
        iso_msg_pong pong;
        iso_msg_error error;
        iso_msg_bye bye;
    };
} iso_msg;

#endif
