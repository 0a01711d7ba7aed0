#include "core/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

static int thread_count = 1;

void iso_set_threads(int n)
{
#ifdef _OPENMP
    thread_count = n > 0 ? n : omp_get_num_procs();
    omp_set_num_threads(thread_count);
#else
    (void)n;
#endif
}

int iso_threads(void)
{
    return thread_count;
}

void iso_parallel_for(size_t n, size_t grain, iso_item_fn *body, void *ctx)
{
    if (grain < 1)
        grain = 1;
#ifdef _OPENMP
    if (thread_count > 1 && n > grain && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic, grain) num_threads(thread_count)
        for (size_t i = 0; i < n; i++)
            body(ctx, i, omp_get_thread_num());
        return;
    }
    int worker = omp_in_parallel() ? omp_get_thread_num() : 0;
#else
    int worker = 0;
#endif
    for (size_t i = 0; i < n; i++)
        body(ctx, i, worker);
}
