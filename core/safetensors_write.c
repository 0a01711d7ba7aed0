/* safetensors out, and the digest of a tensor list (DESIGN 1). What is written here is what our own
 * strict reader takes back. */
#include "core/safetensors.h"

#include "core/json.h"
#include "core/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, DATA_ALIGNMENT = 8 };

static int compare_for_writing(const void *a, const void *b)
{
    const iso_named_tensor *x = *(const iso_named_tensor *const *)a;
    const iso_named_tensor *y = *(const iso_named_tensor *const *)b;
    size_t i = iso_dtype_bytes(x->view.dtype), j = iso_dtype_bytes(y->view.dtype);
    return i != j ? (i > j ? -1 : 1) : strcmp(x->name, y->name);
}

static int compare_pointed_names(const void *a, const void *b)
{
    return strcmp((*(const iso_named_tensor *const *)a)->name,
                  (*(const iso_named_tensor *const *)b)->name);
}

/* The names that our own reader takes back: short, UTF-8, each once. Leaves `order` as they are to
 * be written. */
static iso_err order_for_writing(const iso_named_tensor **order, const iso_named_tensor *tensors,
                                 size_t count, iso_error *e)
{
    if (count > ISO_SAFETENSORS_TENSORS)
        return iso_fail(e, ISO_ERR_DATA, "%zu tensors; a file holds at most %d", count,
                        ISO_SAFETENSORS_TENSORS);
    for (size_t i = 0; i < count; i++) {
        const char *name = tensors[i].name;
        size_t n = strlen(name);
        if (n == 0 || n > ISO_SAFETENSORS_NAME_BYTES || !iso_utf8_is_valid(name, n) ||
            !strcmp(name, "__metadata__"))
            return iso_fail(e, ISO_ERR_DATA,
                            "tensor name \"%.64s\" cannot be written; expected 1 to %d bytes of "
                            "UTF-8",
                            name, ISO_SAFETENSORS_NAME_BYTES);
        order[i] = &tensors[i];
    }
    qsort(order, count, sizeof *order, compare_pointed_names);
    for (size_t i = 1; i < count; i++)
        if (!strcmp(order[i - 1]->name, order[i]->name))
            return iso_fail(e, ISO_ERR_DATA, "tensor \"%.64s\" stands twice", order[i]->name);
    qsort(order, count, sizeof *order, compare_for_writing);
    return ISO_OK;
}

static iso_err put_string(iso_buf *out, const char *text, iso_error *e)
{
    iso_json *j = iso_json_string(text);
    iso_buf quoted = {0};
    iso_err err = iso_json_dump(j, ISO_JSON_COMPACT, &quoted, e);
    if (!err)
        err = iso_buf_append(out, quoted.data, quoted.size, e);
    iso_buf_free(&quoted);
    iso_json_free(j);
    return err;
}

static iso_err put_entry(iso_buf *out, const iso_named_tensor *t, uint64_t begin, iso_error *e)
{
    iso_err err = put_string(out, t->name, e);
    if (!err)
        err =
            iso_buf_printf(out, e, ":{\"dtype\":\"%s\",\"shape\":[", iso_dtype_name(t->view.dtype));
    for (int i = 0; i < t->view.ndim && !err; i++)
        err = iso_buf_printf(out, e, "%s%zu", i ? "," : "", t->view.shape[i]);
    if (!err)
        err = iso_buf_printf(out, e, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)begin,
                             (unsigned long long)(begin + iso_tensor_bytes(&t->view)));
    return err;
}

/* Length field, header, padding. */
static iso_err put_header(iso_buf *out, const iso_named_tensor *const *order, size_t count,
                          const char *const *meta, size_t meta_count, iso_error *e)
{
    size_t start = out->size;
    uint8_t length[LENGTH_BYTES] = {0};
    iso_err err = iso_buf_append(out, length, sizeof length, e);
    if (!err)
        err = iso_buf_append(out, "{", 1, e);
    if (!err && meta_count)
        err = iso_buf_printf(out, e, "\"__metadata__\":{");
    for (size_t i = 0; i < 2 * meta_count && !err; i++) {
        if (i)
            err = iso_buf_append(out, i & 1 ? ":" : ",", 1, e);
        if (!err)
            err = put_string(out, meta[i], e);
    }
    if (!err && meta_count)
        err = iso_buf_append(out, "}", 1, e);
    uint64_t begin = 0;
    for (size_t i = 0; i < count && !err; i++) {
        if (i || meta_count)
            err = iso_buf_append(out, ",", 1, e);
        if (!err)
            err = put_entry(out, order[i], begin, e);
        begin += iso_tensor_bytes(&order[i]->view);
    }
    if (!err)
        err = iso_buf_append(out, "}", 1, e);
    while (!err && (out->size - start) % DATA_ALIGNMENT)
        err = iso_buf_append(out, " ", 1, e);
    size_t header = out->size - start - LENGTH_BYTES;
    if (!err && header > ISO_SAFETENSORS_HEADER_BYTES)
        err = iso_fail(e, ISO_ERR_DATA, "header of %zu bytes; at most %d can be read back", header,
                       ISO_SAFETENSORS_HEADER_BYTES);
    if (!err)
        iso_put_u64(out->data + start, header);
    return err;
}

