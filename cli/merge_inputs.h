/* What `isofed merge` was given: PEFT folders or files of whole tensors, opened and compared before
 * any work (specs/users.md U93, U98, N4). */
#ifndef ISO_CLI_MERGE_INPUTS_H
#define ISO_CLI_MERGE_INPUTS_H

#include "core/args.h"
#include "merge/merge.h"

typedef struct {
    size_t count;
    bool is_lora;
    const char *const *paths;
    iso_peft *adapters;     /* is_lora */
    iso_safetensors *files; /* else */
    iso_lora_input *lora;
    iso_dense_input *dense;
    iso_digest *digests; /* of each input's tensors; zero: not worked out */
    iso_safetensors base_file;
    iso_dense_input base; /* tensors NULL without --base */
    iso_arena arena;
} iso_merge_inputs;

/* Kinds must not be mixed. Adapters that name different bases are ISO_ERR_DATA unless any_base.
 * Whole tensors of more than 1 GiB together get digests only if asked for. */
iso_err iso_merge_inputs_open(iso_merge_inputs *in, const iso_arg_list *paths, const char *base,
                              bool any_base, bool want_digests, iso_error *e) ISO_MUST_CHECK;
void iso_merge_inputs_close(iso_merge_inputs *in); /* zeroed struct is fine */

/* How the names of layers or tensors meet. */
typedef struct {
    size_t total, unmatched; /* unmatched: in one of several inputs only */
    size_t partial;          /* in some, not all */
    iso_buf lines;           /* one a partial name that is not unmatched; text, owned */
    size_t differ;           /* of other shape than in the first input that has it */
    iso_buf differ_names;    /* the first five: "x is 3x4 in a, 3x5 in b; ..."; text, owned */
    iso_buf unmatched_names; /* "a (only in x), b (only in y), and 3 more"; text, owned */
} iso_merge_match;

iso_err iso_merge_inputs_match(const iso_merge_inputs *in, iso_merge_match *out,
                               iso_error *e) ISO_MUST_CHECK;
void iso_merge_match_free(iso_merge_match *m);

#endif
