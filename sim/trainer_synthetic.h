/* The planted problem behind the synthetic trainer (DESIGN 7): learning without a network.
 *
 * Every task t has planted updates W*_t = B*_t A*_t of rank r, one a layer, with equal singular
 * values, and inputs that lie in a subspace P_t of 2 r dimensions; `overlap` says how much of it
 * all tasks share. An adapter D is as good
 * as it acts like the planted one on the task's inputs:
 *   error(D, t)    = sum |(D - W*_t) P_t|^2 / sum |W*_t P_t|^2     (sums over the layers)
 *   accuracy(D, t) = probe + (top - probe) (1 - error), not below chance
 * so D = 0 gives the probe, the optimum D = W*_t on P_t is known, and what one task's update does
 * on the inputs of another costs the other: merge methods differ, as they do on real tasks. A site
 * with n images learns B* and A* with noise of size noise / sqrt(n).
 *
 * Files: "ISYN", u32 version, u32 layers, u32 width; per layer u32 rank, f32 scale, A (rank,
 * width), B (width, rank) as float32, little-endian; then padding. A head is "ISYH" and eight
 * floats. */
#ifndef ISO_SIM_TRAINER_SYNTHETIC_H
#define ISO_SIM_TRAINER_SYNTHETIC_H

#include "core/peft.h"
#include "core/trainer.h"

enum { ISO_SYNTH_LAYERS_MAX = 8 };

typedef struct {
    uint64_t seed;
    uint32_t width, rank, layers;
    double noise, overlap;
    double chance, probe, top; /* accuracies */
    uint64_t payload_bytes;    /* containers are padded to this */
} iso_synth_options;

typedef struct iso_synth iso_synth;
iso_err iso_synth_open(iso_synth **out, const iso_synth_options *o, size_t tasks, iso_error *e);
void iso_synth_close(iso_synth *y); /* NULL is fine */

typedef enum { /* what a malicious site makes of its adapter */
               ISO_SPOIL_NOT,
               ISO_SPOIL_NAN,
               ISO_SPOIL_HUGE,
               ISO_SPOIL_ZERO,
               ISO_SPOIL_SHAPE,
               ISO_SPOIL_SIGN /* turned around: hurts, and no check of form finds it */
} iso_spoil;

/* Container of a site's update of a round; appended to `out`. site names the site's own noise;
 * share: how far from zero to the optimum the steps come (1: all the way). */
iso_err iso_synth_train(const iso_synth *y, size_t task, uint64_t site, uint64_t round,
                        uint64_t samples, double share, iso_spoil spoil, iso_buf *out,
                        iso_error *e) ISO_MUST_CHECK;
iso_err iso_synth_head(const iso_synth *y, size_t task, uint64_t site, iso_buf *out,
                       iso_error *e) ISO_MUST_CHECK;

/* Views into `bytes`, which must outlive them. *count layers; ISO_ERR_DATA with the reason. */
iso_err iso_synth_parse(const void *bytes, size_t size, iso_lora_layer *layers, size_t max,
                        size_t *count, iso_error *e) ISO_MUST_CHECK;
iso_err iso_synth_write(const iso_lora_layer *layers, size_t count, iso_buf *out,
                        iso_error *e) ISO_MUST_CHECK;
size_t iso_synth_width(const iso_synth *y);
size_t iso_synth_layers(const iso_synth *y);

/* error(D, t); layers NULL: D = 0. */
double iso_synth_error(const iso_synth *y, size_t task, const iso_lora_layer *layers, size_t count);
/* Accuracy measured on `samples` images of a site: the true one with binomial noise that follows
 * from (site, what). refitted: with the head fitted again on the merged features. */
iso_score_pair iso_synth_score(const iso_synth *y, double error, uint64_t site, uint64_t what,
                               uint64_t samples);

#endif
