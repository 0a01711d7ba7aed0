/* Core Space: every LoRA adapter as a small core in shared bases; the cores are merged by another
 * method and expanded again.
 * Panariello et al. 2025, arXiv 2509.17786 (specs/merging.md 4).
 *
 *   Ub, Ua  left singular vectors of the stacked B (scaled) and right ones of the stacked A
 *   C_t = Ub' (s_t B_t) (A_t Ua);  D = Ub * inner(C_1 .. C_T) * Ua'
 *
 * Lossless: every D_t lies in the span of the bases (directions below 1e-7 of the largest singular
 * value are left out). Methods that do not depend on the basis (Iso-C, Iso-CTS, TSV-M, sums) give
 * what they give without it; entrywise ones see (R, R) in place of (m, n) entries. */
#include "merge/method/shared.h"

#include <string.h>

extern const iso_method iso_method_ties, iso_method_consensus_ta, iso_method_tsv_m,
    iso_method_iso_c, iso_method_iso_cts, iso_method_task_arithmetic;

enum { INNER, ALPHA, DENSITY, LAMBDA, K, COMMON_FRACTION, BETA };

static const char *const inner_words[] = {"ties",    "consensus_ta",    "tsv_m", "iso_c",
                                          "iso_cts", "task_arithmetic", NULL};

static const iso_method *inner_of(const iso_method_args *a)
{
    const iso_method *const methods[] = {&iso_method_ties,    &iso_method_consensus_ta,
                                         &iso_method_tsv_m,   &iso_method_iso_c,
                                         &iso_method_iso_cts, &iso_method_task_arithmetic};
    return methods[(size_t)a->value[INNER]];
}

static const iso_method_param params[] = {
    [INNER] = {"inner", "what merges the cores", 0, 0, 5, true, inner_words},
    [ALPHA] = {"alpha", "of the inner method", 1.0, -100, 100, false, NULL},
    [DENSITY] = {"density", "of TIES", 0.2, 0, 1, false, NULL},
    [LAMBDA] = {"lambda", "of Consensus TA", 0.4, 0, 10, false, NULL},
    [K] = {"k", "of Consensus TA", 2, 0, 256, true, NULL},
    [COMMON_FRACTION] = {"common_fraction", "of Iso-CTS", 0.8, 0, 1, false, NULL},
    [BETA] = {"beta", "of Iso-C and Iso-CTS", 1.0, 0, 1, false, NULL},
    {.name = NULL},
};

/* The inner method's arguments: parameters by name, the rest as it is. */
static iso_method_args inner_args(const iso_method_args *a, const void *inner_survey)
{
    const iso_method *inner = inner_of(a);
    iso_method_args out = *a;
    for (size_t i = 0; inner->params[i].name; i++) {
        out.value[i] = inner->params[i].otherwise;
        for (size_t j = 0; params[j].name; j++)
            if (strcmp(params[j].name, inner->params[i].name) == 0)
                out.value[i] = a->value[j];
    }
    out.survey = inner_survey;
    return out;
}

typedef struct {
    iso_shared b, a;
    iso_deltas deltas; /* the cores, (b.k, a.k) each */
} cores;

static iso_err cores_make(const iso_deltas *d, cores *c, iso_arena *scratch, iso_error *e)
{
    size_t R, *first;
    double *Bt, *A;
    if (!d->factors)
        return iso_fail(e, ISO_ERR_USAGE,
                        "core_space merges LoRA factors only, not whole matrices");
    iso_err err = iso_stack_factors(d, &R, &first, &Bt, &A, scratch, e);
    if (!err)
        err = iso_shared_make(R, d->m, Bt, d->T, first, NULL, &c->b, scratch, e);
    if (!err)
        err = iso_shared_make(R, d->n, A, d->T, first, NULL, &c->a, scratch, e);
    if (err)
        return err;
    size_t kb = c->b.k, ka = c->a.k;
    double *all = iso_arena_calloc(scratch, d->T * kb * ka + 1, sizeof *all);
    iso_tensor *views = iso_arena_calloc(scratch, d->T + 1, sizeof *views);
    if (!all || !views)
        return iso_nomem(e, d->T * kb * ka * sizeof *all);
    for (size_t t = 0; t < d->T; t++) {
        double *C = all + t * kb * ka;
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, kb, ka, first[t + 1] - first[t], 1.0,
                    c->b.coords + first[t] * kb, kb, c->a.coords + first[t] * ka, ka, 0.0, C, ka);
        views[t] = (iso_tensor){ISO_F64, 2, {kb, ka}, C};
    }
    c->deltas = (iso_deltas){.T = d->T,
                             .m = kb,
                             .n = ka,
                             .views = views,
                             .rank_tol = d->rank_tol,
                             .full_q = d->full_q,
                             .noise = d->noise,
                             .name = d->name,
                             .index = d->index};
    return ISO_OK;
}

