#include "crypto/token.h"
#include "core/mem.h"
#include "crypto/init.h"
#include "crypto/text.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKEN_VERSION = 1, PREFIX_CHARS = 8, GROUP_CHARS = 4, GROUPS = ISO_TOKEN_CHARS / 4 };
static const char prefix[] = "isofed1-";
static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

void iso_token_make(iso_token *out)
{
    iso_random(out->id, sizeof out->id);
    iso_random(out->seed, sizeof out->seed);
}

void iso_token_derive(const iso_token *t, iso_token_keys *out)
{
    /* k = BLAKE2b-512(key = seed, "isofed-token-1"): S16. The seed's 20 bytes are a legal key
     * length (16 - 64), so neither call can fail. */
    static const char what[] = "isofed-token-1";
    uint8_t k[64];
    crypto_generichash(k, sizeof k, (const uint8_t *)what, sizeof what - 1, t->seed,
                       sizeof t->seed);
    crypto_box_seed_keypair(out->transport_pk, out->transport_secret, k);
    memcpy(out->proof_key, k + 32, 32);
    iso_wipe(k, sizeof k);
}

static void pack(const iso_token *t, uint8_t bytes[ISO_TOKEN_BYTES])
{
    bytes[0] = TOKEN_VERSION;
    memcpy(bytes + 1, t->id, sizeof t->id);
    memcpy(bytes + 5, t->seed, sizeof t->seed);
    iso_put_u16(bytes + 25, iso_crc16(bytes, 25));
}

void iso_token_format(const iso_token *t, char out[ISO_TOKEN_TEXT])
{
    uint8_t bytes[ISO_TOKEN_BYTES];
    pack(t, bytes);
    memcpy(out, prefix, PREFIX_CHARS);
    iso_base32_encode(bytes, sizeof bytes, out + PREFIX_CHARS);
    iso_wipe(bytes, sizeof bytes);
}

static bool checksum_holds(const uint8_t bytes[ISO_TOKEN_BYTES])
{
    return bytes[0] == TOKEN_VERSION && iso_get_u16(bytes + 25) == iso_crc16(bytes, 25);
}

/* Which group of four was mistyped: try every change of one character and every swap of two
 * neighbours; each repairs a 16-bit checksum by chance once in 65,536, and there are about 1,400,
 * so the group that is found is nearly always the right one. 0: none found, or two disagree. */
static int suspect_group(const char text[ISO_TOKEN_CHARS])
{
    char copy[ISO_TOKEN_CHARS + 1];
    uint8_t bytes[ISO_TOKEN_BYTES];
    size_t bad;
    int group = 0;
    memcpy(copy, text, ISO_TOKEN_CHARS);
    copy[ISO_TOKEN_CHARS] = 0;
    for (int i = 0; i < ISO_TOKEN_CHARS; i++) {
        char kept = copy[i];
        int here = i / GROUP_CHARS + 1;
        bool repairs = false;
        for (const char *c = alphabet; *c && !repairs; c++) {
            copy[i] = *c;
            repairs =
                iso_base32_decode(copy, ISO_TOKEN_BYTES, bytes, &bad) && checksum_holds(bytes);
        }
        copy[i] = kept;
        if (!repairs && i + 1 < ISO_TOKEN_CHARS) {
            copy[i] = copy[i + 1];
            copy[i + 1] = kept;
            repairs =
                iso_base32_decode(copy, ISO_TOKEN_BYTES, bytes, &bad) && checksum_holds(bytes);
            copy[i + 1] = copy[i];
            copy[i] = kept;
        }
        if (repairs && group && group != here)
            group = -1;
        else if (repairs && !group)
            group = here;
    }
    iso_wipe(copy, sizeof copy);
    iso_wipe(bytes, sizeof bytes);
    return group > 0 ? group : 0;
}

static iso_err fail_group(int group, const char text[ISO_TOKEN_CHARS], const char *why,
                          iso_error *e)
{
    return iso_fail(e, ISO_ERR_USAGE, "token %s: check group %d (\"%.4s\")", why, group,
                    text + (group - 1) * GROUP_CHARS);
}

/* `text`: the 44 characters, not terminated. */
static iso_err parse_chars(const char *text, iso_token *out, iso_error *e)
{
    uint8_t bytes[ISO_TOKEN_BYTES];
    size_t bad = 0;
    iso_err err = ISO_OK;
    if (!iso_base32_decode(text, ISO_TOKEN_BYTES, bytes, &bad)) {
        err = fail_group((int)bad / GROUP_CHARS + 1, text, "has a character that no token has", e);
    } else if (!checksum_holds(bytes)) {
        int group = suspect_group(text);
        if (group)
            err = fail_group(group, text, "has a wrong checksum", e);
        else
            err = iso_fail(e, ISO_ERR_USAGE,
                           "token has a wrong checksum in more than one place: copy it again");
    } else {
        memcpy(out->id, bytes + 1, sizeof out->id);
        memcpy(out->seed, bytes + 5, sizeof out->seed);
    }
    iso_wipe(bytes, sizeof bytes);
    return err;
}

iso_err iso_token_parse(const char *text, iso_token *out, iso_error *e)
{
    if (strncmp(text, prefix, PREFIX_CHARS) != 0)
        return iso_fail(e, ISO_ERR_USAGE, "a token starts with \"%s\"", prefix);
    size_t n = strlen(text + PREFIX_CHARS);
    if (n != ISO_TOKEN_CHARS)
        return iso_fail(e, ISO_ERR_USAGE,
                        "token has %zu characters after \"%s\", it should have %d", n, prefix,
                        ISO_TOKEN_CHARS);
    return parse_chars(text + PREFIX_CHARS, out, e);
}

