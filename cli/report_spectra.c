/* Singular values of the task adapters and of the release, layer by layer: isotropic merging makes
 * the second flat (specs/merging.md 3). */
#include "cli/admin_client.h"
#include "cli/report_page.h"
#include "coordinator/worker.h"
#include "merge/guard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLOTS = 3, ADAPTER_MAX_BYTES = 256 << 20 };

/* An adapter of the report: a task's, or the release's. */
typedef struct {
    char label[REPORT_NAME_BYTES];
    iso_peft peft;
    bool is_open;
} shown;

static iso_err open_files(shown *s, const iso_buf *config, const iso_buf *tensors, iso_error *e)
{
    iso_err err = iso_peft_parse(&s->peft, config->data, config->size, tensors->data, tensors->size,
                                 true, s->label, e);
    s->is_open = !err;
    return err;
}

static bool read_digest(const iso_json *o, const char *key, iso_digest *d)
{
    const char *hex = iso_json_str(iso_json_key(o, key));
    return hex && iso_unhex(d->b, sizeof d->b, hex);
}

/* A task's adapter: the container that the worker stored. */
static iso_err open_task(shown *s, const char *dir, const iso_json *task, iso_error *e)
{
    iso_buf blob = {0};
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    iso_digest d;
    iso_code code;
    size_t n = 0;
    const char *name = iso_json_str(iso_json_key(task, "name"));
    snprintf(s->label, sizeof s->label, "%s", name ? name : "?");
    if (!read_digest(task, "adapter", &d))
        return ISO_OK;
    iso_err err = iso_worker_get_blob(dir, &d, ADAPTER_MAX_BYTES, &blob, e);
    if (!err)
        err = iso_container_unpack(blob.data, blob.size, files, &n, &code, e);
    const iso_container_file *config =
        err ? NULL : iso_container_find(files, n, "adapter_config.json");
    const iso_container_file *tensors =
        err ? NULL : iso_container_find(files, n, "adapter_model.safetensors");
    if (config && tensors) {
        err = iso_peft_parse(&s->peft, config->data, config->size, tensors->data, tensors->size,
                             true, s->label, e);
        s->is_open = !err;
    }
    iso_buf_free(&blob);
    return err;
}

static iso_err open_release(shown *s, const char *dir, uint64_t number, iso_error *e)
{
    iso_json *args = iso_json_object(), *reply = NULL;
    const iso_json *release = NULL;
    iso_buf parts[2] = {{0}, {0}};
    snprintf(s->label, sizeof s->label, "release %llu", (unsigned long long)number);
    iso_json_set(args, "number", iso_json_integer((int64_t)number));
    iso_err err = iso_admin_call(dir, "releases.show", args, &reply, &release, e);
    const iso_json *files = err ? NULL : iso_json_key(release, "files");
    for (size_t i = 0; i < iso_json_count(files) && !err; i++) {
        const char *path = iso_json_str(iso_json_key(iso_json_at(files, i), "path"));
        iso_digest d;
        const int part = !path                                                ? -1
                         : !strcmp(path, "adapter/adapter_config.json")       ? 0
                         : !strcmp(path, "adapter/adapter_model.safetensors") ? 1
                                                                              : -1;
        if (part >= 0 && read_digest(iso_json_at(files, i), "digest", &d))
            err = iso_worker_get_blob(dir, &d, ADAPTER_MAX_BYTES, &parts[part], e);
    }
    if (!err && parts[0].size && parts[1].size)
        err = open_files(s, &parts[0], &parts[1], e);
    iso_buf_free(&parts[0]);
    iso_buf_free(&parts[1]);
    iso_json_free(reply);
    return err;
}

static iso_err plot_layer(iso_report *r, const shown *all, size_t n, const char *module,
                          iso_error *e)
{
    iso_series series[REPORT_TASKS_MAX + 1];
    double *values[REPORT_TASKS_MAX + 1] = {NULL};
    size_t lines = 0;
    iso_arena scratch = {0};
    iso_buf svg = {0};
    iso_err err = ISO_OK;
    for (size_t i = 0; i < n && !err; i++) {
        const iso_lora_layer *l = all[i].is_open ? iso_peft_find(&all[i].peft, module) : NULL;
        if (!l)
            continue;
        size_t count = 0;
        values[lines] = iso_calloc(l->rank, sizeof(double));
        if (!values[lines]) {
            err = iso_nomem(e, l->rank * sizeof(double));
            break;
        }
        err = iso_lora_spectrum(l, values[lines], &count, &scratch, e);
        series[lines] = (iso_series){.label = all[i].label, .y = values[lines], .n = count};
        lines++;
        iso_arena_reset(&scratch);
    }
    iso_plot plot = {.title = module, .x_label = "direction", .y_label = "singular value"};
    if (!err && lines)
        err = iso_svg_lines(&svg, &plot, series, lines, e);
    if (!err && lines)
        err = iso_report_svg(r, &svg, NULL, e);
    for (size_t i = 0; i < lines; i++)
        free(values[i]);
    iso_arena_free(&scratch);
    iso_buf_free(&svg);
    return err;
}

iso_err report_add_spectra(iso_report *r, const report_data *d, const char *dir, iso_error *e)
{
    shown *all = iso_calloc(REPORT_TASKS_MAX + 1, sizeof *all);
    iso_json *reply = NULL;
    const iso_json *result = NULL;
    iso_error why = {0};
    size_t n = 0;
    if (!all)
        return iso_nomem(e, (REPORT_TASKS_MAX + 1) * sizeof *all);
    iso_err err = iso_admin_call(dir, "tasks.list", NULL, &reply, &result, &why);
    const iso_json *tasks = err ? NULL : iso_json_key(result, "tasks");
    for (size_t i = 0; i < iso_json_count(tasks) && n < REPORT_TASKS_MAX && !err; i++)
        err = open_task(&all[n++], dir, iso_json_at(tasks, i), &why);
    const shown *release = &all[n];
    if (!err && d->release_count)
        err = open_release(&all[n++], dir, d->releases[d->release_count - 1], &why);
    if (err) {
        err = iso_report_text(r, e, "The adapters could not be read here: %s.", why.text);
    } else if (release->is_open) {
        err =
            iso_report_text(r, e,
                            "Each line is one adapter: a task's own falls off quickly, the merged "
                            "one is flat where the method is isotropic. Three of %zu layers.",
                            release->peft.count);
        for (size_t k = 0; k < PLOTS && !err; k++) {
            size_t at = release->peft.count > 1 ? k * (release->peft.count - 1) / (PLOTS - 1) : 0;
            err = plot_layer(r, all, n, release->peft.layers[at].module, e);
        }
    }
    for (size_t i = 0; i < n; i++)
        if (all[i].is_open)
            iso_peft_close(&all[i].peft);
    free(all);
    iso_json_free(reply);
    return err;
}
