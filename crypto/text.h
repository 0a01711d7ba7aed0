/* Text forms of bytes: Crockford base32 (what people read), base64 and base64url (what files and
 * lines hold). Decoders take one encoding only: right length, no padding bits set, no stray byte.
 */
#ifndef ISO_CRYPTO_TEXT_H
#define ISO_CRYPTO_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Characters for n bytes, without NUL. */
size_t iso_base32_chars(size_t n);
size_t iso_base64_chars(size_t n);    /* padded with '=' */
size_t iso_base64url_chars(size_t n); /* without padding */

void iso_base32_encode(const uint8_t *bytes, size_t n, char *out); /* writes NUL */
/* Reads exactly iso_base32_chars(n) characters; lower case, and O I L as 0 1 1, are fine. On
 * failure *bad is the index of the offending character (or the last one for padding bits). */
bool iso_base32_decode(const char *text, size_t n, uint8_t *out, size_t *bad);
void iso_base64_encode(const uint8_t *bytes, size_t n, char *out);
bool iso_base64_decode(const char *text, size_t chars, uint8_t *out, size_t n);
void iso_base64url_encode(const uint8_t *bytes, size_t n, char *out);
bool iso_base64url_decode(const char *text, size_t chars, uint8_t *out, size_t n);

/* CRC-16/CCITT-FALSE: x^16 + x^12 + x^5 + 1, start 0xffff. */
uint16_t iso_crc16(const void *data, size_t n);

#endif
