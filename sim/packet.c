#include "sim/packet.h"

#include "proto/codec.h"

#include <string.h>

enum { SMALLEST = 128 };

/* ---- memory: classes of doubling size, never given back before the end ---- */

static iso_packet *take(iso_packet_pool *pool, size_t bytes)
{
    uint32_t k = 0;
    size_t size = SMALLEST;
    for (; size < sizeof(iso_packet) + bytes; size *= 2)
        k++;
    if (k >= ISO_PACKET_CLASSES)
        return NULL;
    iso_packet *p = pool->free[k];
    if (p)
        pool->free[k] = p->next;
    else if (!(p = iso_arena_alloc(&pool->arena, 1, size)))
        return NULL;
    memset(p, 0, sizeof *p);
    p->size_class = k;
    p->refs = 1;
    pool->live++;
    return p;
}

void iso_packet_drop(iso_packet_pool *pool, iso_sim_pool *blobs, iso_packet *p)
{
    if (!p || --p->refs > 0)
        return;
    iso_sim_blob_drop(blobs, p->blob);
    p->next = pool->free[p->size_class];
    pool->free[p->size_class] = p;
    pool->live--;
}

void iso_packet_pool_free(iso_packet_pool *pool)
{
    iso_arena_free(&pool->arena);
    *pool = (iso_packet_pool){0};
}

/* ---- copies of structs ---- */

/* One pass measures (`at` NULL), a second one copies. */
typedef struct {
    uint8_t *at;
    size_t used;
} copier;

static const void *copy(copier *c, const void *data, size_t bytes)
{
    size_t room = (bytes + 7) & ~(size_t)7;
    void *to = c->at ? c->at + c->used : NULL;
    c->used += room;
    if (to && bytes)
        memcpy(to, data, bytes);
    return to;
}

static void text(copier *c, const char **field)
{
    const char *s = *field ? *field : "";
    *field = copy(c, s, strlen(s) + 1);
}

static void span(copier *c, iso_span *s)
{
    s->data = s->size ? copy(c, s->data, s->size) : NULL;
}

static void texts(copier *c, const char *const **list, size_t count)
{
    const char *const *old = *list;
    const char **fresh = (const char **)(uintptr_t)copy(c, old, count * sizeof *old);
    for (size_t i = 0; i < count; i++) {
        const char *s = old[i];
        text(c, &s);
        if (fresh)
            fresh[i] = s;
    }
    *list = fresh;
}

static void notices(copier *c, iso_msg_status_reply *r)
{
    const iso_msg_notice *old = r->notices;
    iso_msg_notice *fresh =
        (iso_msg_notice *)(uintptr_t)copy(c, old, r->notice_count * sizeof *old);
    for (size_t i = 0; i < r->notice_count; i++) {
        const char *s = old[i].sentence;
        text(c, &s);
        if (fresh)
            fresh[i].sentence = s;
    }
    r->notices = fresh;
}

/* Copies what the message points to and lets it point to the copies. */
static void copy_parts(copier *c, iso_msg *m)
{
    switch (m->type) {
    case ISO_MSG_HELLO:
        text(c, &m->hello.software);
        span(c, &m->hello.audit_head);
        break;
    case ISO_MSG_HELLO_REPLY:
        span(c, &m->hello_reply.signed_head);
        break;
    case ISO_MSG_ENROLL:
        text(c, &m->enroll.name);
        break;
    case ISO_MSG_INVITE:
        texts(c, &m->invite.spec.targets, m->invite.spec.target_count);
        texts(c, &m->invite.spec.classes, m->invite.spec.class_count);
        text(c, &m->invite.spec.metric);
        text(c, &m->invite.spec.modality);
        text(c, &m->invite.spec.kind_parameters);
        break;
    case ISO_MSG_INVITE_REPLY:
        text(c, &m->invite_reply.reason);
        break;
    case ISO_MSG_RELEASE_OFFER:
        span(c, &m->release_offer.signed_head);
        break;
    case ISO_MSG_RELEASE_VERDICT:
        text(c, &m->release_verdict.reason);
        break;
    case ISO_MSG_EVAL_REQUEST:
        text(c, &m->eval_request.metric);
        break;
    case ISO_MSG_STATUS_REPLY:
        notices(c, &m->status_reply);
        break;
    case ISO_MSG_ERROR:
        text(c, &m->error.sentence);
        span(c, &m->error.what);
        break;
    case ISO_MSG_BYE:
        text(c, &m->bye.reason);
        break;
    default:
        break;
    }
}

