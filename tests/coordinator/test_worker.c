/* The merge worker on real sealed updates: rows 12-15 of specs/security.md 3.2, the two levels of a
 * merge, and the release key's own rules (AMENDMENTS 2, 4, 6, 14). */
#include "coordinator/worker.h"
#include "core/fsio.h"
#include "core/rng.h"
#include "crypto/init.h"
#include "crypto/manifest.h"
#include "merge/merge.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DIM = 8, RANK = 2 };
static const char module_name[] = "vit.encoder.layer.0.attention.attention.query";

typedef struct {
    char dir[64];
    iso_key merge, site, stranger;
    uint8_t federation[16];
    iso_digest generation;
    char backbone[96];
} ground;

static void must(iso_err err, const iso_error *e)
{
    if (err)
        fail_msg("%s", e->text);
}

static void write_backbone(ground *g)
{
    iso_error e;
    float w[DIM * DIM] = {0};
    iso_named_tensor t = {"vit.encoder.layer.0.attention.attention.query.weight",
                          {.dtype = ISO_F32, .ndim = 2, .shape = {DIM, DIM}, .data = w}};
    char path[160];
    snprintf(g->backbone, sizeof g->backbone, "%s/backbone", g->dir);
    must(iso_make_dirs(g->backbone, 0700, &e), &e);
    snprintf(path, sizeof path, "%s/model.safetensors", g->backbone);
    must(iso_safetensors_write(path, &t, 1, NULL, 0, &e), &e);
}

static int set_up(void **state)
{
    static ground g;
    iso_error e;
    char path[160];
    must(iso_crypto_init(&e), &e);
    g = (ground){.dir = "/tmp/isofed-worker-XXXXXX"};
    assert_non_null(mkdtemp(g.dir));
    must(iso_key_make(ISO_KEY_MERGE, 0, &g.merge, &e), &e);
    must(iso_key_make(ISO_KEY_SITE_SIGN, 0, &g.site, &e), &e);
    must(iso_key_make(ISO_KEY_SITE_SIGN, 0, &g.stranger, &e), &e);
    memset(g.federation, 7, sizeof g.federation);
    memset(g.generation.b, 9, sizeof g.generation.b);
    const char *const folders[] = {"merge", "release", "jobs/a", "blobs"};
    for (size_t i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/%s", g.dir, folders[i]);
        must(iso_make_dirs(path, 0700, &e), &e);
    }
    snprintf(path, sizeof path, "%s/merge/merge.key", g.dir);
    must(iso_key_write(&g.merge, path, NULL, NULL, &e), &e);
    write_backbone(&g);
    *state = &g;
    return 0;
}

static int tear_down(void **state)
{
    ground *g = *state;
    iso_error e;
    must(iso_remove_tree(g->dir, &e), &e);
    iso_key_free(&g->merge);
    iso_key_free(&g->site);
    iso_key_free(&g->stranger);
    return 0;
}

/* ---- an update as a site makes it ---- */

typedef struct {
    size_t rank, out;
    float value; /* of every element of B; A is seeded */
    uint64_t seed;
    float poison; /* put into B[3] when not zero */
} adapter_case;

static void make_container(const adapter_case *c, iso_buf *out)
{
    iso_error e;
    float A[16 * DIM], B[32 * 16];
    iso_rng r = iso_rng_make(c->seed, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < c->rank * DIM; i++)
        A[i] = (float)iso_rng_normal(&r);
    for (size_t i = 0; i < c->out * c->rank; i++)
        B[i] = c->value * (float)iso_rng_normal(&r);
    if (c->poison != 0)
        B[3] = c->poison;
    iso_lora_layer layer = {.module = (char *)(uintptr_t)module_name,
                            .out = c->out,
                            .in = DIM,
                            .rank = c->rank,
                            .scale = 1,
                            .A = A,
                            .B = B};
    iso_peft_output o = {.layers = &layer, .count = 1};
    iso_buf config = {0}, tensors = {0};
    must(iso_peft_write_bufs(&o, &config, &tensors, &e), &e);
    iso_container_file files[] = {
        {"adapter_config.json", config.data, config.size},
        {"adapter_model.safetensors", tensors.data, tensors.size},
    };
    must(iso_container_pack(files, 2, out, &e), &e);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
}

