#include "crypto/text.h"

#include <sodium.h>
#include <string.h>

static const char crockford[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

size_t iso_base32_chars(size_t n)
{
    return (n * 8 + 4) / 5;
}

size_t iso_base64_chars(size_t n)
{
    return (n + 2) / 3 * 4;
}

size_t iso_base64url_chars(size_t n)
{
    return (n * 8 + 5) / 6;
}

void iso_base32_encode(const uint8_t *bytes, size_t n, char *out)
{
    size_t chars = iso_base32_chars(n);
    for (size_t i = 0; i < chars; i++) {
        unsigned v = 0;
        for (size_t bit = i * 5; bit < i * 5 + 5; bit++) {
            unsigned b = bit / 8 < n ? (unsigned)bytes[bit / 8] >> (7 - bit % 8) & 1u : 0u;
            v = v << 1 | b;
        }
        out[i] = crockford[v];
    }
    out[chars] = 0;
}

static int crockford_value(char c)
{
    if (c >= 'a' && c <= 'z')
        c = (char)(c - 'a' + 'A');
    if (c == 'O')
        c = '0';
    if (c == 'I' || c == 'L')
        c = '1';
    const char *at = c ? strchr(crockford, c) : NULL;
    return at ? (int)(at - crockford) : -1;
}

bool iso_base32_decode(const char *text, size_t n, uint8_t *out, size_t *bad)
{
    size_t chars = iso_base32_chars(n);
    memset(out, 0, n);
    for (size_t i = 0; i < chars; i++) {
        int v = crockford_value(text[i]);
        if (v < 0) { /* also the NUL of a short text: nothing behind it is read */
            *bad = i;
            return false;
        }
        for (size_t k = 0; k < 5; k++) {
            size_t bit = i * 5 + k;
            unsigned b = (unsigned)v >> (4 - k) & 1u;
            if (bit / 8 < n) {
                out[bit / 8] = (uint8_t)(out[bit / 8] | b << (7 - bit % 8));
            } else if (b) { /* padding bits: one encoding only */
                *bad = i;
                return false;
            }
        }
    }
    return true;
}

void iso_base64_encode(const uint8_t *bytes, size_t n, char *out)
{
    sodium_bin2base64(out, iso_base64_chars(n) + 1, bytes, n, sodium_base64_VARIANT_ORIGINAL);
}

void iso_base64url_encode(const uint8_t *bytes, size_t n, char *out)
{
    sodium_bin2base64(out, iso_base64url_chars(n) + 1, bytes, n,
                      sodium_base64_VARIANT_URLSAFE_NO_PADDING);
}

static bool decode64(const char *text, size_t chars, uint8_t *out, size_t n, int variant)
{
    size_t got = 0;
    const char *end = NULL;
    /* libsodium refuses stray bytes and padding bits that are set; the length is ours to check. */
    return sodium_base642bin(out, n, text, chars, NULL, &got, &end, variant) == 0 && got == n &&
           end == text + chars;
}

bool iso_base64_decode(const char *text, size_t chars, uint8_t *out, size_t n)
{
    return chars == iso_base64_chars(n) &&
           decode64(text, chars, out, n, sodium_base64_VARIANT_ORIGINAL);
}

bool iso_base64url_decode(const char *text, size_t chars, uint8_t *out, size_t n)
{
    return chars == iso_base64url_chars(n) &&
           decode64(text, chars, out, n, sodium_base64_VARIANT_URLSAFE_NO_PADDING);
}

uint16_t iso_crc16(const void *data, size_t n)
{
    const uint8_t *p = data;
    uint32_t crc = 0xffff;
    for (size_t i = 0; i < n; i++) {
        crc ^= (uint32_t)p[i] << 8;
        for (int k = 0; k < 8; k++)
            crc = crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1;
    }
    return (uint16_t)crc;
}
