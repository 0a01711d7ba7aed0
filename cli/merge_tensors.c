/* Whole tensors through the stream (merge/stream.h): plan, identity, files beside the tensors. */
#include "cli/merge_tensors.h"

#include "cli/command.h"
#include "core/parallel.h"
#include "merge/stream.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- plan ---- */
static iso_dtype result_type(const iso_tensor *t, iso_dtype wish)
{
    bool is_float =
        t->dtype == ISO_F64 || t->dtype == ISO_F32 || t->dtype == ISO_F16 || t->dtype == ISO_BF16;
    if (!is_float)
        return t->dtype;
    if (wish != ISO_DTYPE_COUNT)
        return wish;
    return t->dtype == ISO_F64 ? ISO_F64 : ISO_F32;
}

static void add_input(iso_tensors_plan *p, const iso_safetensors *st)
{
    for (size_t k = 0; k < st->map_count; k++)
        p->read_bytes += (double)st->maps[k].size;
    p->fixed_bytes += 400.0 * (double)st->count;
}

iso_err iso_merge_tensors_plan(const iso_merge_inputs *in, const iso_merge_options *o,
                               iso_dtype type, uint64_t limit_bytes, iso_tensors_plan *out,
                               iso_error *e)
{
    /* the program itself; pages of inputs between two trims, of each thread before it reports */
    const double mib = 1048576.0, window = (72.0 + 8.0 * iso_threads()) * mib;
    *out = (iso_tensors_plan){.fixed_bytes = 24.0 * mib + window, .threads = iso_threads()};
    for (size_t t = 0; t < in->count; t++)
        add_input(out, &in->files[t]);
    if (in->base.tensors)
        add_input(out, &in->base_file);
    const char *largest = "";
    for (size_t i = 0; i < in->dense[0].count; i++) {
        const iso_tensor *v = &in->dense[0].tensors[i].view;
        bool is_matrix = v->ndim == 2;
        size_t m = is_matrix ? v->shape[0] : 1, n = is_matrix ? v->shape[1] : iso_tensor_count(v);
        bool by_method = iso_merge_treatment(o->method, o->is_reference,
                                             in->dense[0].tensors[i].name, v) == ISO_BY_METHOD;
        double bytes = (double)iso_merge_dense_bytes(o->method, by_method, in->count, m, n,
                                                     o->is_transposed && is_matrix);
        double q = (double)(m < n ? m : n), count = (double)m * (double)n;
        if (bytes > out->worker_bytes) {
            out->worker_bytes = bytes;
            largest = in->dense[0].tensors[i].name;
        }
        out->written_bytes += count * (double)iso_dtype_bytes(result_type(v, type));
        if (by_method && (o->method->core || o->method->dense))
            out->flops += 4.0 * count * q + 8.0 * q * q * q +
                          (o->method->needs == ISO_NEEDS_ALL
                               ? (double)in->count * (2.0 * count * q + 0.3 * q * q * q)
                               : 0.0);
    }
    out->shards = in->files[0].map_count;
    if (limit_bytes == 0)
        return ISO_OK;
    double room = (double)limit_bytes - out->fixed_bytes;
    int fit = out->worker_bytes > 0.0 ? (int)fmin(1e6, room / out->worker_bytes) : out->threads;
    if (fit < 1 || room < 0.0)
        return iso_fail(e, ISO_ERR_RESOURCE,
                        "needs %.2f GiB (one thread, tensor \"%.80s\"), the limit is %.2f GiB; not "
                        "started",
                        (out->fixed_bytes + out->worker_bytes) / 1073741824.0, largest,
                        (double)limit_bytes / 1073741824.0);
    if (fit < out->threads)
        out->threads = fit;
    return ISO_OK;
}

/* ---- identity ---- */
static void add_files(iso_hasher *h, const char *path, const iso_safetensors *st)
{
    struct stat info = {0};
    uint8_t field[8];
    if (stat(path, &info) == 0) {
        iso_put_u64(field, (uint64_t)info.st_mtim.tv_sec);
        iso_hasher_add(h, field, 8);
        iso_put_u64(field, (uint64_t)info.st_mtim.tv_nsec);
        iso_hasher_add(h, field, 8);
    }
    for (size_t k = 0; k < st->map_count; k++) {
        iso_put_u64(field, st->maps[k].size);
        iso_hasher_add(h, field, 8);
    }
    for (size_t i = 0; i < st->count; i++)
        iso_hasher_add(h, st->items[i].name, strlen(st->items[i].name) + 1);
}

static iso_digest identity_of(const iso_merge_inputs *in, iso_dtype type, const char *recipe)
{
    iso_hasher h;
    uint8_t number = (uint8_t)type;
    iso_hasher_init(&h);
    iso_hasher_add(&h, recipe, strlen(recipe) + 1);
    iso_hasher_add(&h, &number, 1);
    for (size_t t = 0; t < in->count; t++)
        add_files(&h, in->paths[t], &in->files[t]);
    if (in->base.tensors)
        add_files(&h, in->base.name, &in->base_file);
    return iso_hasher_end(&h);
}