typedef struct {
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES], signature[ISO_SIGNATURE_BYTES];
    iso_buf body;
} sealed;

static void seal(const ground *g, const iso_buf *payload, uint8_t task, uint64_t sequence,
                 sealed *s)
{
    iso_error e;
    iso_buf file = {0};
    iso_envelope h = {.round = 1,
                      .sequence = sequence,
                      .sample_count = 10 * sequence,
                      .score = 0.5f,
                      .adapter_kind = ISO_KIND_LORA,
                      .metric = ISO_METRIC_ACCURACY,
                      .generation_digest = g->generation};
    memcpy(h.federation_id, g->federation, 16);
    memset(h.site_id, 3, 16);
    memset(h.task_id, task, 16);
    must(iso_envelope_seal(&h, payload->data, payload->size, &g->site, g->merge.public_key, &file,
                           &e),
         &e);
    memcpy(s->header, file.data, sizeof s->header);
    memcpy(s->signature, file.data + file.size - sizeof s->signature, sizeof s->signature);
    s->body = (iso_buf){0};
    must(iso_buf_append(&s->body, file.data + sizeof s->header,
                        file.size - sizeof s->header - sizeof s->signature, &e),
         &e);
    iso_buf_free(&file);
}

/* Stores the body under the header's digest (also when the test has changed it: disk rot). */
static iso_json *update_row(const ground *g, const sealed *s, const uint8_t pk[32])
{
    iso_error e;
    iso_digest d;
    memcpy(d.b, s->header + 336, sizeof d.b);
    char *path = iso_worker_blob_path(g->dir, &d);
    char *folder = iso_strdup(path);
    *strrchr(folder, '/') = 0;
    must(iso_make_dirs(folder, 0700, &e), &e);
    must(iso_write_file(path, s->body.data, s->body.size, 0600, &e), &e);
    free(path);
    free(folder);
    char hex[2 * ISO_ENVELOPE_HEADER_BYTES + 1];
    iso_json *u = iso_json_object();
    iso_json_set(u, "update_id", iso_worker_hex(s->header + 216, 16));
    iso_json_set(u, "blob", iso_worker_hex(d.b, sizeof d.b));
    iso_hex(hex, s->header, sizeof s->header);
    iso_json_set(u, "header", iso_json_string(hex));
    iso_hex(hex, s->signature, sizeof s->signature);
    iso_json_set(u, "signature", iso_json_string(hex));
    iso_json_set(u, "sign_pk", iso_worker_hex(pk, 32));
    iso_json_set(u, "weight", iso_json_integer((int64_t)iso_get_u64(s->header + 184)));
    return u;
}

static iso_json *task_row(uint8_t task, iso_json *updates)
{
    uint8_t id[16];
    memset(id, task, sizeof id);
    iso_json *t = iso_json_object(), *classes = iso_json_array();
    iso_json_push(classes, iso_json_string("ok"));
    iso_json_push(classes, iso_json_string("scratch"));
    iso_json_set(t, "id", iso_worker_hex(id, sizeof id));
    iso_json_set(t, "name", iso_json_string("press"));
    iso_json_set(t, "classes", classes);
    iso_json_set(t, "rank", iso_json_integer(RANK));
    iso_json_set(t, "rank_cap", iso_json_integer(2 * RANK));
    iso_json_set(t, "norm_cap", iso_json_real(100));
    iso_json_set(t, "updates", updates);
    return t;
}

static iso_json *merge_job(const ground *g, iso_json *tasks, const char *const *methods)
{
    iso_json *job = iso_json_object(), *generation = iso_json_object(), *list = iso_json_array();
    iso_json_set(job, "format", iso_json_integer(1));
    iso_json_set(job, "kind", iso_json_string("merge"));
    iso_json_set(job, "job", iso_json_string("a"));
    iso_json_set(job, "federation", iso_worker_hex(g->federation, 16));
    iso_json_set(job, "round", iso_json_integer(1));
    iso_json_set(generation, "number", iso_json_integer(0));
    iso_json_set(generation, "digest", iso_worker_hex(g->generation.b, 32));
    iso_json_set(job, "generation", generation);
    iso_json_set(job, "backbone", iso_json_string(g->backbone));
    for (; *methods; methods++) {
        iso_json *c = iso_json_object();
        iso_json_set(c, "method", iso_json_string(*methods));
        iso_json_push(list, c);
    }
    iso_json_set(job, "candidates", list);
    iso_json_set(job, "tasks", tasks);
    return job;
}

