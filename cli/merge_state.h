/* `isofed merge --state FILE`: tasks join, leave and change; the merge is the joint one (specs/
 * users.md U102). */
#ifndef ISO_CLI_MERGE_STATE_H
#define ISO_CLI_MERGE_STATE_H

#include "cli/merge_inputs.h"
#include "merge/task_state.h"

typedef struct {
    const char *path;
    iso_arg_list add, replace; /* NAME=ADAPTER, or ADAPTER: its last part is the name */
    iso_arg_list remove;       /* NAME */
    iso_arg_list weight;       /* NAME=X */
    int64_t compress;          /* 0: no */
} iso_state_request;

/* Opens the state, changes it in memory and presents its tasks as inputs of a merge. `notes` gets
 * lines for people. */
iso_err iso_merge_state_prepare(const iso_state_request *r, bool any_base, iso_task_state *s,
                                iso_merge_inputs *in, iso_buf *notes, iso_error *e) ISO_MUST_CHECK;

#endif