/* Bytes of the struct up to the end of the member that is used. */
static size_t used_bytes(iso_msg_type type)
{
#define row(TYPE, member) [TYPE] = (uint16_t)sizeof(((iso_msg *)0)->member)
    static const uint16_t sizes[ISO_MSG_END] = {
        row(ISO_MSG_HELLO, hello),
        row(ISO_MSG_HELLO_REPLY, hello_reply),
        row(ISO_MSG_ENROLL, enroll),
        row(ISO_MSG_ENROLL_REPLY, enroll_reply),
        row(ISO_MSG_INVITE, invite),
        row(ISO_MSG_INVITE_REPLY, invite_reply),
        row(ISO_MSG_UPDATE_BEGIN, update_begin),
        row(ISO_MSG_UPDATE_GRANT, update_grant),
        row(ISO_MSG_UPDATE_CHUNK, update_chunk),
        row(ISO_MSG_CHUNK_ACK, chunk_ack),
        row(ISO_MSG_UPDATE_COMMIT, update_commit),
        row(ISO_MSG_RECEIPT, receipt),
        row(ISO_MSG_RELEASE_OFFER, release_offer),
        row(ISO_MSG_BLOB_GET, blob_get),
        row(ISO_MSG_BLOB_CHUNK, blob_chunk),
        row(ISO_MSG_RELEASE_VERDICT, release_verdict),
        row(ISO_MSG_EVAL_REQUEST, eval_request),
        row(ISO_MSG_EVAL_RESULT, eval_result),
        row(ISO_MSG_STATUS, status),
        row(ISO_MSG_STATUS_REPLY, status_reply),
        row(ISO_MSG_ROSTER_OFFER, roster_offer),
        row(ISO_MSG_ROTATE_KEYS, rotate_keys),
        row(ISO_MSG_PING, ping),
        row(ISO_MSG_PONG, pong),
        row(ISO_MSG_ERROR, error),
        row(ISO_MSG_BYE, bye),
    };
#undef row
    return offsetof(iso_msg, hello) + ((unsigned)type < ISO_MSG_END ? sizes[type] : 0);
}

static iso_packet *by_struct(iso_packet_pool *pool, const iso_msg *m, iso_error *e)
{
    size_t used = used_bytes(m->type);
    iso_msg work;
    memcpy(&work, m, used);
    copier c = {0};
    copy_parts(&c, &work);
    size_t head = (used + 7) & ~(size_t)7;
    iso_packet *p = take(pool, head + c.used);
    if (!p) {
        iso_nomem(e, head + c.used);
        return NULL;
    }
    p->bytes = (uint32_t)(used - offsetof(iso_msg, hello) + c.used);
    memcpy(&work, m, used);
    c = (copier){.at = (uint8_t *)p->room + head};
    copy_parts(&c, &work);
    memcpy(p->room, &work, used);
    p->msg = (const iso_msg *)p->room;
    return p;
}

/* The decoded message's parts lie in a scratch arena and are copied like any other. */
static iso_packet *by_codec(iso_packet_pool *pool, const iso_msg *m, iso_error *e)
{
    uint8_t head[ISO_HEAD_MAX_BYTES];
    size_t bytes = 0;
    iso_arena arena = {0};
    iso_msg decoded;
    iso_code code;
    iso_packet *p = NULL;
    if (iso_msg_encode(m, head, sizeof head, &bytes, e) == ISO_OK &&
        iso_msg_decode(head, bytes, &arena, &decoded, &code, e) == ISO_OK)
        p = by_struct(pool, &decoded, e);
    if (p)
        p->bytes = (uint32_t)bytes;
    iso_arena_free(&arena);
    return p;
}

iso_packet *iso_packet_make(iso_packet_pool *pool, const iso_msg *m, iso_sim_blob *blob,
                            const uint8_t *body, size_t body_bytes, bool is_encoded, iso_error *e)
{
    iso_packet *p = is_encoded ? by_codec(pool, m, e) : by_struct(pool, m, e);
    if (!p)
        return NULL;
    if (blob)
        p->blob = iso_sim_blob_ref(blob);
    p->body = body;
    p->body_bytes = body_bytes;
    p->bytes += (uint32_t)body_bytes;
    return p;
}