/* Runs a job (taken over) and gives its result. */
static iso_err run_job(const ground *g, iso_json *job, iso_json **result, iso_error *e)
{
    iso_buf text = {0};
    char path[160];
    iso_error mine;
    must(iso_json_dump(job, ISO_JSON_PRETTY, &text, &mine), &mine);
    snprintf(path, sizeof path, "%s/jobs/a/job.json", g->dir);
    must(iso_write_file(path, text.data, text.size, 0600, &mine), &mine);
    iso_worker_options o = {.state_dir = g->dir};
    iso_err err = iso_worker_run(&o, path, e);
    if (!err) {
        snprintf(path, sizeof path, "%s/jobs/a/result.json", g->dir);
        must(iso_json_read(path, 1 << 20, result, &mine), &mine);
    }
    iso_buf_free(&text);
    iso_json_free(job);
    return err;
}

static const iso_json *first_verdict(const iso_json *result)
{
    const iso_json *task = iso_json_at(iso_json_key(result, "tasks"), 0);
    return iso_json_at(iso_json_key(task, "updates"), 0);
}

/* ---- rows 12 - 15 ---- */

typedef enum { AS_IS, ROT, STRANGER, OTHER_TASK } tamper;

static void S37_verdicts_after_acknowledgement(void **state)
{
    static const struct {
        const char *name;
        adapter_case adapter;
        tamper tamper;
        const char *code;
    } cases[] = {
        {"good", {RANK, DIM, 0.1f, 1, 0}, AS_IS, "OK"},
        {"row 12: disk rot", {RANK, DIM, 0.1f, 1, 0}, ROT, "BODY_DIGEST"},
        {"row 7 again: another site's key", {RANK, DIM, 0.1f, 1, 0}, STRANGER, "SIGNATURE"},
        {"row 13: sealed for another task", {RANK, DIM, 0.1f, 1, 0}, OTHER_TASK, "INNER_MISMATCH"},
        {"row 14: rank above the cap", {RANK * 3, DIM, 0.1f, 1, 0}, AS_IS, "SHAPE"},
        {"row 14: wrong shape", {RANK, DIM + 1, 0.1f, 1, 0}, AS_IS, "SHAPE"},
        {"row 15: not a number", {RANK, DIM, 0.1f, 1, NAN}, AS_IS, "NONFINITE"},
        {"row 15: infinite", {RANK, DIM, 0.1f, 1, INFINITY}, AS_IS, "NONFINITE"},
        {"row 15: norm", {RANK, DIM, 1e4f, 1, 0}, AS_IS, "NORM"},
        {"row 15: empty", {RANK, DIM, 0.0f, 1, 0}, AS_IS, "EMPTY"},
    };
    static const char *const methods[] = {"average", NULL};
    ground *g = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        iso_error e;
        iso_buf payload = {0};
        sealed s;
        make_container(&cases[i].adapter, &payload);
        seal(g, &payload, 1, i + 1, &s);
        if (cases[i].tamper == ROT)
            s.body.data[s.body.size / 2] ^= 1;
        iso_json *updates = iso_json_array(), *tasks = iso_json_array(), *result = NULL;
        iso_json_push(updates, update_row(g, &s,
                                          cases[i].tamper == STRANGER ? g->stranger.public_key
                                                                      : g->site.public_key));
        iso_json_push(tasks, task_row(cases[i].tamper == OTHER_TASK ? 2 : 1, updates));
        must(run_job(g, merge_job(g, tasks, methods), &result, &e), &e);
        const char *code = iso_json_str(iso_json_key(first_verdict(result), "code"));
        if (strcmp(code, cases[i].code) != 0)
            fail_msg("%s: %s, expected %s (%s)", cases[i].name, code, cases[i].code,
                     iso_json_str(iso_json_key(first_verdict(result), "sentence")));
        /* A refused update leaves nothing: no task adapter, no candidate. */
        size_t made = iso_json_count(iso_json_key(result, "candidates"));
        assert_int_equal(made, strcmp(cases[i].code, "OK") == 0 ? 1 : 0);
        iso_json_free(result);
        iso_buf_free(&payload);
        iso_buf_free(&s.body);
    }
}

