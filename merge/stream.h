/* Whole tensors out of core: parts of results go to their place in a file as they come, so that
 * neither inputs (mapped) nor results need fit into memory (specs/users.md U94).
 *
 * The result is a .safetensors file, or a folder: model.safetensors, or shards with an index in the
 * way that the first input is sharded. A folder grows as OUT.part and gets its name when it is
 * complete; each shard in it is complete and synced, or absent. An interrupted merge leaves
 * OUT.part behind, from which the same merge resumes by shard. A single file is complete or absent.
 */
#ifndef ISO_MERGE_STREAM_H
#define ISO_MERGE_STREAM_H

#include "merge/merge.h"

typedef struct {
    const char *out;
    bool resume;                        /* go on with OUT.part; without one, start */
    const iso_safetensors *const *maps; /* everything that is mapped: inputs, base */
    size_t map_count;
    const iso_safetensors *like; /* sharded as this one */
    const char *recipe;          /* JSON text, into each file's metadata; may be NULL */
    const iso_digest *identity;  /* of recipe and inputs: OUT.part of another merge is refused */
} iso_stream_options;

typedef struct iso_stream iso_stream;

/* Is `out` the same file or folder as one of the inputs? */
bool iso_stream_is_input(const char *out, const char *const *inputs, size_t n, const char **which);

/* A folder OUT that exists is refused. On failure *out is still to be closed. */
iso_err iso_stream_open(const iso_stream_options *o, iso_stream **out, iso_error *e) ISO_MUST_CHECK;
/* For iso_merge_options.sink; lives as long as the stream. */
const iso_dense_sink *iso_stream_sink(const iso_stream *s);
/* After a merge that succeeded: index, folder under its name. */
iso_err iso_stream_commit(iso_stream *s, iso_error *e) ISO_MUST_CHECK;
/* Closes; what was not committed goes, or stays in OUT.part. NULL is fine. */
void iso_stream_close(iso_stream *s);

/* Bytes of results so far, and shards: for people. */
void iso_stream_counts(const iso_stream *s, uint64_t *written, size_t *shards, size_t *kept_shards);
/* Path of an unfinished folder that was kept, or NULL. */
const char *iso_stream_kept(const iso_stream *s);

#endif
