/* What a federation achieved, gathered from its daemons' own answers (sockets), not from logs:
 * scores that the sites reported, per task, candidate and wave (DESIGN 2: formulas). */
#ifndef ISO_CLI_REPORT_DATA_H
#define ISO_CLI_REPORT_DATA_H

#include "core/json.h"

enum {
    REPORT_TASKS_MAX = 32,
    REPORT_METHODS_MAX = 8,
    REPORT_WAVES_MAX = 16,
    REPORT_SITES_MAX = 64,
    REPORT_CANDIDATES_MAX = 32,
    REPORT_NAME_BYTES = 65
};

/* NAN where nothing is known. Scores are shares, 0..1. */
typedef struct {
    char name[REPORT_NAME_BYTES];
    double chance;
    /* Means over the task's sites, on test images where they reported them, else validation.
     * Compared like with like: refitted merges with the strongest head on the frozen features and
     * the own adapter with its head refitted; delivered ones with the task's head, never refitted.
     */
    double probe, own;
    double probe_delivered, own_delivered;
    double own_val; /* refitted, validation: what alpha is chosen by */
    size_t classes;
    size_t first_wave; /* in which it was learnt */
} report_task;

/* One candidate of one wave. */
typedef struct {
    char method[REPORT_NAME_BYTES];
    double alpha;
    bool is_chosen;                                              /* became the release */
    double delivered[REPORT_TASKS_MAX], refit[REPORT_TASKS_MAX]; /* as task.own: test or val */
    double refit_val[REPORT_TASKS_MAX], delivered_val[REPORT_TASKS_MAX];
    /* Means over tasks: what the sites' validation images say (alpha is chosen by it), and what
     * their test images say. */
    struct {
        double normalised_val, normalised, gain_kept;
    } refitted_mean, delivered_mean;
} report_candidate;

typedef struct {
    uint64_t round, release;
    report_candidate candidates[REPORT_CANDIDATES_MAX];
    size_t candidate_count;
    double opened_ms, closed_ms, merged_ms, judged_ms, ended_ms;
    double head_opened_ms, head_ended_ms; /* of the head round before it; 0: none */
} report_wave;

/* A method at the alphas that the sites' validation images chose among the last wave's candidates:
 * one for those who refit the head, one for those who take the merge as delivered. Gains are over
 * tasks whose own gain is at least 2 points. */
typedef struct {
    char name[REPORT_NAME_BYTES];
    const report_candidate *refitted, *delivered;
    size_t gain_tasks; /* with a gain of 2 points, heads refitted */
} report_method;

typedef struct {
    char name[REPORT_NAME_BYTES];
    char dir[512];
    double sent_bytes, received_bytes, image_bytes, images;
    uint64_t release;
} report_site;

typedef struct {
    report_task tasks[REPORT_TASKS_MAX];
    size_t task_count;
    report_wave waves[REPORT_WAVES_MAX];
    size_t wave_count;
    report_method methods[REPORT_METHODS_MAX];
    size_t method_count;
    report_site sites[REPORT_SITES_MAX];
    size_t site_count;
    double forgetting,
        backward_transfer; /* of the released candidates, heads refitted; NAN: one wave */
    bool is_test;          /* scores are of test images */
    uint64_t releases[REPORT_WAVES_MAX];
    size_t release_count;
} report_data;

/* Asks the coordinator in `dir` and the clients in client_dirs. `out` is large: allocate it. */
iso_err report_gather(const char *dir, const char *const *client_dirs, size_t clients,
                      report_data *out, iso_error *e) ISO_MUST_CHECK;

/* R[wave][task] of the released candidates, heads refitted; NAN where a task was not in yet. */
double report_matrix(const report_data *d, size_t wave, size_t task);
/* Index by name, or -1. */
int report_task_index(const report_data *d, const char *name);

/* summary.json of the demo. */
iso_json *report_summary(const report_data *d, double seconds);

#endif
