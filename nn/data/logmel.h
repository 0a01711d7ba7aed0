/* Log-mel features of sound, Whisper's convention at any sample rate (Radford et al. 2022;
 * specs/factorization.md 5): periodic Hann window, centred with reflected ends, power spectrum of
 * all frames but the last, Slaney's mel filters with area normalisation, log10 with a floor 8 below
 * the maximum, (x + 4) / 4. */
#ifndef ISO_NN_DATA_LOGMEL_H
#define ISO_NN_DATA_LOGMEL_H

#include "core/err.h"

#include <stddef.h>

typedef struct {
    size_t sample_rate; /* 1000 .. 384000 */
    size_t n_fft;       /* even, 16 .. 8192 */
    size_t hop;         /* 1 .. n_fft */
    size_t mels;        /* 1 .. n_fft / 2 */
} iso_mel_shape;

/* At 16 kHz and from 12 kHz on: 25 ms windows, 80 mels; below: 32 ms (n_fft 256 at 8 kHz), 40. */
iso_mel_shape iso_mel_default(size_t sample_rate);
iso_err iso_mel_check(const iso_mel_shape *s, iso_error *e) ISO_MUST_CHECK;

/* Frames of n samples; what is shorter than a window counts as one window, padded with zeros. */
size_t iso_mel_frames(const iso_mel_shape *s, size_t n);
/* filters (mels, n_fft / 2 + 1). */
void iso_mel_filters(const iso_mel_shape *s, float *filters);
/* x (n), about -1 .. 1, to out (mels, frames). ISO_ERR_NONFINITE for samples that are no numbers,
 * ISO_ERR_DATA for a shape out of range. */
iso_err iso_log_mel(const iso_mel_shape *s, const float *x, size_t n, float *out,
                    iso_error *e) ISO_MUST_CHECK;

#endif
