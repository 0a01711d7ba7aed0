/* Any bytes as a scenario: one whose numbers lie within their ranges, or a line that names the
 * file. */
#include "sim/scenario.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_scenario s;
    iso_arena arena = {0};
    iso_error e = {0};
    iso_err err = iso_scenario_parse(data, size, "x.yaml", &s, &arena, &e);
    if (err && !strstr(e.text, "x.yaml"))
        abort();
    if (!err && (s.sites < s.tasks || s.tasks < 1 || s.tasks > 64 || s.rounds < 1 ||
                 s.method_count < 1 || s.method_count > 8 || 2 * s.trainer.rank > s.trainer.width ||
                 s.trainer.width > 128 || s.net.loss > 1.0 || s.check_every < 1 || !s.name))
        abort();
    iso_arena_free(&arena);
    return 0;
}
