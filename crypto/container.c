#include "crypto/container.h"
#include "core/fsio.h"

#include <stdlib.h>
#include <string.h>

/* Sorted bytewise; the container holds its files in this order. */
static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors",
                                    "head.safetensors", "metadata.json"};
enum { NAMES = sizeof names / sizeof names[0] };

/* Index of the name of `chars` characters, or NAMES. */
static size_t find_name(const char *name, size_t chars)
{
    for (size_t i = 0; i < NAMES; i++)
        if (strlen(names[i]) == chars && memcmp(names[i], name, chars) == 0)
            return i;
    return NAMES;
}

static iso_err append_file(const char *name, const uint8_t *data, size_t size, iso_buf *out,
                           iso_error *e)
{
    uint8_t field[8];
    size_t chars = strlen(name);
    iso_put_u16(field, (uint16_t)chars);
    iso_err err = iso_buf_append(out, field, 2, e);
    if (!err)
        err = iso_buf_append(out, name, chars, e);
    iso_put_u64(field, size);
    if (!err)
        err = iso_buf_append(out, field, 8, e);
    if (!err)
        err = iso_buf_append(out, data, size, e);
    return err;
}

iso_err iso_container_pack(const iso_container_file files[], size_t count, iso_buf *out,
                           iso_error *e)
{
    const iso_container_file *by_name[NAMES] = {0};
    uint8_t field[4];
    size_t start = out->size;
    if (count == 0 || count > ISO_CONTAINER_FILES_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "a container holds 1 to %d files, not %zu",
                        ISO_CONTAINER_FILES_MAX, count);
    for (size_t i = 0; i < count; i++) {
        size_t k = find_name(files[i].name, strlen(files[i].name));
        if (k == NAMES)
            return iso_fail(e, ISO_ERR_USAGE, "\"%s\" is no file of an update", files[i].name);
        if (by_name[k])
            return iso_fail(e, ISO_ERR_USAGE, "\"%s\" is there twice", files[i].name);
        by_name[k] = &files[i];
    }
    iso_put_u32(field, (uint32_t)count);
    iso_err err = iso_buf_append(out, field, 4, e);
    for (size_t k = 0; k < NAMES && !err; k++)
        if (by_name[k])
            err = append_file(names[k], by_name[k]->data, by_name[k]->size, out, e);
    if (err)
        out->size = start;
    return err;
}

/* Why the container is refused, or NULL; fills files and count. */
static const char *unpack(const uint8_t *p, size_t size, iso_container_file *files, size_t *count)
{
    if (size < 4)
        return "is shorter than its count";
    uint32_t n = iso_get_u32(p);
    size_t at = 4, next_name = 0;
    if (n == 0 || n > ISO_CONTAINER_FILES_MAX)
        return "does not hold 1 to 8 files";
    for (uint32_t i = 0; i < n; i++) {
        if (size - at < 2)
            return "ends inside a name's length";
        size_t chars = iso_get_u16(p + at);
        at += 2;
        if (size - at < chars || size - at - chars < 8)
            return "ends inside a name";
        size_t k = find_name((const char *)p + at, chars);
        if (k == NAMES)
            return "holds a file of another name";
        if (k < next_name)
            return "is not sorted, or holds a name twice";
        next_name = k + 1;
        at += chars;
        uint64_t bytes = iso_get_u64(p + at);
        at += 8;
        if (bytes > size - at)
            return "ends inside a file";
        files[i] = (iso_container_file){.name = names[k], .data = p + at, .size = (size_t)bytes};
        at += (size_t)bytes;
    }
    if (at != size)
        return "has bytes after its last file";
    *count = n;
    return NULL;
}

iso_err iso_container_unpack(const void *bytes, size_t size,
                             iso_container_file files[ISO_CONTAINER_FILES_MAX], size_t *count,
                             iso_code *code, iso_error *e)
{
    *count = 0;
    const char *wrong = unpack(bytes, size, files, count);
    *code = wrong ? ISO_CODE_CONTAINER : ISO_CODE_OK;
    if (wrong)
        return iso_fail(e, ISO_ERR_DATA, "container %s", wrong);
    return ISO_OK;
}

const iso_container_file *iso_container_find(const iso_container_file files[], size_t count,
                                             const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(files[i].name, name) == 0)
            return &files[i];
    return NULL;
}

iso_err iso_container_pack_folder(const char *folder, uint64_t max_bytes, iso_buf *out,
                                  iso_error *e)
{
    iso_container_file files[NAMES];
    iso_buf data[NAMES] = {{0}};
    size_t count = 0;
    uint64_t left = max_bytes;
    iso_err err = ISO_OK;
    for (size_t k = 0; k < NAMES && !err; k++) {
        char *path = iso_path_join(folder, names[k]);
        if (!path)
            err = iso_nomem(e, strlen(folder));
        else if (iso_path_exists(path)) {
            err = iso_read_file(path, (size_t)left, &data[k], e);
            if (!err) {
                files[count++] = (iso_container_file){
                    .name = names[k], .data = data[k].data, .size = data[k].size};
                left -= data[k].size;
            }
        }
        free(path);
    }
    if (!err && count == 0)
        err = iso_fail(e, ISO_ERR_DATA, "%s holds no adapter", folder);
    if (!err)
        err = iso_container_pack(files, count, out, e);
    for (size_t k = 0; k < NAMES; k++)
        iso_buf_free(&data[k]);
    return err;
}

iso_err iso_container_unpack_folder(const void *bytes, size_t size, const char *folder,
                                    iso_code *code, iso_error *e)
{
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t count = 0;
    iso_err err = iso_container_unpack(bytes, size, files, &count, code, e);
    if (!err) {
        *code = ISO_CODE_INTERNAL;
        err = iso_make_dirs(folder, 0700, e);
    }
    for (size_t i = 0; i < count && !err; i++) {
        char *path = iso_path_join(folder, files[i].name);
        err = path ? iso_write_file(path, files[i].data, files[i].size, 0600, e)
                   : iso_nomem(e, strlen(folder));
        free(path);
    }
    if (!err)
        *code = ISO_CODE_OK;
    return err;
}