/* ---- enrolment line ---- */

static bool host_is_valid(const char *host)
{
    size_t n = strlen(host);
    if (n == 0 || n > ISO_HOST_MAX)
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = host[i];
        bool is_fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '-' || c == ':' || c == '_';
        if (!is_fine)
            return false;
    }
    return host[0] != '-';
}

iso_err iso_enrol_line_format(const iso_enrol_line *l, char out[ISO_ENROL_LINE_TEXT], iso_error *e)
{
    char token[ISO_TOKEN_TEXT], pk[44], fingerprint[33];
    if (!host_is_valid(l->host))
        return iso_fail(e, ISO_ERR_USAGE, "\"%s\" is not a host name or address", l->host);
    if (!l->port)
        return iso_fail(e, ISO_ERR_USAGE, "port 0 cannot be connected to");
    iso_token_format(&l->token, token);
    iso_base64url_encode(l->coordinator_pk, 32, pk);
    iso_base32_encode(l->root_fingerprint, ISO_FINGERPRINT_BYTES, fingerprint);
    bool is_v6 = strchr(l->host, ':') != NULL;
    snprintf(out, ISO_ENROL_LINE_TEXT, "%s@%s%s%s:%u/%s/%s", token, is_v6 ? "[" : "", l->host,
             is_v6 ? "]" : "", l->port, pk, fingerprint);
    iso_wipe(token, sizeof token);
    return ISO_OK;
}

/* Decimal port without sign or leading zero. */
static bool parse_port(const char *text, size_t n, uint16_t *out)
{
    uint32_t v = 0;
    if (n == 0 || n > 5 || text[0] == '0')
        return false;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        v = v * 10 + (uint32_t)(text[i] - '0');
    }
    *out = (uint16_t)v;
    return v <= 65535;
}

/* "<host>:<port>", host in brackets if it holds a colon. */
static iso_err parse_address(const char *text, size_t n, iso_enrol_line *out, iso_error *e)
{
    size_t colon = n;
    while (colon > 0 && text[colon - 1] != ':')
        colon--;
    const char *host = text;
    size_t host_chars = colon ? colon - 1 : 0;
    if (colon == 0 || !parse_port(text + colon, n - colon, &out->port))
        return iso_fail(e, ISO_ERR_USAGE,
                        "enrolment line: address should be HOST:PORT with a port of 1 to 65535");
    bool has_brackets = host_chars >= 2 && host[0] == '[' && host[host_chars - 1] == ']';
    if (has_brackets) {
        host++;
        host_chars -= 2;
    }
    if (host_chars > ISO_HOST_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "enrolment line: host name longer than %d", ISO_HOST_MAX);
    memcpy(out->host, host, host_chars);
    out->host[host_chars] = 0;
    if (!host_is_valid(out->host) || has_brackets != (strchr(out->host, ':') != NULL))
        return iso_fail(e, ISO_ERR_USAGE, "enrolment line: \"%s\" is not a host name or address",
                        out->host);
    return ISO_OK;
}

iso_err iso_enrol_line_parse(const char *text, iso_enrol_line *out, iso_error *e)
{
    char line[ISO_ENROL_LINE_TEXT];
    size_t start = strspn(text, " \t\r\n");
    size_t n = strnlen(text + start, ISO_ENROL_LINE_TEXT);
    while (n > 0 && n < ISO_ENROL_LINE_TEXT && strchr(" \t\r\n", text[start + n - 1]))
        n--;
    if (n >= ISO_ENROL_LINE_TEXT)
        return iso_fail(e, ISO_ERR_USAGE, "enrolment line is longer than %d characters",
                        ISO_ENROL_LINE_TEXT - 1);
    memcpy(line, text + start, n);
    line[n] = 0;

    iso_err err = ISO_OK;
    size_t bad = 0;
    memset(out, 0, sizeof *out);
    char *address = strchr(line, '@');
    char *pk = address ? strchr(address, '/') : NULL;
    char *fingerprint = pk ? strchr(pk + 1, '/') : NULL;
    if (!fingerprint) {
        err = iso_fail(e, ISO_ERR_USAGE,
                       "enrolment line should be isofed1-TOKEN@HOST:PORT/KEY/FINGERPRINT");
        goto done;
    }
    *address++ = 0;
    *pk++ = 0;
    *fingerprint++ = 0;
    err = iso_token_parse(line, &out->token, e);
    if (!err)
        err = parse_address(address, strlen(address), out, e);
    if (!err && !iso_base64url_decode(pk, strlen(pk), out->coordinator_pk, 32))
        err = iso_fail(e, ISO_ERR_USAGE,
                       "enrolment line: the server's key should be 43 characters of base64url");
    if (!err && (strlen(fingerprint) != 32 || !iso_base32_decode(fingerprint, ISO_FINGERPRINT_BYTES,
                                                                 out->root_fingerprint, &bad)))
        err = iso_fail(e, ISO_ERR_USAGE,
                       "enrolment line: the root fingerprint should be 32 characters of base32");
done:
    iso_wipe(line, sizeof line);
    if (err)
        iso_wipe(out, sizeof *out);
    return err;
}
