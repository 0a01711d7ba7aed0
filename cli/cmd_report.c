/* isofed report: what a federation achieved, as a table, summary.json and one page. */
#include "cli/command.h"
#include "cli/report_page.h"
#include "cli/table.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/parallel.h"
#include "core/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *dir, *summary, *output;
    iso_arg_list clients;
    double seconds;
    bool json, quiet;
} options;

static const iso_arg_row rows[] = {
    {"dir", 'd', ISO_ARG_STRING, offsetof(options, dir), "DIR",
     "the coordinator's folder (default: $ISOFED_DIR, else /var/lib/isofed)", 0, 0, NULL},
    {"client", 'c', ISO_ARG_LIST, offsetof(options, clients), "DIR",
     "folder of a client on this machine; may be repeated", 0, 0, NULL},
    {"output", 'o', ISO_ARG_STRING, offsetof(options, output), "FILE", "write the page", 0, 0,
     NULL},
    {"summary", 0, ISO_ARG_STRING, offsetof(options, summary), "FILE", "write the numbers as JSON",
     0, 0, NULL},
    {"seconds", 0, ISO_ARG_DOUBLE, offsetof(options, seconds), "S",
     "wall time of the whole, for page and summary", 0, 1e9, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "print the numbers as JSON", 0, 0,
     NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "print nothing", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed report --dir DIR [--client DIR]... [-o page.html] [--summary FILE]",
    .summary = "What a federation achieved: accuracy, methods, forgetting, bytes, time.",
    .example = "isofed report --dir centre --client plant-1 --client plant-2 -o report.html",
    .rows = rows,
};

static void pair(double delivered, double refit)
{
    if (isnan(refit))
        printf("  %15s", "-");
    else
        printf("  %6.1f / %6.1f", 100 * delivered, 100 * refit);
}

static void print_scores(const report_data *d)
{
    printf("accuracy on %s images, %%, as delivered / with the head refitted at the site\n\n",
           d->is_test ? "test" : "validation");
    printf("%-14s  %6s  %15s  %15s", "task", "chance", "probe", "own");
    for (size_t m = 0; m < d->method_count; m++)
        printf("  %15.15s", d->methods[m].name);
    printf("\n");
    for (size_t t = 0; t < d->task_count; t++) {
        const report_task *x = &d->tasks[t];
        printf("%-14s  %6.1f", x->name, 100 * x->chance);
        pair(x->probe_delivered, x->probe);
        pair(x->own_delivered, x->own);
        for (size_t m = 0; m < d->method_count; m++)
            pair(d->methods[m].delivered->delivered[t], d->methods[m].refitted->refit[t]);
        printf("\n");
    }
}

static void print_methods(const report_data *d)
{
    printf("\n%-16s  %15s  %15s  %15s\n", "method", "alpha", "normalised, %", "gain kept, %");
    for (size_t m = 0; m < d->method_count; m++) {
        const report_candidate *raw = d->methods[m].delivered, *refit = d->methods[m].refitted;
        printf("%-16s  %6.3g / %6.3g", d->methods[m].name, raw->alpha, refit->alpha);
        pair(raw->delivered_mean.normalised, refit->refitted_mean.normalised);
        if (isnan(refit->refitted_mean.gain_kept))
            printf("  no own gain >= 2\n");
        else {
            pair(raw->delivered_mean.gain_kept, refit->refitted_mean.gain_kept);
            printf("\n");
        }
    }
    if (!isnan(d->forgetting))
        printf("\nforgetting after the last wave: %.2f points (backward transfer %+.2f)\n",
               100 * d->forgetting, 100 * d->backward_transfer);
}

static void print_sites(const report_data *d)
{
    char sent[32], images[32];
    printf("\n%-16s  %12s  %12s  %8s\n", "site", "sent", "its images", "release");
    for (size_t i = 0; i < d->site_count; i++) {
        iso_bytes_text(sent, sizeof sent, d->sites[i].sent_bytes);
        iso_bytes_text(images, sizeof images, d->sites[i].image_bytes);
        printf("%-16s  %12s  %12s  %8llu\n", d->sites[i].name, sent, images,
               (unsigned long long)d->sites[i].release);
    }
}

static void print_times(const report_data *d, double seconds)
{
    printf("\n%-16s  %9s  %9s  %9s  %9s  %9s\n", "seconds", "heads", "training", "merging",
           "scoring", "signing");
    for (size_t w = 0; w < d->wave_count; w++) {
        const report_wave *x = &d->waves[w];
        printf("wave %-11zu  %9.1f  %9.1f  %9.1f  %9.1f  %9.1f\n", w + 1,
               (x->head_ended_ms - x->head_opened_ms) / 1000, (x->closed_ms - x->opened_ms) / 1000,
               (x->merged_ms - x->closed_ms) / 1000, (x->judged_ms - x->merged_ms) / 1000,
               (x->ended_ms - x->judged_ms) / 1000);
    }
    if (seconds > 0)
        printf("%-16s  %9.0f\n", "in all", seconds);
}

static iso_err write_summary(const iso_json *summary, const char *path, iso_error *e)
{
    iso_buf text = {0};
    iso_err err = iso_json_dump(summary, ISO_JSON_PRETTY, &text, e);
    if (!err)
        err = iso_write_file(path, text.data, text.size, 0644, e);
    iso_buf_free(&text);
    return err;
}

static void print_all(const report_data *d, double seconds)
{
    print_scores(d);
    print_methods(d);
    print_sites(d);
    print_times(d, seconds);
}

static int run(int argc, char **argv)
{
    options o = {.dir = getenv("ISOFED_DIR")};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    report_data *d = NULL;
    iso_json *summary = NULL;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (err)
        return iso_cli_fail("report", err, &e);
    if (is_done)
        return 0;
    iso_set_threads(0);
    d = iso_calloc(1, sizeof *d);
    err = d ? report_gather(o.dir ? o.dir : "/var/lib/isofed", o.clients.items, o.clients.count, d,
                            &e)
            : iso_nomem(&e, sizeof *d);
    if (!err) {
        summary = report_summary(d, o.seconds);
        if (o.json)
            iso_json_print(summary);
        else if (!o.quiet)
            print_all(d, o.seconds);
    }
    if (!err && o.summary)
        err = write_summary(summary, o.summary, &e);
    if (!err && o.output)
        err = report_write_page(d, o.dir ? o.dir : "/var/lib/isofed", o.seconds, o.output, &e);
    iso_json_free(summary);
    free(d);
    return err ? iso_cli_fail("report", err, &e) : 0;
}

const iso_command iso_cmd_report = {"report", "what a federation achieved: table, JSON, page", run};
