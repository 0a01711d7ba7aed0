#include "bench/bench.h"

#include <stddef.h>

extern const iso_bench iso_bench_kernels, iso_bench_train, iso_bench_merge, iso_bench_net,
    iso_bench_sim;

const iso_bench *const iso_benches[] = {
    &iso_bench_kernels, &iso_bench_train, &iso_bench_merge, &iso_bench_net, &iso_bench_sim, NULL,
};
