#include "core/rng.h"

#include <math.h>

static void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c[0];
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)p1;
        c[3] = (uint32_t)p0;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

iso_rng iso_rng_make(uint64_t seed, iso_rng_purpose purpose, uint64_t step)
{
    /* Steps beyond 32 bits would collide in the counter: fold their upper half into the key. */
    uint32_t high = (uint32_t)(step >> 32);
    return (iso_rng){
        .key = {(uint32_t)seed ^ high * 0x85EBCA6Bu, (uint32_t)(seed >> 32)},
        .stream = {(uint32_t)step, (uint32_t)purpose},
    };
}

uint64_t iso_rng_seed_name(uint64_t seed, const char *name)
{
    uint64_t h = 0xCBF29CE484222325u ^ seed;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001B3u;
    return h;
}

void iso_rng_block(const iso_rng *r, uint64_t block, uint32_t out[4])
{
    out[0] = (uint32_t)block;
    out[1] = (uint32_t)(block >> 32);
    out[2] = r->stream[0];
    out[3] = r->stream[1];
    philox(out, r->key[0], r->key[1]);
}

uint32_t iso_rng_u32(iso_rng *r)
{
    uint32_t w[4];
    iso_rng_block(r, r->index >> 2, w);
    return w[r->index++ & 3];
}

uint64_t iso_rng_u64(iso_rng *r)
{
    uint64_t high = iso_rng_u32(r);
    return high << 32 | iso_rng_u32(r);
}

uint32_t iso_rng_below(iso_rng *r, uint32_t n)
{
    uint32_t reject = (uint32_t)(-n) % n;
    for (;;) {
        uint32_t x = iso_rng_u32(r);
        if (x >= reject)
            return x % n;
    }
}

double iso_rng_uniform(iso_rng *r)
{
    return (double)(iso_rng_u64(r) >> 11) * 0x1p-53;
}

double iso_rng_normal(iso_rng *r)
{
    double u = 1.0 - iso_rng_uniform(r); /* (0, 1]: the logarithm stays finite */
    double v = iso_rng_uniform(r);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void iso_rng_shuffle(iso_rng *r, uint32_t *items, size_t n)
{
    for (size_t i = n; i > 1; i--) {
        size_t j = iso_rng_below(r, (uint32_t)i);
        uint32_t t = items[i - 1];
        items[i - 1] = items[j];
        items[j] = t;
    }
}