iso_err iso_safetensors_write_buf(iso_buf *out, const iso_named_tensor *tensors, size_t count,
                                  const char *const *meta, size_t meta_count, iso_error *e)
{
    size_t before = out->size;
    const iso_named_tensor **order = iso_calloc(count, sizeof *order);
    if (!order)
        return iso_nomem(e, count * sizeof *order);
    iso_err err = order_for_writing(order, tensors, count, e);
    if (!err)
        err = put_header(out, order, count, meta, meta_count, e);
    for (size_t i = 0; i < count && !err; i++)
        err = iso_buf_append(out, order[i]->view.data, iso_tensor_bytes(&order[i]->view), e);
    if (err)
        out->size = before;
    free(order);
    return err;
}

iso_err iso_safetensors_write(const char *path, const iso_named_tensor *tensors, size_t count,
                              const char *const *meta, size_t meta_count, iso_error *e)
{
    iso_buf header = {0};
    iso_out_file file = {.fd = -1};
    const iso_named_tensor **order = iso_calloc(count, sizeof *order);
    if (!order)
        return iso_nomem(e, count * sizeof *order);
    iso_err err = order_for_writing(order, tensors, count, e);
    if (!err)
        err = put_header(&header, order, count, meta, meta_count, e);
    if (err) {
        iso_error_context(e, "%s", path);
        goto done;
    }
    if ((err = iso_out_begin(&file, path, 0644, e)) ||
        (err = iso_out_write(&file, header.data, header.size, e)))
        goto done;
    for (size_t i = 0; i < count; i++)
        if ((err = iso_out_write(&file, order[i]->view.data, iso_tensor_bytes(&order[i]->view), e)))
            goto done;
    err = iso_out_commit(&file, e);
done:
    iso_out_abort(&file);
    iso_buf_free(&header);
    free(order);
    return err;
}

iso_err iso_safetensors_layout(const iso_named_tensor *tensors, size_t count,
                               const char *const *meta, size_t meta_count, iso_buf *header,
                               uint64_t *offsets, uint64_t *total, iso_error *e)
{
    const iso_named_tensor **order = iso_calloc(count, sizeof *order);
    if (!order)
        return iso_nomem(e, count * sizeof *order);
    iso_err err = order_for_writing(order, tensors, count, e);
    if (!err)
        err = put_header(header, order, count, meta, meta_count, e);
    uint64_t at = header->size;
    for (size_t i = 0; i < count && !err; i++) {
        offsets[order[i] - tensors] = at;
        at += iso_tensor_bytes(&order[i]->view);
    }
    *total = at;
    free(order);
    return err;
}

/* ---- digest ---- */

static void add_tensor(iso_hasher *h, const iso_named_tensor *t)
{
    uint8_t field[8];
    size_t n = strlen(t->name);
    iso_put_u32(field, (uint32_t)n);
    iso_hasher_add(h, field, 4);
    iso_hasher_add(h, t->name, n);
    field[0] = (uint8_t)t->view.dtype;
    field[1] = (uint8_t)t->view.ndim;
    iso_hasher_add(h, field, 2);
    for (int i = 0; i < t->view.ndim; i++) {
        iso_put_u64(field, t->view.shape[i]);
        iso_hasher_add(h, field, 8);
    }
    iso_hasher_add(h, t->view.data, iso_tensor_bytes(&t->view));
}

/* The first tensor after `last` in order of name, or NULL. */
static const iso_named_tensor *next_by_name(const iso_named_tensor *tensors, size_t count,
                                            const char *last)
{
    const iso_named_tensor *best = NULL;
    for (size_t i = 0; i < count; i++)
        if ((!last || strcmp(last, tensors[i].name) < 0) &&
            (!best || strcmp(tensors[i].name, best->name) < 0))
            best = &tensors[i];
    return best;
}

iso_digest iso_tensor_list_digest(const iso_named_tensor *tensors, size_t count)
{
    iso_hasher h;
    iso_hasher_init(&h);
    bool is_sorted = true;
    for (size_t i = 1; i < count && is_sorted; i++)
        is_sorted = strcmp(tensors[i - 1].name, tensors[i].name) < 0;
    if (is_sorted) {
        for (size_t i = 0; i < count; i++)
            add_tensor(&h, &tensors[i]);
        return iso_hasher_end(&h);
    }
    /* A search a tensor, but no allocation that could fail. */
    const iso_named_tensor *t = NULL;
    while ((t = next_by_name(tensors, count, t ? t->name : NULL)))
        add_tensor(&h, t);
    return iso_hasher_end(&h);
}
