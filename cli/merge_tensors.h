/* `isofed merge` of whole tensors: out of core, resumable, within a memory limit (specs/users.md
 * U57, U94). */
#ifndef ISO_CLI_MERGE_TENSORS_H
#define ISO_CLI_MERGE_TENSORS_H

#include "cli/merge_inputs.h"

typedef struct {
    double worker_bytes; /* working memory of one thread, at most */
    double fixed_bytes;  /* beside it: lists, headers, windows of the inputs */
    int threads;         /* that fit the limit */
    double read_bytes, written_bytes;
    double flops; /* of decompositions */
    size_t shards;
} iso_tensors_plan;

/* Counts; nothing is merged. limit_bytes 0: none. ISO_ERR_RESOURCE when one thread does not fit. */
iso_err iso_merge_tensors_plan(const iso_merge_inputs *in, const iso_merge_options *o,
                               iso_dtype type, uint64_t limit_bytes, iso_tensors_plan *out,
                               iso_error *e) ISO_MUST_CHECK;

/* Merges into `path` and adds "digest" (small results), "written_bytes", "shards" to `result`. */
iso_err iso_merge_tensors_write(const iso_merge_inputs *in, iso_merge_options *o, iso_dtype type,
                                const char *path, bool resume, bool want_digest,
                                const iso_json *recipe, iso_merged_dense *out, iso_json *result,
                                iso_error *e) ISO_MUST_CHECK;

/* Inputs larger than this together get no digest of content unless asked for: it would cost as much
 * as the merge. */
#define ISO_DIGEST_LIMIT_BYTES (1ull << 30)

/* A mapped file that is cut short while it is read kills a process by SIGBUS: from here on with one
 * line that names the file, and exit code 3. `in` must live as long. */
void iso_merge_catch_truncation(const iso_merge_inputs *in);

#endif
