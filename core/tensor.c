/* Tensors as views: sizes, names, conversion between the float types.
 * Every read goes through memcpy, since a mapped file may hold its data at any address; the
 * compiler turns that into unaligned vector loads. Conversions are written without branches so
 * that the loops vectorise; they round to nearest even and keep NaN. */
#include "core/tensor.h"

#include "core/simd.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    size_t bytes;
} types[ISO_DTYPE_COUNT] = {
    [ISO_F64] = {"F64", 8},   [ISO_F32] = {"F32", 4}, [ISO_F16] = {"F16", 2},
    [ISO_BF16] = {"BF16", 2}, [ISO_I64] = {"I64", 8}, [ISO_I32] = {"I32", 4},
    [ISO_I16] = {"I16", 2},   [ISO_I8] = {"I8", 1},   [ISO_U8] = {"U8", 1},
    [ISO_BOOL] = {"BOOL", 1},
};

size_t iso_dtype_bytes(iso_dtype t)
{
    return types[t].bytes;
}

const char *iso_dtype_name(iso_dtype t)
{
    return types[t].name;
}

bool iso_dtype_parse(const char *name, iso_dtype *out)
{
    for (int t = 0; t < ISO_DTYPE_COUNT; t++)
        if (!strcmp(name, types[t].name)) {
            *out = (iso_dtype)t;
            return true;
        }
    return false;
}

size_t iso_tensor_count(const iso_tensor *t)
{
    size_t n = 1;
    for (int i = 0; i < t->ndim; i++)
        n *= t->shape[i];
    return n;
}

size_t iso_tensor_bytes(const iso_tensor *t)
{
    return iso_tensor_count(t) * iso_dtype_bytes(t->dtype);
}

bool iso_tensor_same_shape(const iso_tensor *a, const iso_tensor *b)
{
    if (a->ndim != b->ndim)
        return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->shape[i] != b->shape[i])
            return false;
    return true;
}

void iso_shape_text(const iso_tensor *t, char *out, size_t out_bytes)
{
    if (!out_bytes)
        return;
    if (t->ndim == 0) {
        snprintf(out, out_bytes, "scalar");
        return;
    }
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < t->ndim && used < out_bytes; i++) {
        int n = snprintf(out + used, out_bytes - used, "%s%zu", i ? "x" : "", t->shape[i]);
        used += (size_t)n;
    }
}

/* ---- one value ---- */

static inline uint32_t bits_of(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static inline float float_of(uint32_t u)
{
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

static inline float bf16_to_f32(uint16_t v)
{
    return float_of((uint32_t)v << 16);
}

static inline uint16_t f32_to_bf16(float v)
{
    uint32_t u = bits_of(v);
    uint32_t rounded = (u + 0x7FFFu + (u >> 16 & 1u)) >> 16;
    uint32_t nan = u >> 16 | 0x40u; /* quiet: a payload in the low half must not become Inf */
    return (uint16_t)((u & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

static inline float f16_to_f32(uint16_t v)
{
    uint32_t sign = (uint32_t)(v & 0x8000u) << 16;
    uint32_t a = v & 0x7FFFu;
    uint32_t normal = (a << 13) + (112u << 23); /* rebias 15 -> 127 */
    uint32_t special = a << 13 | 0x7F800000u;
    uint32_t tiny = bits_of((float)(int32_t)a * 0x1p-24f);
    uint32_t u = a >= 0x7C00u ? special : a >= 0x400u ? normal : tiny;
    return float_of(sign | u);
}

static inline uint16_t f32_to_f16(float v)
{
    uint32_t u = bits_of(v), sign = u >> 16 & 0x8000u, a = u & 0x7FFFFFFFu;
    uint32_t rebased = a - (112u << 23);
    uint32_t normal = (rebased + 0xFFFu + (rebased >> 13 & 1u)) >> 13;
    /* Adding 0.5 aligns the last mantissa bit with 2^-24, the step of subnormal halves; the
     * processor's addition does the rounding. */
    uint32_t tiny = bits_of(float_of(a) + 0.5f) - (126u << 23);
    uint32_t nan = 0x7E00u | (a >> 13 & 0x3FFu);
    uint32_t h = a > 0x7F800000u    ? nan
                 : a >= 0x477FF000u ? 0x7C00u /* from 65520 on: Inf */
                 : a >= 0x38800000u ? normal
                                    : tiny;
    return (uint16_t)(sign | h);
}

/* Round to odd: an inexact result gets its last bit set, so that a second rounding to fewer bits
 * gives what one rounding of the double would have given. */
static inline float f64_to_f32_odd(double v)
{
    float f = (float)v;
    uint32_t u = bits_of(f);
    double back = (double)f;
    bool is_exact = back == v || v != v;
    bool is_beyond = (back < 0 ? -back : back) > (v < 0 ? -v : v);
    return float_of(is_exact ? u : (u - is_beyond) | 1u);
}

float iso_bf16_to_f32(uint16_t v)
{
    return bf16_to_f32(v);
}

uint16_t iso_f32_to_bf16(float v)
{
    return f32_to_bf16(v);
}

float iso_f16_to_f32(uint16_t v)
{
    return f16_to_f32(v);
}

uint16_t iso_f32_to_f16(float v)
{
    return f32_to_f16(v);
}

/* ---- loops: one a pair of types ---- */

ISO_CLONES static void bf16_to_f32_n(const uint8_t *in, size_t n, float *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, in + 2 * i, sizeof v);
        out[i] = bf16_to_f32(v);
    }
}

ISO_CLONES static void f16_to_f32_n(const uint8_t *in, size_t n, float *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, in + 2 * i, sizeof v);
        out[i] = f16_to_f32(v);
    }
}

ISO_CLONES static void f64_to_f32_n(const uint8_t *in, size_t n, float *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        double v;
        memcpy(&v, in + 8 * i, sizeof v);
        out[i] = (float)v;
    }
}

