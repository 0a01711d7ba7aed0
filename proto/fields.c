#include "proto/fields.h"

#include "proto/isofed.pb-c.h"

#include <string.h>

/* Rows are written with these, S being the struct's suffix: F(hello, U64, release). */
#define AT(S, F) offsetof(iso_msg_##S, F)
#define U32(S, F)                                                                                  \
    {                                                                                              \
#F, ISO_FIELD_U32, AT(S, F), 0, 0, UINT32_MAX, 0, true                                     \
    }
#define U32_MAX(S, F, MAX)                                                                         \
    {                                                                                              \
#F, ISO_FIELD_U32, AT(S, F), 0, 0, (MAX), 0, true                                          \
    }
#define U64(S, F)                                                                                  \
    {                                                                                              \
#F, ISO_FIELD_U64, AT(S, F), 0, 0, UINT64_MAX, 0, true                                     \
    }
#define U64_MAX(S, F, MAX)                                                                         \
    {                                                                                              \
#F, ISO_FIELD_U64, AT(S, F), 0, 0, (MAX), 0, true                                          \
    }
#define KIND(S, F, END)                                                                            \
    {                                                                                              \
#F, ISO_FIELD_KIND, AT(S, F), 0, 0, (END)-1, 0, true                                       \
    }
#define ENUM(S, F)                                                                                 \
    {                                                                                              \
#F, ISO_FIELD_ENUM, AT(S, F), 0, 0, 0, 0, true                                             \
    }
#define BOOL(S, F)                                                                                 \
    {                                                                                              \
#F, ISO_FIELD_BOOL, AT(S, F), 0, 0, 0, 0, true                                             \
    }
#define F32(S, F)                                                                                  \
    {                                                                                              \
#F, ISO_FIELD_F32, AT(S, F), 0, 0, 0, 0, true                                              \
    }
#define FIXED(S, F, N)                                                                             \
    {                                                                                              \
#F, ISO_FIELD_FIXED, AT(S, F), 0, (N), (N), 0, false                                       \
    }
#define MAYBE(S, F, N)                                                                             \
    {                                                                                              \
#F, ISO_FIELD_FIXED, AT(S, F), 0, (N), (N), 0, true                                        \
    }
#define SPAN(S, F, MIN, N)                                                                         \
    {                                                                                              \
#F, ISO_FIELD_SPAN, AT(S, F), 0, (MIN), (N), 0, true                                       \
    }
#define TEXT(S, F, N)                                                                              \
    {                                                                                              \
#F, ISO_FIELD_TEXT, AT(S, F), 0, 0, (N), 0, true                                           \
    }
#define NAME(S, F)                                                                                 \
    {                                                                                              \
#F, ISO_FIELD_NAME, AT(S, F), 0, 1, ISO_NAME_MAX, 0, false                                 \
    }
#define TEXTS(S, F, C, N, M)                                                                       \
    {                                                                                              \
#F, ISO_FIELD_TEXTS, AT(S, F), AT(S, C), 0, (M), (N), true                                 \
    }
#define ONE(S, F)                                                                                  \
    {                                                                                              \
#F, ISO_FIELD_ONE, AT(S, F), 0, 0, 0, 0, false                                             \
    }
#define MAYBE_ONE(S, F)                                                                            \
    {                                                                                              \
#F, ISO_FIELD_ONE, AT(S, F), 0, 0, 0, 0, true                                              \
    }
#define MANY(S, F, C, N)                                                                           \
    {                                                                                              \
#F, ISO_FIELD_MANY, AT(S, F), AT(S, C), 0, 0, (N), true                                    \
    }

