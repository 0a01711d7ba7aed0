/* What a rule inside a task does to the isotropic merge across tasks: the study of docs/MERGING.md,
 * "Rules within a task". Four tasks of rank 8 with a spectrum of 20 to 1, five sites each, one bad
 * site in the first task: it adds a rank-one direction of size eps, or sends -5 times its update.
 * Prints the table; asserts the order of rules, not the figures. */
#include "merge/linalg/linalg.h"
#include "tests/merge/adapters.h"

enum { SIDE = 96, RANK = 8, TASKS = 4, SITES = 5, SEEDS = 3 };

typedef struct {
    float A[(RANK + 1) * SIDE], B[SIDE * (RANK + 1)];
} factors;

static void normalise(double *x, size_t n, double to)
{
    double norm = iso_norm(x, n);
    for (size_t i = 0; i < n; i++)
        x[i] *= to / norm;
}

/* Rows with norms 1 .. 1/20 on the B side: near orthogonal at this size, Frobenius norm about 1. */
static void task_of(uint64_t seed, size_t task, double *A, double *B)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, task);
    double total = 0;
    for (size_t k = 0; k < RANK; k++)
        total += pow(20, -2.0 * (double)k / (RANK - 1));
    for (size_t k = 0; k < RANK; k++) {
        for (size_t i = 0; i < SIDE; i++) {
            A[k * SIDE + i] = iso_rng_normal(&r);
            B[k * SIDE + i] = iso_rng_normal(&r);
        }
        normalise(A + k * SIDE, SIDE, 1);
        normalise(B + k * SIDE, SIDE, pow(20, -(double)k / (RANK - 1)) / sqrt(total));
    }
}

/* A site's update: the task's factors with a third of noise; eps > 0 plants u v' in the last row.
 */
static void site_of(uint64_t seed, size_t task, size_t site, const double *A, const double *B,
                    double eps, const double *u, const double *v, factors *f)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 1000 + 10 * task + site);
    for (size_t k = 0; k <= RANK; k++) {
        double a = k < RANK ? 0.3 / sqrt(SIDE) : 0;
        double b = k < RANK ? a * iso_norm(B + k * SIDE, SIDE) : 0;
        for (size_t i = 0; i < SIDE; i++) {
            double own = k < RANK ? A[k * SIDE + i] : v[i];
            f->A[k * SIDE + i] = (float)(own + a * iso_rng_normal(&r));
            own = k < RANK ? B[k * SIDE + i] : eps * u[i];
            f->B[i * (RANK + 1) + k] = (float)(own + b * iso_rng_normal(&r));
        }
    }
}

typedef struct {
    double planted, cosine; /* u' D v; mean cosine of the merge with the true tasks */
    double attacked;        /* cosine with the task that has the bad site */
} outcome;

static double cosine_of(const double *x, const double *y)
{
    return iso_dot(x, y, SIDE * SIDE) / iso_norm(x, SIDE * SIDE) / iso_norm(y, SIDE * SIDE);
}

static outcome run_one(uint64_t seed, const iso_method *rule, const char *method, double eps,
                       double bad_scale)
{
    static factors f[TASKS][SITES];
    static double A[RANK * SIDE], B[RANK * SIDE], truth[TASKS][SIDE * SIDE];
    double u[SIDE], v[SIDE];
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 999);
    iso_merged_lora tasks[TASKS], merged;
    iso_lora_input in[TASKS];
    outcome o = {0};
    for (size_t i = 0; i < SIDE; i++) {
        u[i] = iso_rng_normal(&r);
        v[i] = iso_rng_normal(&r);
    }
    normalise(u, SIDE, 1);
    normalise(v, SIDE, 1);
    for (size_t t = 0; t < TASKS; t++) {
        iso_lora_layer layers[SITES];
        iso_lora_input sites[SITES];
        task_of(seed, t, A, B);
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, SIDE, SIDE, RANK, 1, B, SIDE, A, SIDE, 0, truth[t],
                    SIDE);
        for (size_t s = 0; s < SITES; s++) {
            bool is_bad = t == 0 && s == 0;
            site_of(seed, t, s, A, B, is_bad ? eps : 0, u, v, &f[t][s]);
            layers[s] = (iso_lora_layer){(char *)(uintptr_t) "q", SIDE,      SIDE,     RANK + 1,
                                         is_bad ? bad_scale : 1,  f[t][s].A, f[t][s].B};
            sites[s] = (iso_lora_input){"site", &layers[s], 1};
        }
        assert_int_equal(
            iso_robust_aggregate_lora(sites, SITES, rule, NULL, NULL, RANK, &tasks[t], NULL),
            ISO_OK);
        in[t] = (iso_lora_input){"task", tasks[t].layers, 1};
    }
    iso_merge_options options = options_with(method, "");
    assert_int_equal(iso_merge_lora(in, TASKS, &options, &merged, NULL), ISO_OK);
    double *D = product_of_layer(&merged.layers[0]);
    for (size_t i = 0; i < SIDE; i++)
        o.planted += u[i] * iso_dot(D + i * SIDE, v, SIDE);
    for (size_t t = 0; t < TASKS; t++)
        o.cosine += cosine_of(D, truth[t]) / TASKS;
    o.attacked = cosine_of(D, truth[0]);
    free(D);
    iso_merged_lora_free(&merged);
    for (size_t t = 0; t < TASKS; t++)
        iso_merged_lora_free(&tasks[t]);
    return o;
}

static outcome mean_outcome(const iso_method *rule, const char *method, double eps, double scale)
{
    outcome sum = {0};
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        outcome o = run_one(seed, rule, method, eps, scale);
        sum.planted += fabs(o.planted) / SEEDS;
        sum.cosine += o.cosine / SEEDS;
        sum.attacked += o.attacked / SEEDS;
    }
    return sum;
}

static void rules_keep_a_bad_site_out_of_the_isotropic_merge(void **state)
{
    (void)state;
    static const char *const methods[] = {"iso_c", "iso_cts"};
    static const double sizes[] = {0.1, 0.3, 1, 3};
    for (int m = 0; m < 2; m++) {
        outcome mean_flip = {0}, mean_planted = {0};
        printf("| %s, rule | clean | planted 0.1 | 0.3 | 1 | 3 | attacked task under -5 x |\n",
               methods[m]);
        for (size_t c = 0; iso_robust_rules[c]; c++) {
            const iso_method *rule = iso_robust_rules[c];
            outcome clean = mean_outcome(rule, methods[m], 0, 1), planted[4];
            printf("| %s | %.3f", rule->name, clean.cosine);
            for (size_t i = 0; i < 4; i++) {
                planted[i] = mean_outcome(rule, methods[m], sizes[i], 1);
                printf(" | %.3f", planted[i].planted);
            }
            outcome flip = mean_outcome(rule, methods[m], 0, -5);
            printf(" | %.3f |\n", flip.attacked);
            if (c == 0) {
                mean_flip = flip;
                mean_planted = planted[3];
                continue;
            }
            assert_true(flip.attacked > mean_flip.attacked + 0.1);
            /* only a rule that leaves the update out keeps a large direction out: what remains of
             * it in a mean, however little, isotropy lifts again */
            if (strcmp(rule->name, "multi_krum") == 0)
                assert_true(planted[3].planted < 0.5 * mean_planted.planted);
        }
    }
}

int main(void)
{
    iso_set_threads(1);
    iso_blas_serial();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rules_keep_a_bad_site_out_of_the_isotropic_merge)};
    return cmocka_run_group_tests_name("rules and isotropic merging", tests, NULL, NULL);
}
