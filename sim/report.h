/* What a simulation came to: a table for people, an object for programs, a page to keep. */
#ifndef ISO_SIM_REPORT_H
#define ISO_SIM_REPORT_H

#include "core/json.h"
#include "sim/world.h"

#include <stdio.h>

void iso_sim_result_print(FILE *out, const iso_scenario *s, const iso_sim_result *r, double wall_s);
iso_json *iso_sim_result_json(const iso_scenario *s, const iso_sim_result *r, double wall_s);
/* `broken` is the line of what stopped it, or NULL. */
iso_err iso_sim_report(const char *path, const iso_scenario *s, const iso_sim_result *r,
                       double wall_s, const char *broken, iso_error *e) ISO_MUST_CHECK;

#endif
