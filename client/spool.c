#include "client/spool.h"

#include "core/fsio.h"
#include "core/wire.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static void hash_entry(iso_hasher *h, const char *split, const char *class_name, const char *file,
                       const struct stat *st)
{
    uint8_t numbers[24];
    iso_put_u64(numbers, (uint64_t)st->st_size);
    iso_put_u64(numbers + 8, (uint64_t)st->st_mtim.tv_sec);
    iso_put_u64(numbers + 16, (uint64_t)st->st_mtim.tv_nsec);
    iso_hasher_add(h, split, strlen(split) + 1);
    iso_hasher_add(h, class_name, strlen(class_name) + 1);
    iso_hasher_add(h, file, strlen(file) + 1);
    iso_hasher_add(h, numbers, sizeof numbers);
}

/* Images of one class of one split. A file whose name begins with a dot is someone's scratch. */
static iso_err scan_class(const char *folder, const char *split, const char *class_name,
                          iso_spool_state *s, iso_hasher *h, uint64_t *count, iso_error *e)
{
    iso_names files = {0};
    char *path = iso_strf("%s/%s/%s", folder, split, class_name);
    iso_err err = path ? iso_list_dir(path, &files, e) : iso_nomem(e, strlen(folder));
    *count = 0;
    for (size_t i = 0; err == ISO_OK && i < files.count; i++) {
        struct stat st;
        char *file = iso_strf("%s/%s", path, files.names[i]);
        if (!file) {
            err = iso_nomem(e, strlen(path));
            break;
        }
        if (files.names[i][0] == '.' || stat(file, &st) != 0 || !S_ISREG(st.st_mode)) {
            s->skipped++;
        } else {
            hash_entry(h, split, class_name, files.names[i], &st);
            s->bytes += (uint64_t)st.st_size;
            (*count)++;
        }
        free(file);
    }
    iso_names_free(&files);
    free(path);
    return err;
}

static bool is_folder(const char *folder, const char *split, const char *name)
{
    char *path = iso_strf("%s/%s%s%s", folder, split, name ? "/" : "", name ? name : "");
    bool is = path && iso_is_dir(path);
    free(path);
    return is;
}

/* As nn/data/sampler.h draws it: the nearest whole number, at least one of two, never all. */
static uint64_t val_of(uint64_t n, double share)
{
    if (n < 2)
        return 0;
    uint64_t v = (uint64_t)llround(share * (double)n);
    return v < 1 ? 1 : v >= n ? n - 1 : v;
}

iso_err iso_spool_scan(const char *folder, double val_share, iso_spool_state *out, iso_error *e)
{
    static const char *const splits[] = {"train", "val", "test"};
    uint64_t *const counts[] = {&out->train, &out->val, &out->test};
    iso_hasher h;
    memset(out, 0, sizeof *out);
    iso_hasher_init(&h);
    if (!is_folder(folder, "train", NULL))
        return iso_fail(e, ISO_ERR_DATA,
                        "%s: there is no folder train/ with a folder for each class", folder);
    bool has_val = is_folder(folder, "val", NULL);
    for (int k = 0; k < 3; k++) {
        iso_names classes = {0};
        if (!is_folder(folder, splits[k], NULL))
            continue;
        char *path = iso_path_join(folder, splits[k]);
        iso_err err = path ? iso_list_dir(path, &classes, e) : iso_nomem(e, strlen(folder));
        for (size_t i = 0; err == ISO_OK && i < classes.count; i++) {
            uint64_t n;
            if (classes.names[i][0] == '.' || !is_folder(folder, splits[k], classes.names[i])) {
                out->skipped++;
                continue;
            }
            err = scan_class(folder, splits[k], classes.names[i], out, &h, &n, e);
            uint64_t kept = k == 0 && !has_val ? val_of(n, val_share) : 0;
            *counts[k] += n - kept;
            out->val += kept;
            out->classes += k == 0;
        }
        iso_names_free(&classes);
        free(path);
        if (err != ISO_OK)
            return err;
    }
    out->digest = iso_hasher_end(&h);
    return ISO_OK;
}