static const iso_field hello[] = {
    U32(hello, min_version),
    U32(hello, max_version),
    TEXT(hello, software, ISO_SOFTWARE_MAX),
    MAYBE(hello, federation_id, 16),
    U64(hello, roster_version),
    U64(hello, release),
    U64(hello, release_head),
    U64(hello, last_sequence),
    SPAN(hello, audit_head, ISO_MSG_SIGNED_HEAD_BYTES, ISO_MSG_SIGNED_HEAD_BYTES),
    U64(hello, features),
    U64(hello, wall_ms),
};
static const iso_field hello_reply[] = {
    U32(hello_reply, version),
    FIXED(hello_reply, nonce, 32),
    U64(hello_reply, epoch),
    U64(hello_reply, next_sequence),
    U64(hello_reply, roster_version),
    U64(hello_reply, release),
    SPAN(hello_reply, signed_head, ISO_MSG_SIGNED_HEAD_BYTES, ISO_MSG_SIGNED_HEAD_BYTES),
    U64(hello_reply, wall_ms),
    MAYBE_ONE(hello_reply, limits),
    ENUM(hello_reply, state),
    U64(hello_reply, features),
};
static const iso_field limits[] = {
    U32_MAX(limits, chunk_bytes, ISO_CHUNK_MAX_BYTES),
    U32(limits, credit),
    U64(limits, update_bytes),
    U32(limits, requests_per_s),
    U64(limits, blob_bytes),
};
static const iso_field enroll[] = {
    FIXED(enroll, transport_pk, 32), FIXED(enroll, sign_pk, 32), NAME(enroll, name),
    FIXED(enroll, signature, 64),    FIXED(enroll, mac, 32),
};
static const iso_field enroll_reply[] = {
    FIXED(enroll_reply, site_id, 16),
    ENUM(enroll_reply, state),
    U64(enroll_reply, roster_version),
    MAYBE(enroll_reply, root_digest, 32),
};
static const iso_field invite[] = {
    FIXED(invite, invite_id, 16),
    FIXED(invite, task_id, 16),
    U64(invite, round),
    U64(invite, generation),
    FIXED(invite, generation_digest, 32),
    MAYBE(invite, base_digest, 32),
    U64(invite, deadline_ms),
    FIXED(invite, merge_key_id, 16),
    ONE(invite, spec),
    BOOL(invite, start_release),
};
static const iso_field task_spec[] = {
    KIND(task_spec, adapter_kind, ISO_KINDS),
    U32_MAX(task_spec, rank, ISO_RANK_MAX),
    F32(task_spec, alpha),
    TEXTS(task_spec, targets, target_count, ISO_TARGETS_MAX, ISO_TARGET_NAME_MAX),
    U32(task_spec, steps),
    F32(task_spec, learning_rate),
    U64(task_spec, seed),
    KIND(task_spec, head_mode, ISO_HEAD_MODES),
    F32(task_spec, norm_cap),
    U64(task_spec, update_bytes),
    U32(task_spec, min_samples),
    TEXT(task_spec, metric, ISO_METRIC_NAME_MAX),
    TEXTS(task_spec, classes, class_count, ISO_CLASSES_MAX, ISO_CLASS_NAME_MAX),
    BOOL(task_spec, rslora),
    TEXT(task_spec, modality, ISO_MODALITY_MAX),
    TEXT(task_spec, kind_parameters, ISO_KIND_PARAMETERS_MAX),
    MAYBE(task_spec, head_digest, 32),
};
static const iso_field invite_reply[] = {
    FIXED(invite_reply, invite_id, 16),
    BOOL(invite_reply, accept),
    TEXT(invite_reply, reason, ISO_REASON_MAX),
    U64_MAX(invite_reply, samples, ISO_SAMPLES_MAX),
    U64(invite_reply, ready_ms),
};
static const iso_field update_begin[] = {
    FIXED(update_begin, header, ISO_MSG_HEADER_BYTES),
    FIXED(update_begin, signature, 64),
    FIXED(update_begin, idempotency, 16),
    MAYBE(update_begin, invite_id, 16),
};
static const iso_field update_grant[] = {
    FIXED(update_grant, upload_id, 16),
    U32_MAX(update_grant, next_chunk, ISO_CHUNKS_MAX),
    U32(update_grant, credit),
    U64(update_grant, expires_ms),
};
static const iso_field update_chunk[] = {
    FIXED(update_chunk, upload_id, 16),
    U32_MAX(update_chunk, index, ISO_CHUNKS_MAX - 1),
};
static const iso_field chunk_ack[] = {
    FIXED(chunk_ack, upload_id, 16),
    U32_MAX(chunk_ack, received, ISO_CHUNKS_MAX),
    U32(chunk_ack, credit),
};
static const iso_field update_commit[] = {
    FIXED(update_commit, upload_id, 16),
    FIXED(update_commit, body_digest, 32),
};
static const iso_field receipt[] = {
    FIXED(receipt, receipt, ISO_MSG_RECEIPT_BYTES),
    FIXED(receipt, signature, 64),
};
static const iso_field release_offer[] = {
    U64(release_offer, number),
    FIXED(release_offer, manifest_digest, 32),
    SPAN(release_offer, signed_head, ISO_MSG_SIGNED_HEAD_BYTES, ISO_MSG_SIGNED_HEAD_BYTES),
    U64(release_offer, valid_until_ms),
    MAYBE(release_offer, base_digest, 32),
    U64(release_offer, bytes_total),
};
static const iso_field blob_get[] = {
    FIXED(blob_get, digest, 32),
    U32_MAX(blob_get, from_chunk, ISO_CHUNKS_MAX),
    U32(blob_get, credit),
};
static const iso_field blob_chunk[] = {
    FIXED(blob_chunk, digest, 32),
    U32_MAX(blob_chunk, index, ISO_CHUNKS_MAX - 1),
    U32_MAX(blob_chunk, count, ISO_CHUNKS_MAX),
    U64(blob_chunk, size),
};
static const iso_field release_verdict[] = {
    U64(release_verdict, number),          KIND(release_verdict, verdict, ISO_VERDICTS),
    F32(release_verdict, before),          F32(release_verdict, delivered),
    F32(release_verdict, refitted),        TEXT(release_verdict, reason, ISO_REASON_MAX),
    FIXED(release_verdict, signature, 64),
};
static const iso_field eval_request[] = {
    FIXED(eval_request, eval_id, 16),
    FIXED(eval_request, task_id, 16),
    FIXED(eval_request, candidate_digest, 32),
    U64(eval_request, deadline_ms),
    TEXT(eval_request, metric, ISO_METRIC_NAME_MAX),
};
static const iso_field eval_result[] = {
    FIXED(eval_result, eval_id, 16),
    F32(eval_result, score),
    U64_MAX(eval_result, samples, ISO_SAMPLES_MAX),
    F32(eval_result, margin),
    KIND(eval_result, outcome, ISO_EVALS),
    FIXED(eval_result, signature, 64),
};
static const iso_field status[] = {
    U64(status, spool_samples), U64(status, outbox),    U64(status, release),
    U32(status, state),         U64(status, disk_free), U64(status, since_event),
};
static const iso_field status_reply[] = {
    MANY(status_reply, notices, notice_count, ISO_NOTICES_MAX),
    U64(status_reply, next_event),
};
static const iso_field notice[] = {
    U64(notice, event),
    ENUM(notice, code),
    MAYBE(notice, update_id, 16),
    TEXT(notice, sentence, ISO_SENTENCE_MAX),
};
static const iso_field roster_offer[] = {
    U64(roster_offer, version),
    FIXED(roster_offer, digest, 32),
};
static const iso_field rotate_keys[] = {
    FIXED(rotate_keys, transport_pk, 32),
    FIXED(rotate_keys, sign_pk, 32),
    FIXED(rotate_keys, by_old, 64),
    FIXED(rotate_keys, by_new, 64),
};
static const iso_field ping[] = {
    U64(ping, t),
};
static const iso_field pong[] = {
    U64(pong, t),
    U64(pong, next_event),
};
static const iso_field error[] = {
    ENUM(error, code),    TEXT(error, sentence, ISO_SENTENCE_MAX), U64(error, retry_after_ms),
    U64(error, about_id), SPAN(error, what, 0, ISO_WHAT_MAX),
};
static const iso_field bye[] = {
    TEXT(bye, reason, ISO_REASON_MAX),
};

