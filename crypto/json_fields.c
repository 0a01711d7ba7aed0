#include "crypto/json_fields.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

iso_err iso_fields_exact(const iso_json *o, const char *what, const char *const keys[],
                         iso_error *e)
{
    size_t count = 0;
    if (!iso_json_is_object(o))
        return iso_fail(e, ISO_ERR_DATA, "%s: is not an object", what);
    for (; keys[count]; count++)
        if (!iso_json_key(o, keys[count]))
            return iso_fail(e, ISO_ERR_DATA, "%s: key \"%s\" is missing", what, keys[count]);
    for (size_t i = 0; i < iso_json_count(o); i++) {
        const char *key = NULL;
        size_t k = 0;
        (void)iso_json_member(o, i, &key);
        while (keys[k] && strcmp(keys[k], key) != 0)
            k++;
        if (!keys[k])
            return iso_fail(e, ISO_ERR_DATA, "%s: key \"%.40s\" is not known", what, key);
    }
    return ISO_OK;
}

iso_err iso_field_hex(const iso_json *o, const char *key, uint8_t *out, size_t n, iso_error *e)
{
    const char *text = NULL;
    iso_err err = iso_json_need_str(o, key, &text, e);
    if (err)
        return err;
    bool is_lower = true;
    for (const char *c = text; *c; c++)
        is_lower = is_lower && !(*c >= 'A' && *c <= 'F');
    if (!is_lower || !iso_unhex(out, n, text))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" should be %zu lower-case hexadecimal digits", key,
                        2 * n);
    return ISO_OK;
}

iso_err iso_field_u64(const iso_json *o, const char *key, uint64_t *out, iso_error *e)
{
    int64_t v = 0;
    iso_err err = iso_json_need_int(o, key, 0, INT64_MAX, &v, e);
    *out = (uint64_t)v;
    return err;
}

iso_err iso_field_float(const iso_json *o, const char *key, double *out, iso_error *e)
{
    const char *text = NULL;
    char again[40];
    char *end = NULL;
    *out = 0;
    iso_err err = iso_json_need_str(o, key, &text, e);
    if (err)
        return err;
    double v = strtod(text, &end);
    snprintf(again, sizeof again, "%.9g", v);
    if (!isfinite(v) || strcmp(again, text) != 0)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" should be a number as \"%%.9g\" writes it", key);
    *out = v;
    return ISO_OK;
}

iso_err iso_field_object(const iso_json *o, const char *key, const iso_json **out, iso_error *e)
{
    *out = iso_json_key(o, key);
    if (!*out || !iso_json_is_object(*out))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" should be an object", key);
    return ISO_OK;
}

iso_err iso_field_array(const iso_json *o, const char *key, size_t max, const iso_json **out,
                        iso_error *e)
{
    *out = iso_json_key(o, key);
    if (!*out || !iso_json_is_array(*out))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" should be a list", key);
    if (iso_json_count(*out) > max)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" has more than %zu elements", key, max);
    return ISO_OK;
}

iso_err iso_field_text(const iso_json *o, const char *key, size_t max, const char **out,
                       iso_error *e)
{
    iso_err err = iso_json_need_str(o, key, out, e);
    if (err)
        return err;
    size_t n = 0;
    for (; (*out)[n]; n++)
        if ((unsigned char)(*out)[n] < 0x20 || (*out)[n] == 0x7f)
            return iso_fail(e, ISO_ERR_DATA, "\"%s\" holds control characters", key);
    if (n > max)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is longer than %zu bytes", key, max);
    return ISO_OK;
}

iso_json *iso_json_hex(const uint8_t *bytes, size_t n)
{
    char text[129];
    if (n > 64)
        return NULL;
    iso_hex(text, bytes, n);
    return iso_json_string(text);
}