/* ---- what comes out ---- */

static void read_candidate(const ground *g, const iso_json *result, size_t i, iso_peft *p)
{
    iso_error e;
    const iso_json *files =
        iso_json_key(iso_json_at(iso_json_key(result, "candidates"), i), "files");
    iso_buf blobs[2] = {{0}, {0}};
    for (size_t k = 0; k < 2; k++) {
        iso_digest d;
        assert_true(iso_unhex(d.b, sizeof d.b,
                              iso_json_str(iso_json_key(iso_json_at(files, k), "digest"))));
        must(iso_worker_get_blob(g->dir, &d, 1 << 20, &blobs[k], &e), &e);
    }
    must(iso_peft_parse(p, blobs[0].data, blobs[0].size, blobs[1].data, blobs[1].size, true,
                        "candidate", &e),
         &e);
    iso_buf_free(&blobs[0]);
    iso_buf_free(&blobs[1]);
}

static void product(const iso_lora_layer *l, double *out)
{
    for (size_t i = 0; i < l->out; i++)
        for (size_t j = 0; j < l->in; j++) {
            double s = 0;
            for (size_t k = 0; k < l->rank; k++)
                s += (double)l->B[i * l->rank + k] * (double)l->A[k * l->in + j];
            out[i * l->in + j] = l->scale * s;
        }
}

static double distance(const double *a, const double *b)
{
    double num = 0, den = 0;
    for (size_t i = 0; i < DIM * DIM; i++) {
        num += (a[i] - b[i]) * (a[i] - b[i]);
        den += b[i] * b[i];
    }
    return sqrt(num / den);
}

/* Two sites of one task, weights 10 and 20 samples: the mean of the products, not of the factors;
 * one task alone is handed on unchanged whatever the method (AMENDMENTS 14). */
static void U88_mean_of_products_and_single_task_unchanged(void **state)
{
    static const char *const methods[] = {"iso_cts", "average", NULL};
    ground *g = *state;
    iso_error e;
    iso_json *updates = iso_json_array(), *tasks = iso_json_array(), *result = NULL;
    double expected[DIM * DIM] = {0}, got[DIM * DIM], one[DIM * DIM];
    for (uint64_t k = 1; k <= 2; k++) {
        iso_buf payload = {0};
        sealed s;
        adapter_case c = {RANK, DIM, 0.1f, 40 + k, 0};
        make_container(&c, &payload);
        seal(g, &payload, 1, k, &s);
        iso_json_push(updates, update_row(g, &s, g->site.public_key));
        iso_container_file files[ISO_CONTAINER_FILES_MAX];
        size_t n;
        iso_code code;
        iso_peft p = {0};
        must(iso_container_unpack(payload.data, payload.size, files, &n, &code, &e), &e);
        must(iso_peft_parse(&p, files[0].data, files[0].size, files[1].data, files[1].size, true,
                            "site", &e),
             &e);
        product(&p.layers[0], one);
        for (size_t i = 0; i < DIM * DIM; i++)
            expected[i] += (double)k / 3.0 * one[i];
        iso_peft_close(&p);
        iso_buf_free(&payload);
        iso_buf_free(&s.body);
    }
    iso_json_push(tasks, task_row(1, updates));
    must(run_job(g, merge_job(g, tasks, methods), &result, &e), &e);
    for (size_t i = 0; i < 2; i++) {
        iso_peft p = {0};
        read_candidate(g, result, i, &p);
        product(&p.layers[0], got);
        double d = distance(got, expected);
        if (d > 1e-5)
            fail_msg("candidate %zu differs by %g", i, d);
        iso_peft_close(&p);
    }
    iso_json_free(result);
}