#define ROW(TYPE, DESCRIPTOR, S)                                                                   \
    {                                                                                              \
        TYPE, &isofed__v1__##DESCRIPTOR##__descriptor, sizeof(iso_msg_##S), S,                     \
            sizeof S / sizeof S[0]                                                                 \
    }

const iso_message_row iso_proto_messages[] = {
    ROW(ISO_MSG_HELLO, hello, hello),
    ROW(ISO_MSG_HELLO_REPLY, hello_reply, hello_reply),
    ROW(ISO_MSG_ENROLL, enroll, enroll),
    ROW(ISO_MSG_ENROLL_REPLY, enroll_reply, enroll_reply),
    ROW(ISO_MSG_INVITE, invite, invite),
    ROW(ISO_MSG_INVITE_REPLY, invite_reply, invite_reply),
    ROW(ISO_MSG_UPDATE_BEGIN, update_begin, update_begin),
    ROW(ISO_MSG_UPDATE_GRANT, update_grant, update_grant),
    ROW(ISO_MSG_UPDATE_CHUNK, update_chunk, update_chunk),
    ROW(ISO_MSG_CHUNK_ACK, chunk_ack, chunk_ack),
    ROW(ISO_MSG_UPDATE_COMMIT, update_commit, update_commit),
    ROW(ISO_MSG_RECEIPT, receipt, receipt),
    ROW(ISO_MSG_RELEASE_OFFER, release_offer, release_offer),
    ROW(ISO_MSG_BLOB_GET, blob_get, blob_get),
    ROW(ISO_MSG_BLOB_CHUNK, blob_chunk, blob_chunk),
    ROW(ISO_MSG_RELEASE_VERDICT, release_verdict, release_verdict),
    ROW(ISO_MSG_EVAL_REQUEST, eval_request, eval_request),
    ROW(ISO_MSG_EVAL_RESULT, eval_result, eval_result),
    ROW(ISO_MSG_STATUS, status, status),
    ROW(ISO_MSG_STATUS_REPLY, status_reply, status_reply),
    ROW(ISO_MSG_ROSTER_OFFER, roster_offer, roster_offer),
    ROW(ISO_MSG_ROTATE_KEYS, rotate_keys, rotate_keys),
    ROW(ISO_MSG_PING, ping, ping),
    ROW(ISO_MSG_PONG, pong, pong),
    ROW(ISO_MSG_ERROR, error, error),
    ROW(ISO_MSG_BYE, bye, bye),
    ROW(ISO_MSG_NONE, limits, limits),
    ROW(ISO_MSG_NONE, task_spec, task_spec),
    ROW(ISO_MSG_NONE, notice, notice),
};
const size_t iso_proto_message_count = sizeof iso_proto_messages / sizeof iso_proto_messages[0];

const iso_message_row *iso_proto_row(iso_msg_type type)
{
    for (size_t i = 0; type != ISO_MSG_NONE && i < iso_proto_message_count; i++)
        if (iso_proto_messages[i].type == type)
            return &iso_proto_messages[i];
    return NULL;
}

const iso_message_row *iso_proto_row_of(const ProtobufCMessageDescriptor *d)
{
    for (size_t i = 0; i < iso_proto_message_count; i++)
        if (iso_proto_messages[i].descriptor == d)
            return &iso_proto_messages[i];
    return NULL;
}

const char *iso_msg_type_name(iso_msg_type type)
{
    const iso_message_row *row = iso_proto_row(type);
    return row ? row->descriptor->short_name : "unknown";
}

bool iso_msg_has_body(iso_msg_type type)
{
    return type == ISO_MSG_UPDATE_CHUNK || type == ISO_MSG_BLOB_CHUNK;
}
