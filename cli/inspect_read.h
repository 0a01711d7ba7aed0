/* What a file is: adapters, backbones, tensors, releases, keys; read into JSON and spectra. */
#ifndef ISO_CLI_INSPECT_READ_H
#define ISO_CLI_INSPECT_READ_H

#include "core/json.h"
#include "core/mem.h"

typedef struct {
    const char *name; /* layer or tensor */
    double *S;        /* singular values, descending */
    size_t count;
    double norm;
} iso_spectrum;

typedef struct {
    const char *path;
    iso_json *json; /* "kind" and what belongs to it; parts under "layers" or "tensors" */
    iso_spectrum *spectra;
    size_t count;
    iso_arena arena;
} iso_inspected;

/* want_spectra: also of whole two-dimensional tensors (an SVD each); adapters always have them. */
iso_err iso_inspect(const char *path, bool want_spectra, iso_inspected *out,
                    iso_error *e) ISO_MUST_CHECK;
void iso_inspected_free(iso_inspected *i);

#endif
