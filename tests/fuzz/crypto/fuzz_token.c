/* Tokens and enrolment lines: what is read and written is read to the same again. */
#include "crypto/token.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_token t, t2;
    iso_enrol_line l, l2;
    iso_error e;
    char text[ISO_ENROL_LINE_TEXT];
    char *copy = malloc(size + 1);
    if (!copy)
        abort();
    if (size)
        memcpy(copy, data, size);
    copy[size] = 0;
    if (iso_token_parse(copy, &t, &e) == ISO_OK) {
        iso_token_format(&t, text);
        if (iso_token_parse(text, &t2, &e) || memcmp(&t, &t2, sizeof t) != 0)
            abort();
    }
    if (iso_enrol_line_parse(copy, &l, &e) == ISO_OK)
        if (iso_enrol_line_format(&l, text, &e) || iso_enrol_line_parse(text, &l2, &e) ||
            memcmp(&l, &l2, sizeof l) != 0)
            abort();
    free(copy);
    return 0;
}
