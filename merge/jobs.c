/* One job a layer over the threads; order, errors and arenas (jobs.h). */
#include "merge/jobs.h"

#include "core/parallel.h"
#include "merge/linalg/linalg.h"

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef struct {
    const iso_jobs *jobs;
    size_t *order;
    iso_arena *arenas;
    iso_err *codes;
    iso_error *errors; /* count */
    atomic_size_t done;
    atomic_bool has_failed;
} run;

static void one(void *ctx, size_t position, int worker)
{
    run *r = ctx;
    const iso_jobs *j = r->jobs;
    size_t i = r->order[position];
    if (atomic_load(&r->has_failed))
        return;
    if (j->stop && *j->stop) {
        r->codes[i] = iso_fail(&r->errors[i], ISO_ERR_INTERRUPTED, "stopped");
        atomic_store(&r->has_failed, true);
        return;
    }
    iso_arena_reset(&r->arenas[worker]);
    r->codes[i] = j->run(j->ctx, i, &r->arenas[worker], &r->errors[i]);
    if (r->codes[i])
        atomic_store(&r->has_failed, true);
    size_t done = atomic_fetch_add(&r->done, 1) + 1;
    if (j->progress && worker == 0)
        j->progress(j->progress_ctx, done, j->count);
}

/* One block that lasts for all jobs of a worker, on huge pages where the system has them: page
 * faults cost a tenth of a merge of 768x768 otherwise. Nothing is touched here; failure is fine. */
static void reserve(iso_arena *a, size_t bytes)
{
    enum { WORTH_IT = 1 << 20, PAGE = 1 << 21 };
    if (bytes < WORTH_IT)
        return;
    char *block = iso_arena_alloc(a, bytes, 1);
    if (!block)
        return;
    uintptr_t first = ((uintptr_t)block + PAGE - 1) / PAGE * PAGE, end = (uintptr_t)block + bytes;
    if (end > first + PAGE)
        (void)madvise((void *)first, (end - first) / PAGE * PAGE, MADV_HUGEPAGE);
    iso_arena_reset(a);
}

/* Dearest first, ties in index order: insertion into a heap would save nothing at these counts. */
static void sort_by_cost(const double *costs, size_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        size_t k = i;
        for (; costs && k > 0 && costs[order[k - 1]] < costs[i]; k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
}

iso_err iso_jobs_run(const iso_jobs *jobs, iso_error *e)
{
    iso_blas_serial();
    size_t workers = (size_t)iso_threads();
    run r = {.jobs = jobs};
    r.order = iso_calloc(jobs->count, sizeof *r.order);
    r.arenas = iso_calloc(workers, sizeof *r.arenas);
    r.codes = iso_calloc(jobs->count, sizeof *r.codes);
    r.errors = iso_calloc(jobs->count, sizeof *r.errors);
    iso_err err = ISO_OK;
    if (!r.order || !r.arenas || !r.codes || !r.errors) {
        err = iso_nomem(e, jobs->count * sizeof *r.errors);
        goto done;
    }
    for (size_t w = 0; w < workers && w < jobs->count; w++)
        reserve(&r.arenas[w], jobs->scratch_bytes);
    sort_by_cost(jobs->costs, r.order, jobs->count);
    iso_parallel_for(jobs->count, 1, one, &r);
    for (size_t i = 0; i < jobs->count && !err; i++) {
        err = r.codes[i];
        if (err && e)
            *e = r.errors[i];
    }
done:
    for (size_t w = 0; r.arenas && w < workers; w++)
        iso_arena_free(&r.arenas[w]);
    free(r.order);
    free(r.arenas);
    free(r.codes);
    free(r.errors);
    return err;
}
