#include "sim/trainer_synthetic.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct iso_synth {
    iso_synth_options o;
    size_t tasks, inputs; /* columns of P */
    float *B, *A, *P;     /* tasks x layers x (w, r), (r, w); tasks x (w, inputs) */
    double *scale;        /* tasks: sum |W* P|^2 */
    iso_arena arena;
};

static const char *const module_names[ISO_SYNTH_LAYERS_MAX] = {
    "layer.0", "layer.1", "layer.2", "layer.3", "layer.4", "layer.5", "layer.6", "layer.7"};

static float *b_of(const iso_synth *y, size_t task, size_t layer)
{
    return y->B + (task * y->o.layers + layer) * y->o.width * y->o.rank;
}

static float *a_of(const iso_synth *y, size_t task, size_t layer)
{
    return y->A + (task * y->o.layers + layer) * y->o.width * y->o.rank;
}

static const float *p_of(const iso_synth *y, size_t task)
{
    return y->P + task * y->o.width * y->inputs;
}

/* Orthonormal columns by Gram-Schmidt, twice for safety; (w, n) row-major. */
static void orthonormalise(float *P, size_t w, size_t n)
{
    for (size_t j = 0; j < n; j++)
        for (int pass = 0; pass < 2; pass++) {
            for (size_t k = 0; k < j; k++) {
                double dot = 0.0;
                for (size_t i = 0; i < w; i++)
                    dot += (double)P[i * n + j] * (double)P[i * n + k];
                for (size_t i = 0; i < w; i++)
                    P[i * n + j] -= (float)dot * P[i * n + k];
            }
            double norm = 0.0;
            for (size_t i = 0; i < w; i++)
                norm += (double)P[i * n + j] * (double)P[i * n + j];
            norm = sqrt(norm) + 1e-30;
            for (size_t i = 0; i < w; i++)
                P[i * n + j] = (float)((double)P[i * n + j] / norm);
        }
}

/* sum |(D - W*) P|^2 of one layer; A, B NULL: D = 0; s the scale of D. */
static double layer_error(const iso_synth *y, size_t task, size_t layer, const iso_lora_layer *d)
{
    size_t w = y->o.width, r = y->o.rank, n = y->inputs;
    const float *B = b_of(y, task, layer), *A = a_of(y, task, layer), *P = p_of(y, task);
    double sum = 0.0;
    double own[64], other[256];
    for (size_t j = 0; j < n; j++) {
        for (size_t k = 0; k < r; k++) {
            own[k] = 0.0;
            for (size_t i = 0; i < w; i++)
                own[k] += (double)A[k * w + i] * (double)P[i * n + j];
        }
        size_t rank = d ? d->rank : 0;
        for (size_t k = 0; k < rank; k++) {
            other[k] = 0.0;
            for (size_t i = 0; i < w; i++)
                other[k] += (double)d->A[k * w + i] * (double)P[i * n + j];
        }
        for (size_t i = 0; i < w; i++) {
            double v = 0.0, u = 0.0;
            for (size_t k = 0; k < r; k++)
                v += (double)B[i * r + k] * own[k];
            for (size_t k = 0; k < rank; k++)
                u += (double)d->B[i * rank + k] * other[k];
            double diff = (d ? d->scale * u : 0.0) - v;
            sum += diff * diff;
        }
    }
    return sum;
}

static void plant(iso_synth *y, const float *shared)
{
    size_t w = y->o.width, r = y->o.rank, n = y->inputs;
    double common = sqrt(y->o.overlap), own = sqrt(1.0 - y->o.overlap);
    for (size_t t = 0; t < y->tasks; t++) {
        iso_rng g = iso_rng_make(y->o.seed, ISO_RNG_SIM_TRAINER, 1 + t);
        float *P = y->P + t * w * n;
        for (size_t i = 0; i < w * n; i++)
            P[i] = (float)(common * (double)shared[i] + own * iso_rng_normal(&g));
        orthonormalise(P, w, n);
        y->scale[t] = 0.0;
        for (size_t l = 0; l < y->o.layers; l++) {
            float *B = b_of(y, t, l), *A = a_of(y, t, l);
            for (size_t i = 0; i < w * r; i++)
                B[i] = (float)iso_rng_normal(&g);
            orthonormalise(B, w, r);
            float mix[64 * 128]; /* (inputs, r): which inputs the rows of A look at */
            for (size_t i = 0; i < n * r; i++)
                mix[i] = (float)iso_rng_normal(&g);
            orthonormalise(mix, n, r);
            for (size_t k = 0; k < r; k++)
                for (size_t i = 0; i < w; i++) {
                    double v = 0.0;
                    for (size_t j = 0; j < n; j++)
                        v += (double)mix[j * r + k] * (double)P[i * n + j];
                    A[k * w + i] = (float)v;
                }
            y->scale[t] += layer_error(y, t, l, NULL);
        }
    }
}

