/* Connectionist temporal classification: the loss of a label sequence under frame-wise logits, and
 * what a model says by its logits. Graves et al. 2006; specs/factorization.md 5. Double inside. */
#ifndef ISO_NN_HEAD_CTC_H
#define ISO_NN_HEAD_CTC_H

#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>

/* Frames that a target needs: its length, and one more between equal neighbours. */
size_t iso_ctc_frames_needed(const int *target, size_t length);
/* Doubles of scratch for one call. */
size_t iso_ctc_scratch(size_t frames, size_t classes, size_t length);

/* Loss -log p(target | logits) of one sample; logits (frames, classes). dlogits (may be NULL, may
 * be logits) gets scale times the gradient. ISO_ERR_DATA when the frames cannot hold the target or
 * a label is the blank or out of range: *loss and dlogits stay untouched. An empty target is fine.
 * scratch: iso_ctc_scratch doubles. */
iso_err iso_ctc_loss(const float *logits, size_t frames, size_t classes, const int *target,
                     size_t length, int blank, double scale, double *loss, float *dlogits,
                     double *scratch, iso_error *e) ISO_MUST_CHECK;

/* The most probable class of each frame, repeats and blanks dropped. out has `frames` entries;
 * returns the length. Scores may be logits or log probabilities. */
size_t iso_ctc_greedy(const float *scores, size_t frames, size_t classes, int blank, int *out);

/* Prefix beam search without a language model: log_probs (frames, classes), natural logarithms.
 * The best of `width` prefixes into out (frames entries); equals go by label order. *log_prob (may
 * be NULL) is the prefix's. */
iso_err iso_ctc_beam(const double *log_probs, size_t frames, size_t classes, int blank,
                     size_t width, int *out, size_t *length, double *log_prob,
                     iso_error *e) ISO_MUST_CHECK;

#endif