ISO_CLONES static void f32_to_f64_n(const uint8_t *in, size_t n, double *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float v;
        memcpy(&v, in + 4 * i, sizeof v);
        out[i] = (double)v;
    }
}

ISO_CLONES static void bf16_to_f64_n(const uint8_t *in, size_t n, double *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, in + 2 * i, sizeof v);
        out[i] = (double)bf16_to_f32(v);
    }
}

ISO_CLONES static void f16_to_f64_n(const uint8_t *in, size_t n, double *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, in + 2 * i, sizeof v);
        out[i] = (double)f16_to_f32(v);
    }
}

ISO_CLONES static void f32_to_bf16_n(const float *in, size_t n, uint8_t *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v = f32_to_bf16(in[i]);
        memcpy(out + 2 * i, &v, sizeof v);
    }
}

ISO_CLONES static void f32_to_f16_n(const float *in, size_t n, uint8_t *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v = f32_to_f16(in[i]);
        memcpy(out + 2 * i, &v, sizeof v);
    }
}

ISO_CLONES static void f64_to_bf16_n(const double *in, size_t n, uint8_t *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v = f32_to_bf16(f64_to_f32_odd(in[i]));
        memcpy(out + 2 * i, &v, sizeof v);
    }
}

ISO_CLONES static void f64_to_f16_n(const double *in, size_t n, uint8_t *out)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        uint16_t v = f32_to_f16(f64_to_f32_odd(in[i]));
        memcpy(out + 2 * i, &v, sizeof v);
    }
}

static iso_err not_float(iso_error *e, iso_dtype t)
{
    return iso_fail(e, ISO_ERR_SHAPE, "type %s; expected F32, F64, F16 or BF16", iso_dtype_name(t));
}

/* memcpy with null pointers is undefined even for no bytes; an empty tensor may have them. */
static void copy(void *out, const void *in, size_t bytes)
{
    if (bytes)
        memcpy(out, in, bytes);
}

iso_err iso_tensor_to_f32(const iso_tensor *t, float *out, iso_error *e)
{
    size_t n = iso_tensor_count(t);
    switch (t->dtype) {
    case ISO_F32:
        copy(out, t->data, n * sizeof *out);
        return ISO_OK;
    case ISO_F64:
        f64_to_f32_n(t->data, n, out);
        return ISO_OK;
    case ISO_F16:
        f16_to_f32_n(t->data, n, out);
        return ISO_OK;
    case ISO_BF16:
        bf16_to_f32_n(t->data, n, out);
        return ISO_OK;
    default:
        return not_float(e, t->dtype);
    }
}

