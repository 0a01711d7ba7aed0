/* safetensors on disk: one file, a folder, or shards that an index names (specs/security.md 9.1).
 * The index comes from outside: its file names are opened below its own folder and through no link,
 * and what it says of each shard must be exactly what the shard holds. */
#include "core/safetensors.h"

#include "core/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SHARDS = 4096 };

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n >= m && !strcmp(s + n - m, tail);
}

static iso_err open_single(iso_safetensors *st, const char *path, iso_error *e)
{
    iso_map map;
    iso_err err = iso_map_open(&map, path, e);
    if (err)
        return err;
    if ((err = iso_safetensors_parse(st, map.data, map.size, path, e))) {
        iso_map_close(&map);
        return err;
    }
    st->maps = iso_arena_alloc(&st->arena, 1, sizeof *st->maps);
    if (!st->maps) {
        iso_map_close(&map);
        iso_safetensors_close(st);
        return iso_nomem(e, sizeof map);
    }
    st->maps[0] = map;
    st->map_count = 1;
    return ISO_OK;
}

/* What the index claims: for each tensor, in order of name, its shard. */
typedef struct {
    const char *tensor, *shard;
} claim;

static int compare_claims(const void *a, const void *b)
{
    return strcmp(((const claim *)a)->tensor, ((const claim *)b)->tensor);
}

static int compare_shards(const void *a, const void *b)
{
    int order = strcmp(((const claim *)a)->shard, ((const claim *)b)->shard);
    return order ? order : compare_claims(a, b);
}

static iso_err read_claims(const iso_json *index, const char *what, claim **out, size_t *count,
                           iso_error *e)
{
    const iso_json *map = iso_json_key(index, "weight_map");
    if (!map || !iso_json_is_object(map))
        return iso_fail(e, ISO_ERR_DATA, "%s: weight_map, an object of tensor to file, is missing",
                        what);
    size_t n = iso_json_count(map);
    if (n > ISO_SAFETENSORS_TENSORS)
        return iso_fail(e, ISO_ERR_DATA, "%s: more than %d tensors", what, ISO_SAFETENSORS_TENSORS);
    claim *claims = iso_calloc(n, sizeof *claims);
    if (!claims)
        return iso_nomem(e, n * sizeof *claims);
    void *at = NULL;
    const iso_json *value;
    for (size_t i = 0; i < n && iso_json_next(map, &at, &claims[i].tensor, &value); i++) {
        claims[i].shard = iso_json_str(value);
        if (!claims[i].shard) {
            iso_err err = iso_fail(e, ISO_ERR_DATA, "%s: weight_map[\"%.64s\"] is not a string",
                                   what, claims[i].tensor);
            free(claims);
            return err;
        }
    }
    *out = claims;
    *count = n;
    return ISO_OK;
}

/* Takes over the tensors of one shard, which must be exactly those that the index claims for it. */
static iso_err add_shard(iso_safetensors *st, int folder_fd, const claim *claims, size_t n,
                         const char *what, iso_error *e)
{
    const char *name = claims[0].shard;
    iso_safetensors shard = {0};
    iso_map map;
    iso_err err = iso_map_open_at(&map, folder_fd, name, e);
    if (err) {
        iso_error_context(e, "%s: shard of \"%.64s\"", what, claims[0].tensor);
        return err;
    }
    st->maps[st->map_count++] = map; /* closed with st from here on */
    if ((err = iso_safetensors_parse(&shard, map.data, map.size, name, e)))
        goto done;
    for (size_t i = 0; i < n || i < shard.count; i++) {
        int order = i == n             ? 1
                    : i == shard.count ? -1
                                       : strcmp(claims[i].tensor, shard.items[i].name);
        if (order < 0)
            err = iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%.64s\" is not in %s", what,
                           claims[i].tensor, name);
        else if (order > 0)
            err = iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%.64s\" of %s is not in its weight_map",
                           what, shard.items[i].name, name);
        if (err)
            goto done;
    }
    for (size_t i = 0; i < n; i++) {
        const char *copy = iso_arena_strdup(&st->arena, shard.items[i].name);
        if (!copy) {
            err = iso_nomem(e, strlen(shard.items[i].name));
            goto done;
        }
        st->items[st->count++] = (iso_named_tensor){copy, shard.items[i].view};
    }