iso_err iso_synth_open(iso_synth **out, const iso_synth_options *o, size_t tasks, iso_error *e)
{
    iso_synth *y = iso_calloc(1, sizeof *y);
    *out = NULL;
    if (!y)
        return iso_nomem(e, sizeof *y);
    y->o = *o;
    y->tasks = tasks;
    y->inputs = 2 * o->rank;
    size_t factors = tasks * o->layers * o->width * o->rank;
    y->B = iso_arena_calloc(&y->arena, factors, sizeof(float));
    y->A = iso_arena_calloc(&y->arena, factors, sizeof(float));
    y->P = iso_arena_calloc(&y->arena, tasks * o->width * y->inputs, sizeof(float));
    y->scale = iso_arena_calloc(&y->arena, tasks, sizeof(double));
    float *shared = iso_arena_calloc(&y->arena, o->width * y->inputs, sizeof(float));
    if (!y->B || !y->A || !y->P || !y->scale || !shared) {
        iso_synth_close(y);
        return iso_nomem(e, factors * sizeof(float));
    }
    iso_rng g = iso_rng_make(o->seed, ISO_RNG_SIM_TRAINER, 0);
    for (size_t i = 0; i < o->width * y->inputs; i++)
        shared[i] = (float)iso_rng_normal(&g);
    plant(y, shared);
    *out = y;
    return ISO_OK;
}

void iso_synth_close(iso_synth *y)
{
    if (!y)
        return;
    iso_arena_free(&y->arena);
    free(y);
}

size_t iso_synth_width(const iso_synth *y)
{
    return y->o.width;
}

size_t iso_synth_layers(const iso_synth *y)
{
    return y->o.layers;
}

/* ---- files ---- */

enum { HEAD_BYTES = 16, LAYER_BYTES = 8, PARSED_RANK_MAX = 256 };

static iso_err begin_file(iso_buf *out, size_t layers, size_t width, iso_error *e)
{
    uint8_t head[HEAD_BYTES] = "ISYN";
    iso_put_u32(head + 4, 1);
    iso_put_u32(head + 8, (uint32_t)layers);
    iso_put_u32(head + 12, (uint32_t)width);
    return iso_buf_append(out, head, sizeof head, e);
}

static void begin_layer(iso_buf *out, size_t rank, double scale)
{
    float s = (float)scale;
    uint32_t bits;
    memcpy(&bits, &s, sizeof bits);
    iso_put_u32(out->data + out->size, (uint32_t)rank);
    iso_put_u32(out->data + out->size + 4, bits);
    out->size += LAYER_BYTES;
}

iso_err iso_synth_write(const iso_lora_layer *layers, size_t count, iso_buf *out, iso_error *e)
{
    iso_err err = begin_file(out, count, count ? layers[0].in : 0, e);
    for (size_t l = 0; l < count && !err; l++) {
        size_t n = layers[l].rank * layers[l].in;
        err = iso_buf_reserve(out, LAYER_BYTES + 2 * n * sizeof(float), e);
        if (err)
            break;
        begin_layer(out, layers[l].rank, layers[l].scale);
        if (n) {
            memcpy(out->data + out->size, layers[l].A, n * sizeof(float));
            memcpy(out->data + out->size + n * sizeof(float), layers[l].B, n * sizeof(float));
        }
        out->size += 2 * n * sizeof(float);
    }
    return err;
}

iso_err iso_synth_parse(const void *bytes, size_t size, iso_lora_layer *layers, size_t max,
                        size_t *count, iso_error *e)
{
    const uint8_t *p = bytes;
    *count = 0;
    if (size < HEAD_BYTES || memcmp(p, "ISYN", 4) != 0 || iso_get_u32(p + 4) != 1)
        return iso_fail(e, ISO_ERR_DATA, "no synthetic adapter");
    size_t n = iso_get_u32(p + 8), width = iso_get_u32(p + 12), at = HEAD_BYTES;
    if (n > max || width == 0 || width > 256)
        return iso_fail(e, ISO_ERR_DATA, "%zu layers of width %zu", n, width);
    for (size_t l = 0; l < n; l++) {
        if (size - at < LAYER_BYTES)
            return iso_fail(e, ISO_ERR_DATA, "layer %zu is cut", l);
        size_t rank = iso_get_u32(p + at);
        uint32_t bits = iso_get_u32(p + at + 4);
        float scale;
        memcpy(&scale, &bits, sizeof scale);
        at += LAYER_BYTES;
        if (rank > PARSED_RANK_MAX || (size - at) / (2 * sizeof(float)) < rank * width)
            return iso_fail(e, ISO_ERR_DATA, "layer %zu of rank %zu is cut", l, rank);
        float *A = (float *)(uintptr_t)(p + at);
        layers[l] = (iso_lora_layer){.module = (char *)(uintptr_t)module_names[l],
                                     .out = width,
                                     .in = width,
                                     .rank = rank,
                                     .scale = (double)scale,
                                     .A = A,
                                     .B = A + rank * width};
        at += 2 * rank * width * sizeof(float);
    }
    *count = n;
    return ISO_OK;
}

/* ---- learning ---- */

