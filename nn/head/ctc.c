/* The extended target is blank y1 blank y2 ... blank, states s = 0 .. 2U; alpha_t(s) includes frame
 * t's emission, beta_t(s) does not. */
#include "nn/head/ctc.h"

#include "core/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static double add_log(double a, double b)
{
    double high = a > b ? a : b, low = a > b ? b : a;
    return low == -(double)INFINITY ? high : high + log1p(exp(low - high));
}

size_t iso_ctc_frames_needed(const int *target, size_t length)
{
    size_t n = length;
    for (size_t i = 1; i < length; i++)
        n += target[i] == target[i - 1];
    return n;
}

size_t iso_ctc_scratch(size_t frames, size_t classes, size_t length)
{
    size_t states = 2 * length + 1;
    return frames * classes + frames * states + 2 * states + classes;
}

static int label_at(const int *target, int blank, size_t s)
{
    return s % 2 ? target[s / 2] : blank;
}

/* May state s be reached from s - 2? */
static bool skips(const int *target, size_t s)
{
    return s % 2 && s >= 3 && target[s / 2] != target[s / 2 - 1];
}

static void log_softmax(const float *z, size_t n, double *out)
{
    double top = (double)z[0], sum = 0.0;
    for (size_t c = 1; c < n; c++)
        top = (double)z[c] > top ? (double)z[c] : top;
    for (size_t c = 0; c < n; c++)
        sum += exp((double)z[c] - top);
    for (size_t c = 0; c < n; c++)
        out[c] = (double)z[c] - top - log(sum);
}

static void forward(const double *lp, size_t frames, size_t classes, const int *target,
                    size_t states, int blank, double *alpha)
{
    for (size_t s = 0; s < states; s++)
        alpha[s] = s < 2 ? lp[label_at(target, blank, s)] : -(double)INFINITY;
    for (size_t t = 1; t < frames; t++) {
        const double *before = alpha + (t - 1) * states;
        double *now = alpha + t * states;
        for (size_t s = 0; s < states; s++) {
            double v = before[s];
            if (s >= 1)
                v = add_log(v, before[s - 1]);
            if (skips(target, s))
                v = add_log(v, before[s - 2]);
            now[s] = v + lp[t * classes + (size_t)label_at(target, blank, s)];
        }
    }
}

/* Last frame to first; beta (2, states) keeps this frame and the next. */
static void gradient(const double *lp, size_t frames, size_t classes, const int *target,
                     size_t states, int blank, const double *alpha, double loss, double scale,
                     double *beta, double *share, float *dlogits)
{
    for (size_t t = frames; t-- > 0;) {
        double *now = beta + t % 2 * states, *next = beta + (t + 1) % 2 * states;
        const double *emitted = lp + (t + 1) * classes; /* of the next frame */
        for (size_t s = 0; s < states; s++) {
            double v = -(double)INFINITY;
            if (t + 1 == frames) {
                v = s + 2 >= states ? 0.0 : v;
            } else {
                for (size_t k = s; k <= s + 2 && k < states; k++)
                    if (k < s + 2 || skips(target, k))
                        v = add_log(v, next[k] + emitted[label_at(target, blank, k)]);
            }
            now[s] = v;
        }
        for (size_t c = 0; c < classes; c++)
            share[c] = 0.0;
        for (size_t s = 0; s < states; s++)
            share[label_at(target, blank, s)] += exp(alpha[t * states + s] + now[s] + loss);
        for (size_t c = 0; c < classes; c++)
            dlogits[t * classes + c] = (float)(scale * (exp(lp[t * classes + c]) - share[c]));
    }
}

