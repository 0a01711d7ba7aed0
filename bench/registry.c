#include "bench/bench.h"

#include <stddef.h>

extern const iso_bench iso_bench_kernels, iso_bench_train, iso_bench_merge, iso_bench_net;

const iso_bench *const iso_benches[] = {
    &iso_bench_kernels,
    &iso_bench_train,
    &iso_bench_merge,
    &iso_bench_net,
    NULL,
};
