/* Fixed little-endian layouts of records: a version byte, then fields in a stated order.
 * A writer appends to memory of the step's effects; a reader checks every length and notes the
 * first thing that does not fit. docs/FORMATS.md "State" has the tables. */
#ifndef ISO_COORDINATOR_RECORD_H
#define ISO_COORDINATOR_RECORD_H

#include "coordinator/inner.h"

enum { RECORD_VERSION = 1 };

typedef struct {
    iso_coord *c;
    uint8_t *data;
    size_t size, capacity;
} iso_writer;

iso_writer iso_writer_begin(iso_coord *c, size_t guess_bytes); /* writes the version byte */
void iso_w_bytes(iso_writer *w, const void *data, size_t n);
void iso_w_u8(iso_writer *w, unsigned v);
void iso_w_u32(iso_writer *w, uint64_t v);
void iso_w_u64(iso_writer *w, uint64_t v);
void iso_w_f64(iso_writer *w, double v);
void iso_w_text(iso_writer *w, const char *s); /* u16 length, bytes */

typedef struct {
    const uint8_t *p;
    size_t left;
    bool is_bad;
} iso_reader;

iso_reader iso_reader_begin(const void *data, size_t size); /* checks the version byte */
void iso_r_bytes(iso_reader *r, void *out, size_t n);
unsigned iso_r_u8(iso_reader *r);
uint32_t iso_r_u32(iso_reader *r);
uint64_t iso_r_u64(iso_reader *r);
double iso_r_f64(iso_reader *r);
void iso_r_text(iso_reader *r, char *out, size_t out_bytes); /* too long is bad */
/* A count that is at most `max` and whose items of `item_bytes` can still be there. */
size_t iso_r_count(iso_reader *r, size_t max, size_t item_bytes);
bool iso_r_done(const iso_reader *r);                /* all read, nothing bad */
bool iso_c_roster_read(iso_coord *c, iso_reader *r); /* steps.c */

void iso_key_u64(uint8_t out[8], uint64_t v); /* big endian: rows come in order of number */
uint64_t iso_key_get_u64(const uint8_t in[8]);

#endif