iso_err iso_ctc_loss(const float *logits, size_t frames, size_t classes, const int *target,
                     size_t length, int blank, double scale, double *loss, float *dlogits,
                     double *scratch, iso_error *e)
{
    size_t states = 2 * length + 1, needed = iso_ctc_frames_needed(target, length);
    double *lp = scratch, *alpha = lp + frames * classes, *beta = alpha + frames * states;
    double *share = beta + 2 * states;
    if (frames < needed || frames < 1)
        return iso_fail(e, ISO_ERR_DATA, "%zu frames cannot hold %zu labels; %zu are needed",
                        frames, length, needed ? needed : 1);
    for (size_t i = 0; i < length; i++)
        if (target[i] < 0 || (size_t)target[i] >= classes || target[i] == blank)
            return iso_fail(e, ISO_ERR_DATA, "label %d at %zu; expected 0..%zu, not the blank %d",
                            target[i], i, classes - 1, blank);
    for (size_t t = 0; t < frames; t++)
        log_softmax(logits + t * classes, classes, lp + t * classes);
    forward(lp, frames, classes, target, states, blank, alpha);
    const double *last = alpha + (frames - 1) * states;
    *loss = -(states > 1 ? add_log(last[states - 1], last[states - 2]) : last[0]);
    if (dlogits)
        gradient(lp, frames, classes, target, states, blank, alpha, *loss, scale, beta, share,
                 dlogits);
    return ISO_OK;
}

/* ---- decoding ---- */

size_t iso_ctc_greedy(const float *scores, size_t frames, size_t classes, int blank, int *out)
{
    size_t n = 0;
    int before = -1;
    for (size_t t = 0; t < frames; t++) {
        const float *z = scores + t * classes;
        int best = 0;
        for (size_t c = 1; c < classes; c++)
            best = z[c] > z[best] ? (int)c : best;
        if (best != before && best != blank)
            out[n++] = best;
        before = best;
    }
    return n;
}

/* A prefix is a node of a trie; its probability is split by whether it ends in a blank. */
typedef struct {
    size_t parent, child, sibling; /* 0: none (the root is nobody's child) */
    size_t depth;
    int label;
    double blank, label_end; /* of this frame */
    double next_blank, next_end;
    size_t touched; /* frame + 1 in which next_* were begun */
} prefix;

typedef struct {
    prefix *nodes;
    size_t count, capacity;
    size_t *active; /* prefixes that the frame touched */
    size_t active_count, active_capacity;
    size_t frame;
    bool is_short; /* of memory */
} trie;

static bool grow(void **items, size_t *capacity, size_t count, size_t item_bytes)
{
    if (count < *capacity)
        return true;
    size_t wanted = *capacity * 2;
    void *p = realloc(*items, wanted * item_bytes);
    if (!p)
        return false;
    *items = p;
    *capacity = wanted;
    return true;
}

/* The prefix `node` followed by `label`; 0 when memory is short. */
static size_t child_of(trie *t, size_t node, int label)
{
    for (size_t c = t->nodes[node].child; c; c = t->nodes[c].sibling)
        if (t->nodes[c].label == label)
            return c;
    void *nodes = t->nodes;
    if (!grow(&nodes, &t->capacity, t->count, sizeof *t->nodes)) {
        t->is_short = true;
        return 0;
    }
    t->nodes = nodes;
    t->nodes[t->count] = (prefix){.parent = node,
                                  .sibling = t->nodes[node].child,
                                  .depth = t->nodes[node].depth + 1,
                                  .label = label};
    t->nodes[node].child = t->count;
    return t->count++;
}

static void put(trie *t, size_t node, double blank, double end)
{
    prefix *p = &t->nodes[node];
    if (t->is_short)
        return;
    if (p->touched != t->frame + 1) {
        void *active = t->active;
        if (!grow(&active, &t->active_capacity, t->active_count, sizeof *t->active)) {
            t->is_short = true;
            return;
        }
        t->active = active;
        t->active[t->active_count++] = node;
        p->touched = t->frame + 1;
        p->next_blank = p->next_end = -(double)INFINITY;
    }
    p->next_blank = add_log(p->next_blank, blank);
    p->next_end = add_log(p->next_end, end);
}

