#include "bench/bench.h"

#include "core/clock.h"
#include "core/json.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

double iso_bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void json_row(const char *name, double value, const char *unit, const char *rival,
                     double rival_value, double ratio, double target)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "name", iso_json_string(name));
    iso_json_set(o, "value", iso_json_real(value));
    iso_json_set(o, "unit", iso_json_string(unit));
    if (rival) {
        iso_json_set(o, "rival", iso_json_string(rival));
        iso_json_set(o, "rival_value", iso_json_real(rival_value));
    }
    if (!isnan(ratio))
        iso_json_set(o, "ratio", iso_json_real(ratio));
    if (!isnan(target))
        iso_json_set(o, "target", iso_json_real(target));
    iso_buf b = {0};
    if (!iso_json_dump(o, ISO_JSON_COMPACT, &b, NULL))
        printf("%.*s\n", (int)b.size, (const char *)b.data);
    iso_buf_free(&b);
    iso_json_free(o);
}

void iso_bench_row(const iso_bench_options *o, const char *name, double value, const char *unit,
                   const char *rival, double rival_value, double ratio, double target)
{
    if (o->json) {
        json_row(name, value, unit, rival, rival_value, ratio, target);
    } else {
        printf("%-44s %12.5g %-10s", name, value, unit);
        if (rival)
            printf("  %s %.5g", rival, rival_value);
        if (!isnan(ratio))
            printf("  ratio %.3g", ratio);
        if (!isnan(target))
            printf(" (target %.3g)", target);
        printf("\n");
    }
    fflush(stdout);
}