/* ---- what stands beside the tensors of a checkpoint ---- */
static iso_err copy_beside(const char *from, const char *to, iso_error *e)
{
    static const char *const names[] = {"config.json",
                                        "generation_config.json",
                                        "tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "tokenizer.model",
                                        "vocab.json",
                                        "vocab.txt",
                                        "merges.txt",
                                        "added_tokens.json",
                                        "preprocessor_config.json"};
    enum { MOST = 64 << 20 };
    iso_err err = ISO_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names && !err; i++) {
        char *source = iso_path_join(from, names[i]), *target = iso_path_join(to, names[i]);
        iso_buf bytes = {0};
        if (!source || !target)
            err = iso_nomem(e, 1);
        else if (iso_path_exists(source)) {
            err = iso_read_file(source, MOST, &bytes, e);
            if (!err)
                err = iso_write_file(target, bytes.data, bytes.size, 0644, e);
        }
        iso_buf_free(&bytes);
        free(source);
        free(target);
    }
    return err;
}

/* ---- writing ---- */
static iso_err check_out(const iso_merge_inputs *in, const char *path, iso_error *e)
{
    const char *which = NULL;
    if (iso_stream_is_input(path, in->paths, in->count, &which) ||
        (in->base.tensors && iso_stream_is_input(path, &in->base.name, 1, &which)))
        return iso_fail(e, ISO_ERR_USAGE, "the output %s is the input %s; choose another name",
                        path, which);
    return ISO_OK;
}

static iso_err digest_of(const char *path, iso_json *result, iso_error *e)
{
    iso_safetensors st = {0};
    iso_err err = iso_safetensors_open(&st, path, e);
    if (!err) {
        char hex[ISO_DIGEST_HEX];
        iso_digest d = iso_tensor_list_digest(st.items, st.count);
        iso_hex(hex, d.b, ISO_DIGEST_BYTES);
        iso_json_set(result, "digest", iso_json_string(hex));
    }
    iso_safetensors_close(&st);
    return err;
}

iso_err iso_merge_tensors_write(const iso_merge_inputs *in, iso_merge_options *o, iso_dtype type,
                                const char *path, bool resume, bool want_digest,
                                const iso_json *recipe, iso_merged_dense *out, iso_json *result,
                                iso_error *e)
{
    iso_buf text = {0};
    iso_stream *stream = NULL;
    const iso_safetensors **maps = iso_calloc(in->count + 1, sizeof(const iso_safetensors *));
    uint64_t written = 0;
    size_t shards = 0, kept = 0;
    iso_err err = maps ? check_out(in, path, e) : iso_nomem(e, in->count * sizeof(void *));
    if (!err)
        err = iso_json_dump(recipe, ISO_JSON_COMPACT, &text, e);
    if (err)
        goto done;
    for (size_t t = 0; t < in->count; t++)
        maps[t] = &in->files[t];
    maps[in->count] = &in->base_file;
    iso_digest identity = identity_of(in, type, (const char *)text.data);
    iso_stream_options so = {.out = path,
                             .resume = resume,
                             .maps = maps,
                             .map_count = in->count + 1,
                             .like = &in->files[0],
                             .recipe = (const char *)text.data,
                             .identity = &identity};
    err = iso_stream_open(&so, &stream, e);
    if (err)
        goto done;
    o->sink = iso_stream_sink(stream);
    err =
        iso_merge_dense(in->dense, in->count, in->base.tensors ? &in->base : NULL, type, o, out, e);
    if (!err)
        err = iso_stream_commit(stream, e);
    if (err) {
        const char *part = iso_stream_kept(stream);
        if (part && err == ISO_ERR_INTERRUPTED)
            err =
                iso_fail(e, err, "stopped; complete shards are kept in %s, --resume goes on", part);
        goto done;
    }
    iso_stream_counts(stream, &written, &shards, &kept);
    iso_json_set(result, "written_bytes", iso_json_integer((int64_t)written));
    iso_json_set(result, "shards", iso_json_integer((int64_t)shards));
    iso_json_set(result, "resumed_shards", iso_json_integer((int64_t)kept));
    if (iso_is_dir(path) && iso_is_dir(in->paths[0]))
        err = copy_beside(in->paths[0], path, e);
    if (!err && (want_digest || written <= ISO_DIGEST_LIMIT_BYTES))
        err = digest_of(path, result, e);
done:
    iso_stream_close(stream);
    iso_buf_free(&text);
    free(maps);
    return err;
}

/* ---- truncated while mapped ---- */
static const iso_merge_inputs *watched;

static void say(const char *text)
{
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
}

static bool holds(const iso_safetensors *st, uintptr_t p)
{
    for (size_t k = 0; k < st->map_count; k++) {
        uintptr_t begin = (uintptr_t)st->maps[k].data;
        if (p >= begin && p < begin + st->maps[k].size)
            return true;
    }
    return false;
}

static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    uintptr_t p = (uintptr_t)info->si_addr;
    const char *name = "an input";
    for (size_t t = 0; watched->files && t < watched->count; t++)
        if (holds(&watched->files[t], p))
            name = watched->paths[t];
    if (watched->base.name && holds(&watched->base_file, p))
        name = watched->base.name;
    say("isofed merge: ");
    say(name);
    say(": cannot be read: the file became shorter, or its disk failed, while it was merged\n");
    _exit(3);
}

void iso_merge_catch_truncation(const iso_merge_inputs *in)
{
    struct sigaction act = {.sa_sigaction = on_bus, .sa_flags = (int)(SA_SIGINFO | SA_RESETHAND)};
    watched = in;
    sigaction(SIGBUS, &act, NULL);
}