/* Order of label sequences: like words in a dictionary. */
static int compare_labels(const trie *t, size_t a, size_t b)
{
    size_t da = t->nodes[a].depth, db = t->nodes[b].depth, x = a, y = b;
    while (t->nodes[x].depth > db)
        x = t->nodes[x].parent;
    while (t->nodes[y].depth > da)
        y = t->nodes[y].parent;
    if (x == y) /* one begins the other */
        return da < db ? -1 : da > db;
    while (t->nodes[x].parent != t->nodes[y].parent) {
        x = t->nodes[x].parent;
        y = t->nodes[y].parent;
    }
    return t->nodes[x].label < t->nodes[y].label ? -1 : 1;
}

static bool is_better(const trie *t, size_t a, size_t b)
{
    double x = add_log(t->nodes[a].blank, t->nodes[a].label_end);
    double y = add_log(t->nodes[b].blank, t->nodes[b].label_end);
    return x > y || (x == y && compare_labels(t, a, b) < 0);
}

/* The `width` best of the active ones to the front, best first; the others are forgotten. */
static void keep_best(trie *t, size_t width)
{
    size_t kept = 0;
    for (size_t i = 0; i < t->active_count; i++) {
        size_t node = t->active[i], at = kept < width ? kept : width;
        while (at > 0 && is_better(t, node, t->active[at - 1])) {
            if (at < width)
                t->active[at] = t->active[at - 1];
            at--;
        }
        if (at < width) {
            t->active[at] = node;
            kept += kept < width;
        }
    }
    t->active_count = kept;
}

static void extend(trie *t, size_t node, const double *row, size_t classes, int blank)
{
    double b = t->nodes[node].blank, end = t->nodes[node].label_end, both = add_log(b, end);
    put(t, node, both + row[blank], -(double)INFINITY);
    for (size_t c = 0; c < classes && !t->is_short; c++) {
        bool repeats = node && t->nodes[node].label == (int)c;
        if ((int)c == blank)
            continue;
        if (repeats)
            put(t, node, -(double)INFINITY, end + row[c]);
        size_t child = child_of(t, node, (int)c);
        if (child)
            put(t, child, -(double)INFINITY, (repeats ? b : both) + row[c]);
    }
}

iso_err iso_ctc_beam(const double *log_probs, size_t frames, size_t classes, int blank,
                     size_t width, int *out, size_t *length, double *log_prob, iso_error *e)
{
    trie t = {.count = 1, .capacity = 256, .active_capacity = 256};
    if (width < 1 || width > 4096 || blank < 0 || (size_t)blank >= classes)
        return iso_fail(e, ISO_ERR_USAGE, "beam of %zu, blank %d; expected 1..4096, 0..%zu", width,
                        blank, classes - 1);
    size_t *beam = iso_calloc(width, sizeof *beam), beams = 1;
    t.nodes = iso_calloc(t.capacity, sizeof *t.nodes);
    t.active = iso_calloc(t.active_capacity, sizeof *t.active);
    t.is_short = !beam || !t.nodes || !t.active;
    if (!t.is_short)
        t.nodes[0] = (prefix){.label = -1, .label_end = -(double)INFINITY};
    for (t.frame = 0; t.frame < frames && !t.is_short; t.frame++) {
        t.active_count = 0;
        for (size_t i = 0; i < beams && !t.is_short; i++)
            extend(&t, beam[i], log_probs + t.frame * classes, classes, blank);
        for (size_t i = 0; i < t.active_count; i++) {
            prefix *p = &t.nodes[t.active[i]];
            p->blank = p->next_blank;
            p->label_end = p->next_end;
        }
        keep_best(&t, width);
        beams = t.active_count;
        memcpy(beam, t.active, beams * sizeof *beam);
    }
    iso_err err = t.is_short ? iso_nomem(e, t.capacity * sizeof *t.nodes) : ISO_OK;
    if (!err) {
        *length = t.nodes[beam[0]].depth;
        for (size_t node = beam[0], i = *length; i-- > 0; node = t.nodes[node].parent)
            out[i] = t.nodes[node].label;
        if (log_prob)
            *log_prob = add_log(t.nodes[beam[0]].blank, t.nodes[beam[0]].label_end);
    }
    free(beam);
    free(t.nodes);
    free(t.active);
    return err;
}