/* `good` equal updates, then `bad` others far away, as one task under a rule. */
static iso_json *rule_job(const ground *g, size_t good, size_t bad, const char *rule,
                          const char *parameter, double value)
{
    static const char *const methods[] = {"average", NULL};
    iso_json *updates = iso_json_array(), *tasks = iso_json_array();
    for (size_t k = 0; k < good + bad; k++) {
        iso_buf payload = {0};
        sealed s;
        adapter_case c = {RANK, DIM, k < good ? 0.1f : 0.9f, k < good ? 60 : 70 + k, 0};
        make_container(&c, &payload);
        seal(g, &payload, 1, k + 1, &s);
        iso_json_push(updates, update_row(g, &s, g->site.public_key));
        iso_buf_free(&payload);
        iso_buf_free(&s.body);
    }
    iso_json *t = task_row(1, updates), *parameters = iso_json_object();
    iso_json_set(t, "aggregate", iso_json_string(rule));
    iso_json_set(parameters, parameter, iso_json_real(value));
    iso_json_set(t, "aggregate_parameters", parameters);
    iso_json_push(tasks, t);
    return merge_job(g, tasks, methods);
}

static void a_task_is_aggregated_by_its_rule_from_four_updates_on(void **state)
{
    static const struct {
        const char *rule, *parameter;
        double value;
        size_t good, bad;
        const char *used;
        double least, most; /* distance from what the good ones say */
    } rows[] = {
        {"multi_krum", "f", 1, 4, 1, "multi_krum", 0, 1e-5},
        {"trimmed_mean", "cut", 1, 4, 1, "trimmed_mean", 0, 1e-5},
        {"norm_clip", "max_norm", 0, 4, 1, "norm_clip", 0.05, 0.5},
        {"multi_krum", "f", 1, 2, 1, "mean", 1, 100}, /* three sites: nobody can tell */
        {"multi_krum", "f", 3, 4, 1, "mean", 1, 100}, /* too few for that f */
    };
    ground *g = *state;
    iso_error e;
    double want[DIM * DIM], got[DIM * DIM];
    for (size_t i = 0; i <= sizeof rows / sizeof *rows; i++) {
        iso_json *result = NULL;
        iso_json *job = i ? rule_job(g, rows[i - 1].good, rows[i - 1].bad, rows[i - 1].rule,
                                     rows[i - 1].parameter, rows[i - 1].value)
                          : rule_job(g, 1, 0, "trimmed_mean", "cut", 1); /* what a good one says */
        iso_peft p = {0};
        must(run_job(g, job, &result, &e), &e);
        read_candidate(g, result, 0, &p);
        product(&p.layers[0], i ? got : want);
        iso_peft_close(&p);
        if (i) {
            const iso_json *row = iso_json_at(iso_json_key(result, "tasks"), 0);
            double off = distance(got, want);
            assert_string_equal(iso_json_str(iso_json_key(row, "aggregate")), rows[i - 1].used);
            if (!(off >= rows[i - 1].least && off <= rows[i - 1].most))
                fail_msg("row %zu: %g away", i - 1, off);
        }
        iso_json_free(result);
    }
    iso_json *none = NULL;
    assert_int_equal(run_job(g, rule_job(g, 4, 1, "multi_crum", "f", 1), &none, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "multi_krum"));
    assert_int_equal(run_job(g, rule_job(g, 4, 1, "multi_krum", "f", 0.5), &none, &e),
                     ISO_ERR_USAGE);
}

static void I8_same_job_gives_same_bytes(void **state)
{
    static const char *const methods[] = {"iso_cts", "iso_c", NULL};
    ground *g = *state;
    iso_error e;
    sealed s[2];
    iso_buf texts[2] = {{0}, {0}};
    for (uint8_t k = 0; k < 2; k++) {
        iso_buf payload = {0};
        adapter_case c = {RANK, DIM, 0.1f, 50u + k, 0};
        make_container(&c, &payload);
        seal(g, &payload, (uint8_t)(k + 1), k + 1u, &s[k]);
        iso_buf_free(&payload);
    }
    for (int again = 0; again < 2; again++) {
        iso_json *tasks = iso_json_array(), *result = NULL;
        for (uint8_t k = 0; k < 2; k++) {
            iso_json *updates = iso_json_array();
            iso_json_push(updates, update_row(g, &s[k], g->site.public_key));
            iso_json_push(tasks, task_row((uint8_t)(k + 1), updates));
        }
        must(run_job(g, merge_job(g, tasks, methods), &result, &e), &e);
        must(iso_json_dump(result, ISO_JSON_PRETTY, &texts[again], &e), &e);
        iso_json_free(result);
    }
    assert_int_equal(texts[0].size, texts[1].size);
    assert_memory_equal(texts[0].data, texts[1].data, texts[0].size);
    for (int k = 0; k < 2; k++) {
        iso_buf_free(&texts[k]);
        iso_buf_free(&s[k].body);
    }
}

