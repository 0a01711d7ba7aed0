/* UTF-8 as the standard allows it: shortest form, no surrogates, up to U+10FFFF. */
#ifndef ISO_CORE_UTF8_H
#define ISO_CORE_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the sequence at the start of the n bytes at s, or 0 if there is none. */
size_t iso_utf8_length(const char *s, size_t n);
bool iso_utf8_is_valid(const char *s, size_t n);
/* Writes a code point (1 to 4 bytes), returns their number. */
size_t iso_utf8_put(char *out, unsigned code);

#endif