/* ---- survey: the inner method's, of the cores ---- */
typedef struct {
    const iso_survey *survey; /* NULL: the inner method has none */
    void *inner;
} survey_state;

static iso_err begin(const iso_method_args *a, size_t T, size_t tensors, void **state,
                     iso_arena *arena, iso_error *e)
{
    iso_method_args inner = inner_args(a, NULL);
    survey_state *s = iso_arena_calloc(arena, 1, sizeof *s);
    if (!s)
        return iso_nomem(e, sizeof *s);
    *state = s;
    s->survey = inner_of(a)->survey;
    return s->survey ? s->survey->begin(&inner, T, tensors, &s->inner, arena, e) : ISO_OK;
}

static iso_err scan(void *state, const iso_method_args *a, const iso_deltas *d, iso_arena *scratch,
                    iso_error *e)
{
    cores c;
    const survey_state *s = state;
    if (!s->survey)
        return ISO_OK;
    iso_method_args inner = inner_args(a, NULL);
    iso_err err = cores_make(d, &c, scratch, e);
    return err ? err : s->survey->scan(s->inner, &inner, &c.deltas, scratch, e);
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    const survey_state *s = state;
    *is_done = true;
    return s->survey ? s->survey->end_pass(s->inner, is_done, e) : ISO_OK;
}

static iso_err merge_entries(const iso_method *inner, const iso_method_args *a, const iso_deltas *d,
                             iso_product *out, iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    double *D = iso_arena_alloc(scratch, d->m * d->n + 1, sizeof *D);
    if (!D)
        return iso_nomem(e, d->m * d->n * sizeof *D);
    iso_err err;
    if (inner->coefficients) {
        double noise, *c = iso_arena_alloc(scratch, d->T + 1, sizeof *c);
        if (!c)
            return iso_nomem(e, d->T * sizeof *c);
        iso_deltas weighted = *d;
        inner->coefficients(a, NULL, d->T, c);
        weighted.weights = c;
        err = iso_delta_sum(&weighted, D, NULL, &noise, scratch, e);
    } else {
        err = iso_entries_merge(inner, a, d, D, scratch, e);
    }
    strcpy(r->route, inner->name);
    if (!err)
        err = iso_product_of(d->m, d->n, D, d->rank_tol, d->noise, 0, out, NULL, scratch, e);
    if (!err)
        r->rank = r->kept = out->c;
    return err;
}

static iso_err core(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    cores c;
    const iso_method *inner = inner_of(a);
    const survey_state *found = a->survey;
    iso_method_args args = inner_args(a, found ? found->inner : NULL);
    iso_err err = cores_make(d, &c, scratch, e);
    if (!err)
        err = inner->core ? inner->core(&c.deltas, &args, out, r, scratch, e)
                          : merge_entries(inner, &args, &c.deltas, out, r, scratch, e);
    if (err)
        return err;
    double *left = iso_arena_alloc(scratch, out->c * d->m + 1, sizeof *left),
           *right = iso_arena_alloc(scratch, out->c * d->n + 1, sizeof *right);
    if (!left || !right)
        return iso_nomem(e, out->c * (d->m + d->n) * sizeof *left);
    err = iso_shared_expand(&c.b, out->c, out->left, left, scratch, e);
    if (!err)
        err = iso_shared_expand(&c.a, out->c, out->right, right, scratch, e);
    out->left = left;
    out->right = right;
    return err;
}

static const iso_survey survey = {begin, scan, end_pass};

const iso_method iso_method_core_space = {
    .name = "core_space",
    .help = "merges small cores in shared bases by another method; LoRA only",
    .source = "Panariello et al. 2025, arXiv 2509.17786, Core Space",
    .needs = ISO_NEEDS_FACTORS,
    .params = params,
    .has_convention = true,
    .wants_factors = true,
    .survey = &survey,
    .core = core,
};