/* ---- the release key ---- */

static iso_err sign(const ground *g, uint64_t number, const char *gate, const iso_digest *candidate,
                    const iso_digest *file, iso_error *e)
{
    iso_manifest_file files[] = {{"adapter/adapter_config.json", 2, *file}};
    iso_manifest m = {.number = number,
                      .created_ms = 1,
                      .valid_until_ms = 2,
                      .method = "iso_cts",
                      .spectrum = "rank",
                      .files = files,
                      .file_count = 1,
                      .min_software = "0.1.0",
                      .generation_digest = g->generation};
    iso_buf text = {0};
    iso_digest digest;
    iso_error mine;
    memcpy(m.federation, g->federation, 16);
    if (number > 1) {
        m.previous_number = number - 1;
        memset(m.previous_digest.b, 1, sizeof m.previous_digest.b);
    }
    must(iso_manifest_format(&m, &text, &mine), &mine);
    must(iso_worker_put_blob(g->dir, &text, &digest, &mine), &mine);
    iso_buf_free(&text);
    iso_json *job = iso_json_object(), *result = NULL;
    iso_json_set(job, "format", iso_json_integer(1));
    iso_json_set(job, "kind", iso_json_string("sign"));
    iso_json_set(job, "job", iso_json_string("a"));
    iso_json_set(job, "number", iso_json_integer((int64_t)number));
    iso_json_set(job, "gate", iso_json_string(gate));
    iso_json_set(job, "manifest", iso_worker_hex(digest.b, sizeof digest.b));
    iso_json_set(job, "candidate", iso_worker_hex(candidate->b, sizeof candidate->b));
    iso_err err = run_job(g, job, &result, e);
    iso_json_free(result);
    return err;
}

static void A2_release_key_signs_only_the_next_number_of_a_passed_candidate(void **state)
{
    ground *g = *state;
    iso_error e;
    iso_minisign_key key;
    char path[160];
    must(iso_minisign_make(&key, &e), &e);
    snprintf(path, sizeof path, "%s/release/minisign.key", g->dir);
    must(iso_minisign_key_write(&key, path, NULL, &e), &e);
    iso_minisign_free(&key);

    iso_buf file = {0}, text = {0};
    iso_digest file_digest, candidate, other;
    must(iso_buf_append(&file, "{}", 2, &e), &e);
    must(iso_worker_put_blob(g->dir, &file, &file_digest, &e), &e);
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, file_digest.b, sizeof file_digest.b);
    must(iso_buf_printf(&text, &e,
                        "{\"files\":[{\"digest\":\"%s\",\"path\":\"adapter/adapter_config.json\","
                        "\"size\":2}],\"format\":1,\"kind\":\"candidate\"}\n",
                        hex),
         &e);
    must(iso_worker_put_blob(g->dir, &text, &candidate, &e), &e);
    memset(other.b, 5, sizeof other.b);

    assert_int_equal(sign(g, 1, "held", &candidate, &file_digest, &e), ISO_ERR_TRUST);
    assert_int_equal(sign(g, 2, "passed", &candidate, &file_digest, &e), ISO_ERR_TRUST);
    assert_int_equal(sign(g, 1, "passed", &candidate, &other, &e), ISO_ERR_TRUST);
    must(sign(g, 1, "passed", &candidate, &file_digest, &e), &e);
    must(sign(g, 1, "passed", &candidate, &file_digest, &e), &e); /* run again after a kill */
    assert_int_equal(sign(g, 3, "passed", &candidate, &file_digest, &e), ISO_ERR_TRUST);
    must(sign(g, 2, "passed", &candidate, &file_digest, &e), &e);
    assert_int_equal(sign(g, 1, "passed", &candidate, &file_digest, &e), ISO_ERR_TRUST);
    iso_buf_free(&file);
    iso_buf_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(S37_verdicts_after_acknowledgement, set_up, tear_down),
        cmocka_unit_test_setup_teardown(U88_mean_of_products_and_single_task_unchanged, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_task_is_aggregated_by_its_rule_from_four_updates_on,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(I8_same_job_gives_same_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            A2_release_key_signs_only_the_next_number_of_a_passed_candidate, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
