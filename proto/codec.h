/* Bytes of frame 1 <-> iso_msg (specs/security.md S47 - S50). The only place that knows protobuf.
 *
 * Stricter than protobuf: exactly one body (a head that holds two, of the same or of different
 * types, is refused rather than read as the last one), every length within its limit, strings UTF-8
 * without NUL, enums known, floats finite, at most 32 unknown fields in all (ignored, never sent
 * on). Laxer than canonical: value varints may be non-minimal. Nothing signed is protobuf (S33). */
#ifndef ISO_PROTO_CODEC_H
#define ISO_PROTO_CODEC_H

#include "core/mem.h"
#include "proto/message.h"

/* Writes at most `cap` bytes (ISO_HEAD_MAX_BYTES suffices for every message; a message that needs
 * more is refused) and sets *size. version 0 is sent as ISO_PROTO_VERSION_MAX. The limits that the
 * decoder checks are checked here too: ISO_ERR_INTERNAL names the field, nothing is sent. */
iso_err iso_msg_encode(const iso_msg *m, uint8_t *out, size_t cap, size_t *size,
                       iso_error *e) ISO_MUST_CHECK;

/* Takes at most ISO_ARENA_MAX_BYTES of `arena`, in one piece, whatever the head says; strings and
 * arrays of `out` live there, so reset it only when the message is done with. On refusal *code is
 * BAD_MESSAGE, UNKNOWN_ENUM or VERSION; `out` then holds id, version and epoch when they could be
 * read (else 0) so that an Error can name the request. A Hello passes with any version >= 1: its
 * range decides. */
iso_err iso_msg_decode(const void *head, size_t size, iso_arena *arena, iso_msg *out,
                       iso_code *code, iso_error *e) ISO_MUST_CHECK;

/* Highest version common to [min, max] and ours, 0: none (S50). */
uint32_t iso_proto_pick_version(uint32_t min, uint32_t max);

/* An Error with the code's own sentence, ready to encode. */
iso_msg iso_msg_refusal(iso_code code, uint64_t about_id, uint64_t retry_after_ms);

#endif
