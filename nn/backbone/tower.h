/* Image towers: patches and leading tokens with their positions, an encoder, the classifiers that
 * came along. What ViT, DeiT, DINOv2 and CLIP have in common; each family says how it calls its
 * tensors. */
#ifndef ISO_NN_BACKBONE_TOWER_H
#define ISO_NN_BACKBONE_TOWER_H

#include "nn/backbone/load.h"

enum { ISO_TOWER_HEADS = 2 };

typedef struct {
    iso_encoder encoder; /* first: iso_backbone_load */
    iso_packed projection;
    const float *projection_bias; /* NULL: none */
    const float *lead;            /* (lead, dim), positions added */
    const float *position;        /* (patches, dim) */
    iso_norm stem;                /* over the embedded tokens; w NULL: none */
    size_t head_count;
    iso_packed head[ISO_TOWER_HEADS]; /* their logits are averaged */
    const float *head_bias[ISO_TOWER_HEADS];
    size_t head_token[ISO_TOWER_HEADS];
    bool takes_patches; /* the head reads the class token and the mean of the patches */
} iso_tower;

/* A leading token, or several. */
typedef struct {
    const char *name; /* NULL ends a list */
    int ndim;         /* 1: (dim), 2: (rows, dim), 3: (1, rows, dim) */
    size_t rows;
    bool has_position;
} iso_lead;

typedef struct {
    const iso_lead *lead;
    const char *position; /* table of positions: those of the leading tokens, then the patches */
    int position_ndim;
    const char *patch; /* `patch`.weight and, with patch_bias, `patch`.bias */
    bool patch_bias;
} iso_embedding_names;

/* Positions of another grid than the table's are interpolated bicubically (a = -0.75, centres of
 * pixels aligned), as the published models do for other image sizes. */
iso_err iso_tower_embedding(const iso_reader *r, const iso_backbone_shape *s,
                            const iso_embedding_names *names, iso_tower *t,
                            iso_error *e) ISO_MUST_CHECK;
/* A classifier `name` that reads token `token`, if it is there; sets the shape's classes. */
iso_err iso_tower_head(const iso_reader *r, iso_backbone_shape *s, iso_tower *t, const char *name,
                       size_t token, iso_error *e) ISO_MUST_CHECK;

/* (n, n, dim) from (m, m, dim). */
void iso_tower_interpolate(const float *table, size_t m, size_t n, size_t dim, float *out);

/* A family's functions. */
size_t iso_tower_workspace(const iso_backbone *b, const iso_pass *p, size_t images);
float *iso_tower_input(const iso_backbone *b, const iso_pass *p, float *workspace);
void iso_tower_embed(const iso_backbone *b, const iso_pass *p, const float *pixels, size_t images,
                     float *workspace, float *hidden);
void iso_tower_forward(const iso_backbone *b, const iso_pass *p, size_t images, float *workspace,
                       float *out);
void iso_tower_backward(const iso_backbone *b, const iso_pass *p, const iso_backward *w,
                        size_t images, float *workspace, const float *dout);
void iso_tower_classify(const iso_backbone *b, const float *out, size_t n, float *logits);

#endif