done:
    iso_safetensors_close(&shard);
    return err;
}

static iso_err check_total(const iso_safetensors *st, const iso_json *index, const char *what,
                           iso_error *e)
{
    const iso_json *claimed = iso_json_key(iso_json_key(index, "metadata"), "total_size");
    double total, sum = 0; /* some writers store a real; sums stay exact below 2^53 */
    if (!claimed)
        return ISO_OK;
    for (size_t i = 0; i < st->count; i++)
        sum += (double)iso_tensor_bytes(&st->items[i].view);
    if (!iso_json_num(claimed, &total) || total != sum)
        return iso_fail(e, ISO_ERR_DATA,
                        "%s: total_size is not the %.0f bytes that its shards hold", what, sum);
    return ISO_OK;
}

static iso_err open_index(iso_safetensors *st, const char *path, iso_error *e)
{
    iso_json *index = NULL;
    claim *claims = NULL;
    size_t n = 0, shards = 0;
    int folder_fd = -1;
    char *folder = iso_path_dir(path);
    iso_err err = folder ? ISO_OK : iso_nomem(e, strlen(path));
    if (err || (err = iso_json_read(path, ISO_SAFETENSORS_HEADER_BYTES, &index, e)) ||
        (err = read_claims(index, path, &claims, &n, e)))
        goto done;
    folder_fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_fd < 0) {
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "cannot open folder %s", folder);
        goto done;
    }
    qsort(claims, n, sizeof *claims, compare_shards);
    for (size_t i = 0; i < n; i++)
        shards += i == 0 || strcmp(claims[i].shard, claims[i - 1].shard) != 0;
    if (shards > MAX_SHARDS) {
        err = iso_fail(e, ISO_ERR_DATA, "%s: more than %d shards", path, MAX_SHARDS);
        goto done;
    }
    st->items = iso_arena_alloc(&st->arena, n, sizeof *st->items);
    st->maps = iso_arena_alloc(&st->arena, shards, sizeof *st->maps);
    if (!st->items || !st->maps) {
        err = iso_nomem(e, n * sizeof *st->items);
        goto done;
    }
    for (size_t i = 0, next; i < n && !err; i = next) {
        for (next = i + 1; next < n && !strcmp(claims[next].shard, claims[i].shard); next++)
            ;
        err = add_shard(st, folder_fd, claims + i, next - i, path, e);
    }
    if (!err)
        err = iso_safetensors_sort(st, path, e);
    if (!err)
        err = check_total(st, index, path, e);
done:
    if (folder_fd >= 0)
        close(folder_fd);
    free(folder);
    free(claims);
    iso_json_free(index);
    if (err)
        iso_safetensors_close(st);
    return err;
}

static iso_err open_folder(iso_safetensors *st, const char *path, iso_error *e)
{
    char *single = iso_path_join(path, "model.safetensors");
    char *index = iso_path_join(path, "model.safetensors.index.json");
    iso_err err;
    if (!single || !index)
        err = iso_nomem(e, strlen(path));
    else if (iso_path_exists(single))
        err = open_single(st, single, e);
    else if (iso_path_exists(index))
        err = open_index(st, index, e);
    else
        err = iso_fail(e, ISO_ERR_DATA,
                       "%s holds neither model.safetensors nor model.safetensors.index.json", path);
    free(single);
    free(index);
    return err;
}

iso_err iso_safetensors_open(iso_safetensors *st, const char *path, iso_error *e)
{
    *st = (iso_safetensors){0};
    if (iso_is_dir(path))
        return open_folder(st, path, e);
    if (ends_with(path, ".index.json"))
        return open_index(st, path, e);
    if (ends_with(path, ".bin") || ends_with(path, ".pt") || ends_with(path, ".pth"))
        return iso_fail(e, ISO_ERR_DATA, "%s may hold code and is not read; convert to safetensors",
                        path);
    return open_single(st, path, e);
}
