/* A few test images of every site with what the installed release says about them. */
#include "cli/report_page.h"
#include "cli/vision.h"
#include "client/config.h"
#include "core/fsio.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PICTURES_A_TASK = 6 };

static iso_err add_task(iso_report *r, const iso_vision *v, const iso_client_data *data,
                        const char *release, const report_site *site, iso_error *e)
{
    iso_image_set set = {0};
    iso_linear_head head = {0};
    float *features = NULL;
    int *labels = NULL;
    char *head_path = iso_strf("%s/heads/%s.safetensors", release, data->task);
    iso_err err = head_path ? iso_vision_head(v, head_path, &head, e) : iso_nomem(e, 256);
    iso_image_options o = {.folder = data->folder,
                           .split = "test",
                           .pre = &v->pre,
                           .limit_per_class = 2,
                           .class_names = head.class_names,
                           .class_count = head.classes};
    if (!err)
        err = iso_images_load(&set, &o, e);
    if (!err)
        err = iso_vision_features(v, &set, true, &features, &labels, e);
    if (!err)
        err = iso_report_text(r, e, "%s at %s", data->task, site->name);
    for (size_t i = 0; i < set.count && i < PICTURES_A_TASK && !err; i++) {
        /* Every other image, so that most classes are seen. */
        size_t at = i * set.count / (set.count < PICTURES_A_TASK ? set.count : PICTURES_A_TASK);
        int said = 0;
        char caption[256];
        iso_linear_predict(&head, features + at * head.dim, 1, &said);
        snprintf(caption, sizeof caption, "%s %s%s%s", said == labels[at] ? "✓" : "✗",
                 head.class_names[said], said == labels[at] ? "" : ", is ",
                 said == labels[at] ? "" : head.class_names[labels[at]]);
        err = iso_report_image(r, set.pixels + at * (size_t)set.height * (size_t)set.width * 3,
                               set.width, set.height, caption, e);
    }
    iso_images_free(&set);
    iso_linear_free(&head);
    free(features);
    free(labels);
    free(head_path);
    return err;
}

static iso_err add_site(iso_report *r, const report_site *s, iso_error *e)
{
    iso_arena arena = {0};
    iso_client_config config;
    iso_vision v = {0};
    char *release = iso_strf("%s/releases/%llu", s->dir, (unsigned long long)s->release);
    char *adapter = release ? iso_path_join(release, "adapter") : NULL;
    iso_err err = adapter ? iso_client_config_read(s->dir, &config, &arena, e) : iso_nomem(e, 256);
    if (!err)
        err = iso_vision_open(&v, "report", config.backbone, e);
    if (!err)
        err = iso_vision_adapt(&v, adapter, e);
    for (size_t i = 0; i < config.data_count && !err; i++)
        err = add_task(r, &v, &config.data[i], release, s, e);
    iso_vision_close(&v);
    iso_arena_free(&arena);
    free(release);
    free(adapter);
    return err;
}

iso_err report_add_pictures(iso_report *r, const report_data *d, const char *dir, iso_error *e)
{
    (void)dir;
    for (size_t i = 0; i < d->site_count; i++) {
        iso_error why = {0};
        if (!d->sites[i].release)
            continue;
        if (add_site(r, &d->sites[i], &why)) {
            iso_err err = iso_report_text(r, e, "%s: no pictures: %s.", d->sites[i].name, why.text);
            if (err)
                return err;
        }
    }
    return ISO_OK;
}
