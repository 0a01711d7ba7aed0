/* What `isofed merge` says: the list of methods, the plan, the result as text and as JSON. */
#ifndef ISO_CLI_MERGE_REPORT_H
#define ISO_CLI_MERGE_REPORT_H

#include "cli/merge_tensors.h"
#include "core/json.h"

/* Every method with parameters, defaults, needs and source. */
void iso_merge_print_methods(bool json);

/* How the merge was asked for, as it is stored with the result: no absolute paths, canonical. */
iso_json *iso_merge_recipe(const iso_merge_inputs *in, const iso_merge_options *o);

/* Layer count, ranks, memory and rough time before any work; NULL on exhaustion. */
iso_json *iso_merge_plan(const iso_merge_inputs *in, const iso_merge_options *o,
                         const iso_tensors_plan *tensors, size_t names);
/* Memory that a merge of adapters takes: inputs, what each thread holds, result. */
double iso_merge_lora_bytes(const iso_merge_inputs *in, const iso_merge_options *o);
void iso_merge_print_plan(const iso_json *plan);

/* Adds "summary" and "layers". */
void iso_merge_result(const iso_layer_report *reports, size_t count, size_t T,
                      const iso_merge_summary *s, bool is_lora, iso_json *out);
/* Headline, the three layers that lost most, digest. */
void iso_merge_print_result(const iso_merge_options *o, const iso_json *result,
                            const iso_merge_summary *s, const iso_layer_report *reports, size_t T,
                            bool is_lora);

#endif
