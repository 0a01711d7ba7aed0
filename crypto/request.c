#include "crypto/request.h"
#include "core/mem.h"

#include <string.h>

static uint8_t *put(uint8_t *p, const void *bytes, size_t n)
{
    memcpy(p, bytes, n);
    return p + n;
}

static uint8_t *put_u32(uint8_t *p, uint32_t v)
{
    iso_put_u32(p, v);
    return p + 4;
}

static uint8_t *put_u64(uint8_t *p, uint64_t v)
{
    iso_put_u64(p, v);
    return p + 8;
}

static uint8_t *put_f32(uint8_t *p, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return put_u32(p, bits);
}

void iso_enrol_bytes(const uint8_t federation_id[16], const uint8_t token_id[4],
                     const uint8_t nonce[32], const uint8_t transport_pk[32],
                     const uint8_t sign_pk[32], uint8_t out[ISO_ENROL_BYTES])
{
    uint8_t *p = put(out, "ENROLLv1", 8);
    p = put(p, federation_id, 16);
    p = put(p, token_id, 4);
    p = put(p, nonce, 32);
    p = put(p, transport_pk, 32);
    put(p, sign_pk, 32);
}

void iso_verdict_bytes(const uint8_t federation_id[16], const uint8_t site_id[16], uint64_t number,
                       uint32_t verdict, float before, float delivered, float refitted,
                       const char *reason, uint8_t out[ISO_VERDICT_BYTES])
{
    iso_digest d = iso_digest_of(reason ? reason : "", reason ? strlen(reason) : 0);
    uint8_t *p = put(out, "VERDICT1", 8);
    p = put(p, federation_id, 16);
    p = put(p, site_id, 16);
    p = put_u64(p, number);
    p = put_u32(p, verdict);
    p = put_f32(p, before);
    p = put_f32(p, delivered);
    p = put_f32(p, refitted);
    put(p, d.b, 32);
}

void iso_eval_bytes(const uint8_t federation_id[16], const uint8_t site_id[16],
                    const uint8_t eval_id[16], float score, uint64_t samples, float margin,
                    uint32_t outcome, uint8_t out[ISO_EVAL_BYTES])
{
    uint8_t *p = put(out, "EVALRES1", 8);
    p = put(p, federation_id, 16);
    p = put(p, site_id, 16);
    p = put(p, eval_id, 16);
    p = put_f32(p, score);
    p = put_u64(p, samples);
    p = put_f32(p, margin);
    put_u32(p, outcome);
}

void iso_rotate_bytes(const uint8_t federation_id[16], const uint8_t site_id[16],
                      const uint8_t transport_pk[32], const uint8_t sign_pk[32],
                      uint8_t out[ISO_ROTATE_BYTES])
{
    uint8_t *p = put(out, "ROTATEv1", 8);
    p = put(p, federation_id, 16);
    p = put(p, site_id, 16);
    p = put(p, transport_pk, 32);
    put(p, sign_pk, 32);
}