iso_err iso_tensor_to_f64(const iso_tensor *t, double *out, iso_error *e)
{
    size_t n = iso_tensor_count(t);
    switch (t->dtype) {
    case ISO_F64:
        copy(out, t->data, n * sizeof *out);
        return ISO_OK;
    case ISO_F32:
        f32_to_f64_n(t->data, n, out);
        return ISO_OK;
    case ISO_F16:
        f16_to_f64_n(t->data, n, out);
        return ISO_OK;
    case ISO_BF16:
        bf16_to_f64_n(t->data, n, out);
        return ISO_OK;
    default:
        return not_float(e, t->dtype);
    }
}

iso_err iso_f32_to(iso_dtype t, const float *in, size_t n, void *out, iso_error *e)
{
    switch (t) {
    case ISO_F32:
        copy(out, in, n * sizeof *in);
        return ISO_OK;
    case ISO_F64:
        for (size_t i = 0; i < n; i++) {
            double v = (double)in[i];
            memcpy((uint8_t *)out + 8 * i, &v, sizeof v);
        }
        return ISO_OK;
    case ISO_F16:
        f32_to_f16_n(in, n, out);
        return ISO_OK;
    case ISO_BF16:
        f32_to_bf16_n(in, n, out);
        return ISO_OK;
    default:
        return not_float(e, t);
    }
}

iso_err iso_f64_to(iso_dtype t, const double *in, size_t n, void *out, iso_error *e)
{
    switch (t) {
    case ISO_F64:
        copy(out, in, n * sizeof *in);
        return ISO_OK;
    case ISO_F32:
        for (size_t i = 0; i < n; i++) {
            float v = (float)in[i];
            memcpy((uint8_t *)out + 4 * i, &v, sizeof v);
        }
        return ISO_OK;
    case ISO_F16:
        f64_to_f16_n(in, n, out);
        return ISO_OK;
    case ISO_BF16:
        f64_to_bf16_n(in, n, out);
        return ISO_OK;
    default:
        return not_float(e, t);
    }
}

/* ---- NaN and Inf: an exponent of all ones ---- */

ISO_CLONES static uint32_t count_special_16(const uint8_t *in, size_t n, uint32_t mask)
{
    uint32_t found = 0;
#pragma omp simd reduction(+ : found)
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, in + 2 * i, sizeof v);
        found += (v & mask) == mask;
    }
    return found;
}

ISO_CLONES static uint32_t count_special_32(const uint8_t *in, size_t n)
{
    uint32_t found = 0;
#pragma omp simd reduction(+ : found)
    for (size_t i = 0; i < n; i++) {
        uint32_t v;
        memcpy(&v, in + 4 * i, sizeof v);
        found += (v & 0x7F800000u) == 0x7F800000u;
    }
    return found;
}

ISO_CLONES static uint32_t count_special_64(const uint8_t *in, size_t n)
{
    uint32_t found = 0;
#pragma omp simd reduction(+ : found)
    for (size_t i = 0; i < n; i++) {
        uint64_t v;
        memcpy(&v, in + 8 * i, sizeof v);
        found += (v & 0x7FF0000000000000u) == 0x7FF0000000000000u;
    }
    return found;
}

static uint32_t count_special(iso_dtype t, const uint8_t *in, size_t n)
{
    switch (t) {
    case ISO_F64:
        return count_special_64(in, n);
    case ISO_F32:
        return count_special_32(in, n);
    case ISO_F16:
        return count_special_16(in, n, 0x7C00u);
    case ISO_BF16:
        return count_special_16(in, n, 0x7F80u);
    default:
        return 0;
    }
}

size_t iso_tensor_find_nonfinite(const iso_tensor *t)
{
    enum { BLOCK = 4096 };
    const uint8_t *p = t->data;
    size_t n = iso_tensor_count(t), bytes = iso_dtype_bytes(t->dtype);
    for (size_t begin = 0; begin < n; begin += BLOCK) {
        size_t end = n - begin < BLOCK ? n : begin + BLOCK;
        if (!count_special(t->dtype, p + begin * bytes, end - begin))
            continue;
        for (size_t i = begin; i < end; i++)
            if (count_special(t->dtype, p + i * bytes, 1))
                return i;
    }
    return SIZE_MAX;
}
