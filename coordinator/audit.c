/* The audit chain as the core writes it: one entry in the transaction of what it records
 * (specs/security.md S101, S102), and the signed heads that sites keep (S105). */
#include "coordinator/inner.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *iso_c_hex(iso_coord *c, const uint8_t *bytes, size_t n)
{
    char *text = iso_c_alloc(c, 2 * n + 1, 1);
    if (!text)
        return "";
    iso_hex(text, bytes, n);
    return text;
}

const char *iso_c_quote(iso_coord *c, const char *text)
{
    char quoted[480];
    iso_log_quote(quoted, sizeof quoted, text ? text : "");
    char *copy = iso_c_text(c, "%s", quoted);
    return copy ? copy : "";
}

void iso_c_audit(iso_coord *c, iso_audit_type type, const uint8_t actor[16],
                 const iso_digest *subject, const char *details, ...)
{
    char text[1024] = "{";
    va_list args;
    va_start(args, details);
    int n = vsnprintf(text + 1, sizeof text - 4, details, args);
    va_end(args);
    size_t used = 1 + (n < 0 ? 0 : (size_t)n < sizeof text - 4 ? (size_t)n : sizeof text - 5);
    memcpy(text + used, "}\n", 3);
    /* Members come in any order and with any text: what is stored is the canonical form. */
    iso_json *json = NULL;
    iso_buf canonical = {0}, bytes = {0};
    bool is_json = iso_json_parse(text, used + 2, "audit", &json, NULL) == ISO_OK &&
                   iso_json_dump(json, ISO_JSON_CANONICAL, &canonical, NULL) == ISO_OK;
    if (!is_json) {
        iso_buf_free(&canonical);
        (void)!iso_buf_append(&canonical, "{\"note\":\"details too long\"}\n", 28, NULL);
    }
    if (c->wall > c->audit_time_ms)
        c->audit_time_ms = c->wall; /* times never fall, whatever the clock does */
    iso_audit_entry entry = {.seq = c->audit_seq + 1,
                             .time_ms = c->audit_time_ms,
                             .type = type,
                             .details = (const char *)canonical.data,
                             .details_bytes = canonical.size};
    if (actor)
        memcpy(entry.actor, actor, 16);
    if (subject)
        entry.subject = *subject;
    if (iso_audit_encode(&entry, &bytes, NULL) == ISO_OK) {
        uint8_t key[8];
        iso_digest h = c->sealer.chain(c->sealer.ctx, &c->audit_head, bytes.data, bytes.size);
        for (int i = 0; i < 8; i++)
            key[i] = (uint8_t)(entry.seq >> (56 - 8 * i));
        if (iso_buf_append(&bytes, h.b, ISO_DIGEST_BYTES, NULL) == ISO_OK) {
            iso_c_put(c, ISO_CT_AUDIT, ISO_OP_INSERT, key, sizeof key, bytes.data, bytes.size);
            c->audit_seq = entry.seq;
            c->audit_head = h;
        } else {
            c->is_out_of_memory = true;
        }
    } else {
        c->is_out_of_memory = true;
    }
    iso_json_free(json);
    iso_buf_free(&canonical);
    iso_buf_free(&bytes);
}

iso_span iso_c_signed_head(iso_coord *c)
{
    const iso_c_release *r = iso_c_release_current(c);
    uint64_t release = r ? r->number : 0;
    uint64_t now = c->wall > c->audit_time_ms ? c->wall : c->audit_time_ms; /* never falls either */
    bool is_fresh = c->signed_ms != 0 && c->signed_release == release && now >= c->signed_ms &&
                    now - c->signed_ms < HEAD_EVERY_MS;
    if (!is_fresh) {
        iso_head h = {.epoch = c->identity.epoch,
                      .seq = c->audit_seq,
                      .h = c->audit_head,
                      .release = release,
                      .time_ms = now,
                      .previous = c->last_signed_head};
        memcpy(h.federation_id, c->identity.federation, 16);
        if (r)
            h.manifest = r->manifest;
        iso_head_sign(&h, &c->sealer, c->signed_head);
        c->last_signed_head = iso_head_digest(c->signed_head);
        c->signed_seq = c->audit_seq;
        c->signed_release = release;
        c->signed_ms = now;
        iso_c_save_meta(c);
    }
    uint8_t *copy = iso_c_alloc(c, ISO_SIGNED_HEAD_BYTES, 1);
    if (!copy)
        return (iso_span){0};
    memcpy(copy, c->signed_head, ISO_SIGNED_HEAD_BYTES);
    return (iso_span){.data = copy, .size = ISO_SIGNED_HEAD_BYTES};
}
