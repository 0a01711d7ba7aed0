/* The trainer seam of the sites, with the planted problem behind it: a job's result is a pure
 * function of the job and the site (core/trainer.h), so a job that was killed ends the same. */
#include "sim/inner.h"

#include <math.h>
#include <string.h>

uint64_t sim_train_us(iso_sim *w, const sim_site *s, const iso_trainer_job *job)
{
    static const uint64_t base_us[] = {0, 2000000, 1000000, 800000, 100000, 800000, 100000};
    double us = (double)base_us[job->kind];
    if (job->kind == ISO_TRAINER_TRAIN)
        us += (double)job->spec->steps * (double)w->s->trainer.step_us;
    return (uint64_t)(us * s->slowness * (0.9 + 0.2 * iso_rng_uniform(&w->work))) + 1;
}

static uint32_t task_of(const iso_sim *w, const sim_site *s, const uint8_t id[16])
{
    (void)w;
    for (uint32_t i = 0; i < s->task_count; i++)
        if (memcmp(s->tasks[i].id, id, 16) == 0)
            return s->task_numbers[i];
    return s->task_numbers[0];
}

/* error(D, t) of a stored adapter; the same file is scored by many sites, and once. False: it is
 * no adapter, or not there. */
static bool stored_error(iso_sim *w, const sim_site *s, const iso_digest *model, uint32_t task,
                         double *error)
{
    iso_lora_layer layers[ISO_SYNTH_LAYERS_MAX];
    size_t count = 0;
    sim_score *slot = &w->scores[(iso_get_u64(model->b) + task * 31) % SIM_SCORES];
    if (slot->is_there && slot->task == task && iso_digest_equal(&slot->model, model)) {
        *error = slot->error;
        return true;
    }
    if (!iso_digest_is_zero(model)) {
        const iso_sim_blob *b = iso_sim_disk_blob(&s->disk, model);
        if (!b || iso_synth_parse(b->data, b->bytes, layers, ISO_SYNTH_LAYERS_MAX, &count, NULL))
            return false;
    }
    *error = iso_synth_error(w->synth, task, layers, count);
    *slot = (sim_score){.model = *model, .task = task, .is_there = true, .error = *error};
    return true;
}

static void lie(const sim_site *s, iso_score_pair *p)
{
    if (s->malice != ISO_MALICE_LIAR)
        return;
    p->delivered = (iso_score){.is_known = true, .value = 0.0f, .samples = ISO_SAMPLES_MAX};
    p->refitted = p->delivered;
}

static bool learn(iso_sim *w, sim_site *s, uint32_t task, iso_trainer_event *out)
{
    static const iso_spoil spoils[ISO_MALICE_COUNT] = {[ISO_MALICE_NAN] = ISO_SPOIL_NAN,
                                                       [ISO_MALICE_HUGE] = ISO_SPOIL_HUGE,
                                                       [ISO_MALICE_ZERO] = ISO_SPOIL_ZERO,
                                                       [ISO_MALICE_SHAPE] = ISO_SPOIL_SHAPE,
                                                       [ISO_MALICE_SIGN] = ISO_SPOIL_SIGN};
    const iso_trainer_job *job = &s->job;
    iso_buf file = {0};
    iso_error e;
    double error = 1.0;
    /* A start from the task's adapter goes on where it stands: half of the way is left each time.
     */
    double share = 1.0 - exp(-(double)(job->spec ? job->spec->steps : 0) / 20.0);
    if (!iso_digest_is_zero(&job->base))
        share = 1.0 - (1.0 - share) * (1.0 - share);
    iso_err err = job->kind == ISO_TRAINER_HEAD
                      ? iso_synth_head(w->synth, task, s->index, &file, &e)
                      : iso_synth_train(w->synth, task, s->index, job->round, s->samples, share,
                                        spoils[s->malice], &file, &e);
    iso_lora_layer layers[ISO_SYNTH_LAYERS_MAX];
    size_t count = 0;
    if (!err && job->kind == ISO_TRAINER_TRAIN && !spoils[s->malice] &&
        iso_synth_parse(file.data, file.size, layers, ISO_SYNTH_LAYERS_MAX, &count, NULL) == ISO_OK)
        error = iso_synth_error(w->synth, task, layers, count);
    if (!err)
        err = iso_sim_disk_put(&s->disk, file.data, file.size, &out->container, &e);
    out->container_bytes = file.size;
    iso_buf_free(&file);
    if (err)
        return false;
    out->samples = s->malice == ISO_MALICE_LIAR ? ISO_SAMPLES_MAX : s->samples;
    out->data_images = 2 * s->samples;
    out->data_bytes = s->samples * 40000;
    out->val = iso_synth_score(w->synth, error, s->index, task, s->samples / 2);
    out->test = iso_synth_score(w->synth, error, s->index + 77777, task, s->samples / 2);
    return true;
}

static bool score(iso_sim *w, sim_site *s, uint32_t task, iso_trainer_event *out)
{
    const iso_trainer_job *job = &s->job;
    double error, before;
    if (!stored_error(w, s, &job->adapter_model, task, &error))
        return false;
    const uint64_t what = task; /* the same images whatever is scored on them: luck is the same */
    out->val = iso_synth_score(w->synth, error, s->index, what, s->samples / 2);
    out->test = iso_synth_score(w->synth, error, s->index + 77777, what, s->samples / 2);
    if (job->kind == ISO_TRAINER_EVALUATE)
        lie(s, &out->val);
    if (job->kind == ISO_TRAINER_TRIAL) {
        if (!stored_error(w, s, &job->before_model, task, &before))
            return false;
        out->val_before = iso_synth_score(w->synth, before, s->index, what, s->samples / 2);
    }
    if (job->kind == ISO_TRAINER_TRIAL || job->kind == ISO_TRAINER_CHECK) {
        iso_digest both[2] = {job->adapter_model, job->head};
        out->output = w->c.sealer.digest(w->c.sealer.ctx, both, sizeof both);
        /* A swap that does not answer as its trial did goes back (S95): seldom, here at random. */
        if (job->kind == ISO_TRAINER_CHECK && !w->are_faults_over && w->s->disk.full_every_ms &&
            sim_chance(&w->work, 0.02))
            out->output.b[0] ^= 1;
    }
    return true;
}

void sim_train(iso_sim *w, sim_site *s, iso_trainer_event *out)
{
    const iso_trainer_job *job = &s->job;
    uint32_t task = task_of(w, s, job->task_id);
    double error;
    bool is_ok = true;
    *out = (iso_trainer_event){.kind = ISO_TRAINER_DONE};
    memcpy(out->id, job->id, 16);
    switch (job->kind) {
    case ISO_TRAINER_HEAD:
    case ISO_TRAINER_TRAIN:
        is_ok = learn(w, s, task, out);
        break;
    case ISO_TRAINER_INSPECT:
        is_ok = stored_error(w, s, &job->adapter_model, task, &error) && isfinite(error);
        break;
    default:
        is_ok = score(w, s, task, out);
        break;
    }
    if (is_ok)
        return;
    out->kind = ISO_TRAINER_FAILED;
    out->code = ISO_ERR_DATA;
    out->is_final = job->kind != ISO_TRAINER_TRAIN && job->kind != ISO_TRAINER_HEAD;
    memcpy(out->sentence, "the files do not read", 22);
}
