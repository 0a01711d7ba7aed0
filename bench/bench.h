/* Benches: one file each, one row a figure, rivals measured in the same run (DESIGN 9). */
#ifndef ISO_BENCH_BENCH_H
#define ISO_BENCH_BENCH_H

#include <stdbool.h>

typedef struct {
    bool json; /* one JSON object a line; else an aligned table */
    bool full; /* the long shapes too */
} iso_bench_options;

typedef struct {
    const char *name, *help;
    int (*run)(const iso_bench_options *o); /* returns an exit code */
} iso_bench;

/* Prints a row. rival NULL or ratio NaN: no rival; target NaN: none. `ratio` is ours against the
 * rival, larger is better. */
void iso_bench_row(const iso_bench_options *o, const char *name, double value, const char *unit,
                   const char *rival, double rival_value, double ratio, double target);

/* Seconds on a clock that never goes back. */
double iso_bench_now(void);

extern const iso_bench *const iso_benches[]; /* ends with NULL */

#endif
