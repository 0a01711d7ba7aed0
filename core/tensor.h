/* Tensors as views: type, shape, where the bytes lie. Row-major and dense. */
#ifndef ISO_CORE_TENSOR_H
#define ISO_CORE_TENSOR_H

#include "core/mem.h"

enum { ISO_MAX_RANK = 8 };

/* The numbers go into digests: append only. */
typedef enum {
    ISO_F64,
    ISO_F32,
    ISO_F16,
    ISO_BF16,
    ISO_I64,
    ISO_I32,
    ISO_I16,
    ISO_I8,
    ISO_U8,
    ISO_BOOL,
    ISO_DTYPE_COUNT
} iso_dtype;

typedef struct {
    iso_dtype dtype;
    int ndim;
    size_t shape[ISO_MAX_RANK];
    const void *data; /* not owned; may be unaligned (a mapped file): read through the functions */
} iso_tensor;

size_t iso_dtype_bytes(iso_dtype t);
const char *iso_dtype_name(iso_dtype t); /* safetensors' names: F32, BF16, ... */
bool iso_dtype_parse(const char *name, iso_dtype *out);

size_t iso_tensor_count(const iso_tensor *t); /* product of the shape; checked when it was made */
size_t iso_tensor_bytes(const iso_tensor *t);
bool iso_tensor_same_shape(const iso_tensor *a, const iso_tensor *b);
/* "3x4x5" into out. */
void iso_shape_text(const iso_tensor *t, char *out, size_t out_bytes);

/* Element conversion; n elements from any float type. F64/F32/F16/BF16 only, else ISO_ERR_SHAPE. */
iso_err iso_tensor_to_f32(const iso_tensor *t, float *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_tensor_to_f64(const iso_tensor *t, double *out, iso_error *e) ISO_MUST_CHECK;
/* Rounds to nearest even; out has iso_dtype_bytes(t) * n bytes. */
iso_err iso_f32_to(iso_dtype t, const float *in, size_t n, void *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_f64_to(iso_dtype t, const double *in, size_t n, void *out, iso_error *e) ISO_MUST_CHECK;

float iso_bf16_to_f32(uint16_t v);
uint16_t iso_f32_to_bf16(float v);
float iso_f16_to_f32(uint16_t v);
uint16_t iso_f32_to_f16(float v);

/* Index of the first NaN or Inf of a float tensor, or SIZE_MAX. */
size_t iso_tensor_find_nonfinite(const iso_tensor *t);

#endif