/* About normal: the sum of two uniforms, scaled; four values from one block of the generator. */
static void noise(iso_rng *g, float *out, size_t n, double size)
{
    uint32_t w[4] = {0};
    for (size_t i = 0; i < n; i++) {
        if (i % 4 == 0)
            iso_rng_block(g, g->index++, w);
        uint32_t x = w[i % 4];
        double u = ((double)(x & 0xffff) + (double)(x >> 16)) / 65535.0 - 1.0; /* variance 1/6 */
        out[i] += (float)(2.4494897427831781 * size * u);
    }
}

static void spoil_layer(float *A, float *B, size_t n, iso_spoil spoil)
{
    for (size_t i = 0; i < n; i++) {
        if (spoil == ISO_SPOIL_HUGE)
            B[i] *= 1e6f;
        if (spoil == ISO_SPOIL_ZERO)
            B[i] = 0.0f;
        if (spoil == ISO_SPOIL_SIGN)
            B[i] = -3.0f * B[i];
    }
    if (spoil == ISO_SPOIL_NAN)
        A[n / 2] = NAN;
}

iso_err iso_synth_train(const iso_synth *y, size_t task, uint64_t site, uint64_t round,
                        uint64_t samples, double share, iso_spoil spoil, iso_buf *out, iso_error *e)
{
    size_t r = y->o.rank, n = y->o.width * r, first = out->size;
    size_t layers = spoil == ISO_SPOIL_SHAPE ? y->o.layers - 1 : y->o.layers;
    iso_rng g = iso_rng_make(y->o.seed ^ (site * 0x9e3779b97f4a7c15u), ISO_RNG_SIM_TRAINER,
                             (round << 16) + 1000 + task);
    double size = y->o.noise / sqrt((double)(samples ? samples : 1));
    iso_err err = begin_file(out, layers, y->o.width, e);
    for (size_t l = 0; l < layers && !err; l++) {
        err = iso_buf_reserve(out, LAYER_BYTES + 2 * n * sizeof(float), e);
        if (err)
            break;
        begin_layer(out, r, share);
        float *A = (float *)(void *)(out->data + out->size), *B = A + n;
        memcpy(A, a_of(y, task, l), n * sizeof(float));
        memcpy(B, b_of(y, task, l), n * sizeof(float));
        noise(&g, A, 2 * n, size); /* A and B stand together */
        spoil_layer(A, B, n, spoil);
        out->size += 2 * n * sizeof(float);
    }
    size_t used = out->size - first;
    if (!err && y->o.payload_bytes > used) {
        size_t more = (size_t)y->o.payload_bytes - used;
        err = iso_buf_reserve(out, more, e);
        if (!err) {
            memset(out->data + out->size, (int)(site & 0xff), more);
            out->size += more;
        }
    }
    return err;
}

iso_err iso_synth_head(const iso_synth *y, size_t task, uint64_t site, iso_buf *out, iso_error *e)
{
    uint8_t head[4 + 8 * sizeof(float)] = "ISYH";
    float values[8];
    iso_rng g = iso_rng_make(y->o.seed, ISO_RNG_SIM_TRAINER, 500 + task);
    for (int i = 0; i < 8; i++)
        values[i] = (float)iso_rng_normal(&g);
    g = iso_rng_make(y->o.seed ^ site, ISO_RNG_SIM_TRAINER, 600 + task);
    noise(&g, values, 8, 0.1);
    memcpy(head + 4, values, sizeof values);
    return iso_buf_append(out, head, sizeof head, e);
}

/* ---- scores ---- */

double iso_synth_error(const iso_synth *y, size_t task, const iso_lora_layer *layers, size_t count)
{
    double sum = 0.0;
    for (size_t l = 0; l < y->o.layers; l++)
        sum += layer_error(y, task, l, l < count ? &layers[l] : NULL);
    return sum / y->scale[task];
}

static double accuracy(const iso_synth *y, double error)
{
    double a = y->o.probe + (y->o.top - y->o.probe) * (1.0 - error);
    return isfinite(a) && a > y->o.chance ? a : y->o.chance;
}

static iso_score measured(double p, uint64_t *random, uint64_t samples)
{
    *random = (*random ^ (*random >> 31)) * 0xd6e8feb86659fd93u;
    *random ^= *random >> 32;
    double u = ((double)(*random & 0xffffffffu) + (double)(*random >> 32)) / 4294967295.0 - 1.0;
    double v = p + 2.4494897427831781 * u * sqrt(p * (1.0 - p) / (double)samples);
    double whole = round(v * (double)samples) / (double)samples; /* images are right or wrong */
    whole = whole < 0.0 ? 0.0 : whole > 1.0 ? 1.0 : whole;
    return (iso_score){.is_known = true, .value = (float)whole, .samples = samples};
}

iso_score_pair iso_synth_score(const iso_synth *y, double error, uint64_t site, uint64_t what,
                               uint64_t samples)
{
    uint64_t random = (site + 1) * 0x9e3779b97f4a7c15u ^ what;
    iso_score_pair s = {0};
    if (samples == 0)
        return s;
    /* A refit wins back part of what interference costs; on frozen features it changes nothing. */
    double refit = error < 1.0 ? error - 0.5 * error * (1.0 - error) : error;
    s.delivered = measured(accuracy(y, error), &random, samples);
    s.refitted = measured(accuracy(y, refit), &random, samples);
    return s;
}
