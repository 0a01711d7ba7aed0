/* Fields of signed JSON, private to crypto/: strict readers that name the key, and a check that an
 * object has the keys it should and no other. */
#ifndef ISO_CRYPTO_JSON_FIELDS_H
#define ISO_CRYPTO_JSON_FIELDS_H

#include "core/digest.h"
#include "core/json.h"

/* Every key of `keys` (NULL at the end) is there, and no other. */
iso_err iso_fields_exact(const iso_json *o, const char *what, const char *const keys[],
                         iso_error *e) ISO_MUST_CHECK;
/* Lower-case hex of exactly n bytes. */
iso_err iso_field_hex(const iso_json *o, const char *key, uint8_t *out, size_t n,
                      iso_error *e) ISO_MUST_CHECK;
iso_err iso_field_u64(const iso_json *o, const char *key, uint64_t *out,
                      iso_error *e) ISO_MUST_CHECK; /* 0 to 2^63 - 1 */
/* A string that is the "%.9g" of a finite number. */
iso_err iso_field_float(const iso_json *o, const char *key, double *out,
                        iso_error *e) ISO_MUST_CHECK;
iso_err iso_field_object(const iso_json *o, const char *key, const iso_json **out,
                         iso_error *e) ISO_MUST_CHECK;
iso_err iso_field_array(const iso_json *o, const char *key, size_t max, const iso_json **out,
                        iso_error *e) ISO_MUST_CHECK;
/* A string of 0 to max bytes without control characters. */
iso_err iso_field_text(const iso_json *o, const char *key, size_t max, const char **out,
                       iso_error *e) ISO_MUST_CHECK;

iso_json *iso_json_hex(const uint8_t *bytes, size_t n); /* n <= 64 */

#endif
