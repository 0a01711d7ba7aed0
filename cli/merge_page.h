/* `isofed merge --report PAGE.html`: what went in, how the tasks lie to each other, what came out.
 */
#ifndef ISO_CLI_MERGE_PAGE_H
#define ISO_CLI_MERGE_PAGE_H

#include "cli/merge_inputs.h"

/* For adapters: norms and weights; spectra before and after; alignment of the tasks' output spaces
 * (principal angles), over all layers and per layer; how much of each task lies in the merged
 * update's leading directions (subspace alignment ratio, Marczak et al. 2025, section 3). */
iso_err iso_merge_page_write(const char *path, const iso_merge_inputs *in,
                             const iso_merge_options *o, const iso_merged_lora *m,
                             iso_error *e) ISO_MUST_CHECK;

#endif
