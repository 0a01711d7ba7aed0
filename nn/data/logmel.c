#include "nn/data/logmel.h"

#include "core/mem.h"

#include <kiss_fftr.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double PI = 3.14159265358979323846;

iso_mel_shape iso_mel_default(size_t sample_rate)
{
    if (sample_rate >= 12000)
        return (iso_mel_shape){sample_rate, sample_rate / 80 * 2, sample_rate / 100, 80};
    return (iso_mel_shape){sample_rate, sample_rate * 8 / 250 / 2 * 2, sample_rate / 100, 40};
}

iso_err iso_mel_check(const iso_mel_shape *s, iso_error *e)
{
    if (s->sample_rate < 1000 || s->sample_rate > 384000)
        return iso_fail(e, ISO_ERR_DATA, "sample rate %zu; expected 1000..384000", s->sample_rate);
    if (s->n_fft < 16 || s->n_fft > 8192 || s->n_fft % 2)
        return iso_fail(e, ISO_ERR_DATA, "window of %zu samples; expected even, 16..8192",
                        s->n_fft);
    if (s->hop < 1 || s->hop > s->n_fft)
        return iso_fail(e, ISO_ERR_DATA, "hop of %zu samples; expected 1..%zu", s->hop, s->n_fft);
    if (s->mels < 1 || s->mels > s->n_fft / 2)
        return iso_fail(e, ISO_ERR_DATA, "%zu mels; expected 1..%zu", s->mels, s->n_fft / 2);
    return ISO_OK;
}

size_t iso_mel_frames(const iso_mel_shape *s, size_t n)
{
    return (n < s->n_fft ? s->n_fft : n) / s->hop;
}

/* Slaney's scale: linear up to 1 kHz (15 mel), logarithmic above. */
static double to_mel(double hz)
{
    return hz >= 1000.0 ? 15.0 + log(hz / 1000.0) * 27.0 / log(6.4) : hz * 3.0 / 200.0;
}

static double to_hz(double mel)
{
    return mel >= 15.0 ? 1000.0 * exp((mel - 15.0) * log(6.4) / 27.0) : mel * 200.0 / 3.0;
}

/* Triangles between neighbouring points, each with area 1. */
void iso_mel_filters(const iso_mel_shape *s, float *filters)
{
    size_t bins = s->n_fft / 2 + 1;
    double rate = (double)s->sample_rate, top = to_mel(rate / 2.0);
    for (size_t m = 0; m < s->mels; m++) {
        double at[3];
        for (size_t k = 0; k < 3; k++)
            at[k] = to_hz(top * (double)(m + k) / (double)(s->mels + 1));
        for (size_t b = 0; b < bins; b++) {
            double f = (double)b * rate / (double)s->n_fft;
            double up = (f - at[0]) / (at[1] - at[0]), down = (at[2] - f) / (at[2] - at[1]);
            double v = up < down ? up : down;
            filters[m * bins + b] = v > 0.0 ? (float)(v * 2.0 / (at[2] - at[0])) : 0.0F;
        }
    }
}

typedef struct {
    kiss_fftr_cfg fft;
    float *window, *frame, *filters;
    kiss_fft_cpx *spectrum;
    float *power;
} scratch;

static void scratch_free(scratch *w)
{
    kiss_fftr_free(w->fft);
    free(w->window);
    free(w->frame);
    free(w->filters);
    free(w->spectrum);
    free(w->power);
}

static iso_err scratch_make(scratch *w, const iso_mel_shape *s, iso_error *e)
{
    size_t n = s->n_fft, bins = n / 2 + 1;
    w->fft = kiss_fftr_alloc((int)n, 0, NULL, NULL);
    w->window = iso_calloc(n, sizeof *w->window);
    w->frame = iso_calloc(n, sizeof *w->frame);
    w->filters = iso_calloc(s->mels * bins, sizeof *w->filters);
    w->spectrum = iso_calloc(bins, sizeof *w->spectrum);
    w->power = iso_calloc(bins, sizeof *w->power);
    if (!w->fft || !w->window || !w->frame || !w->filters || !w->spectrum || !w->power)
        return iso_nomem(e, s->mels * bins * sizeof *w->filters);
    for (size_t i = 0; i < n; i++)
        w->window[i] = (float)(0.5 - 0.5 * cos(2.0 * PI * (double)i / (double)n));
    iso_mel_filters(s, w->filters);
    return ISO_OK;
}

/* Sample `at` of the signal with reflected ends; length is that with the padding of short ones. */
static float sample_at(const float *x, size_t n, size_t length, long at)
{
    long end = (long)length - 1;
    at = at < 0 ? -at : at > end ? 2 * end - at : at;
    return at >= 0 && at < (long)n ? x[at] : 0.0F;
}

iso_err iso_log_mel(const iso_mel_shape *s, const float *x, size_t n, float *out, iso_error *e)
{
    scratch w = {0};
    iso_err err = iso_mel_check(s, e);
    if (err)
        return err;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return iso_fail(e, ISO_ERR_NONFINITE, "sample %zu is no number", i);
    if ((err = scratch_make(&w, s, e)))
        goto done;
    size_t length = n < s->n_fft ? s->n_fft : n, frames = iso_mel_frames(s, n);
    size_t bins = s->n_fft / 2 + 1;
    float top = -10.0F;
    for (size_t t = 0; t < frames; t++) {
        long begin = (long)(t * s->hop) - (long)(s->n_fft / 2);
        for (size_t i = 0; i < s->n_fft; i++)
            w.frame[i] = w.window[i] * sample_at(x, n, length, begin + (long)i);
        kiss_fftr(w.fft, w.frame, w.spectrum);
        for (size_t b = 0; b < bins; b++)
            w.power[b] = w.spectrum[b].r * w.spectrum[b].r + w.spectrum[b].i * w.spectrum[b].i;
        for (size_t m = 0; m < s->mels; m++) {
            const float *f = w.filters + m * bins;
            double sum = 0.0;
#pragma omp simd reduction(+ : sum)
            for (size_t b = 0; b < bins; b++)
                sum += (double)f[b] * (double)w.power[b];
            float v = (float)log10(sum > 1e-10 ? sum : 1e-10);
            out[m * frames + t] = v;
            top = v > top ? v : top;
        }
    }
    for (size_t i = 0; i < s->mels * frames; i++)
        out[i] = ((out[i] > top - 8.0F ? out[i] : top - 8.0F) + 4.0F) / 4.0F;
done:
    scratch_free(&w);
    return err;
}
