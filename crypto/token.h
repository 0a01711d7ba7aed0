/* Enrolment tokens and the line that carries one (specs/security.md 2.3, S16; AMENDMENT 1).
 *
 * The token is a CURVE key: from its seed come the transport pair with which the site connects to
 * enrol, and the key of the MAC in Enroll. The coordinator keeps the public key and the MAC key,
 * never the seed. */
#ifndef ISO_CRYPTO_TOKEN_H
#define ISO_CRYPTO_TOKEN_H

#include "core/err.h"
#include "core/wire.h"

enum {
    ISO_TOKEN_SEED_BYTES = 20,
    ISO_TOKEN_BYTES = 27, /* version 1, id 4, seed 20, crc16 2 */
    ISO_TOKEN_CHARS = 44,
    ISO_TOKEN_TEXT = 8 + ISO_TOKEN_CHARS + 1, /* "isofed1-", characters, NUL */
    ISO_HOST_MAX = 253,
    ISO_ENROL_LINE_TEXT = 8 + 44 + 1 + ISO_HOST_MAX + 2 + 6 + 1 + 43 + 1 + 32 + 1
};

typedef struct {
    uint8_t id[ISO_TOKEN_ID_BYTES];
    uint8_t seed[ISO_TOKEN_SEED_BYTES];
} iso_token;

typedef struct {
    uint8_t transport_pk[32], transport_secret[32]; /* CURVE pair of the enrolment connection */
    uint8_t proof_key[32];                          /* keys the MAC of Enroll */
} iso_token_keys;

void iso_token_make(iso_token *out);                            /* fresh id and seed */
void iso_token_derive(const iso_token *t, iso_token_keys *out); /* wipe both after use */
void iso_token_format(const iso_token *t, char out[ISO_TOKEN_TEXT]);
/* "isofed1-" and 44 characters. A wrong checksum names the group of four characters that is most
 * likely mistyped: "wrong checksum: check group 4 (\"9TRA\")". ISO_ERR_USAGE. */
iso_err iso_token_parse(const char *text, iso_token *out, iso_error *e) ISO_MUST_CHECK;

/* isofed1-<44>@<host>:<port>/<transport pk, 43 base64url>/<root fingerprint, 32 base32> */
typedef struct {
    iso_token token;
    char host[ISO_HOST_MAX + 1]; /* name, IPv4, or IPv6 without its brackets */
    uint16_t port;
    uint8_t coordinator_pk[32];
    uint8_t root_fingerprint[ISO_FINGERPRINT_BYTES];
} iso_enrol_line;
iso_err iso_enrol_line_format(const iso_enrol_line *l, char out[ISO_ENROL_LINE_TEXT],
                              iso_error *e) ISO_MUST_CHECK;
/* Blanks and a newline around the line are ignored. */
iso_err iso_enrol_line_parse(const char *text, iso_enrol_line *out, iso_error *e) ISO_MUST_CHECK;

#endif
