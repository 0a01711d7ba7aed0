/* What people, sites and the worker do to the rig's coordinator (rig.h, which includes this):
 * commands, enrolment, updates, answers, verdicts, results, time. */
#ifndef ISO_TESTS_COORDINATOR_SITES_H
#define ISO_TESTS_COORDINATOR_SITES_H

RIG const char *rig_admin(rig *r, const char *json)
{
    iso_coord_event ev = {.kind = ISO_CE_ADMIN, .text = json, .admin = 1, .admin_uid = 1000};
    r->admin[0] = 0;
    rig_step(r, &ev);
    return r->admin;
}

RIG void rig_message(rig *r, iso_peer peer, const iso_peer_name *name, iso_msg *m,
                     const uint8_t *body, size_t body_bytes)
{
    m->version = 1;
    if (m->id == 0)
        m->id = 1;
    iso_coord_event ev = {.kind = ISO_CE_MESSAGE,
                          .peer = peer,
                          .name = *name,
                          .msg = m,
                          .body = body,
                          .body_bytes = body_bytes};
    rig_step(r, &ev);
    if (r->restart_each_step) /* rows only: connections live on as new ones would */
        rig_restore(r);
}

RIG void rig_send(rig *r, rig_site *s, iso_msg *m)
{
    iso_peer_name name = {.kind = ISO_PEER_SITE};
    memcpy(name.id, s->id, 16);
    rig_message(r, s->peer, &name, m, NULL, 0);
}

RIG void rig_hello(rig *r, rig_site *s)
{
    iso_msg m = {.type = ISO_MSG_HELLO,
                 .hello = {.min_version = 1,
                           .max_version = 1,
                           .software = "t",
                           .roster_version = s->roster,
                           .release = s->release,
                           .release_head = s->release}};
    memcpy(m.hello.federation_id, r->identity.federation, 16);
    s->peer = r->next_peer++;
    s->asked_count = 0;
    rig_send(r, s, &m);
}

/* A new site by the whole of enrolment: token, Hello, Enroll, Hello with its own key. */
RIG rig_site *rig_enrol(rig *r, const char *name)
{
    rig_site *s = &r->sites[r->site_count++];
    char command[160];
    iso_token_keys keys;
    iso_enrol_line line;
    snprintf(s->name, sizeof s->name, "%.20s", name);
    uint8_t seed[32] = {3};
    snprintf((char *)seed + 1, 30, "%.20s", name);
    assert_int_equal(iso_key_from_seed(ISO_KEY_SITE_TRANSPORT, seed, 0, &s->transport, NULL), 0);
    seed[0] = 4;
    assert_int_equal(iso_key_from_seed(ISO_KEY_SITE_SIGN, seed, 0, &s->sign, NULL), 0);
    iso_site_id(s->transport.public_key, s->sign.public_key, s->id);
    snprintf(command, sizeof command, "{\"cmd\":\"token.new\",\"args\":{\"site\":\"%s\"}}",
             s->name);
    const char *at = strstr(rig_admin(r, command), "isofed1-");
    assert_non_null(at);
    char text[ISO_ENROL_LINE_TEXT];
    snprintf(text, sizeof text, "%.*s", (int)strcspn(at, "\""), at);
    for (char *slash; (slash = strchr(text, '\\')) != NULL;)
        memmove(slash, slash + 1, strlen(slash)); /* JSON may escape '/' */
    assert_int_equal(iso_enrol_line_parse(text, &line, NULL), ISO_OK);
    iso_token_derive(&line.token, &keys);
    iso_peer_name who = {.kind = ISO_PEER_TOKEN};
    memcpy(who.id, line.token.id, 4);
    s->peer = r->next_peer++;
    iso_peer peer = s->peer;
    iso_msg hello = {.type = ISO_MSG_HELLO, .hello = {.min_version = 1, .max_version = 1}};
    rig_message(r, peer, &who, &hello, NULL, 0);
    iso_msg m = {.type = ISO_MSG_ENROLL, .enroll = {.name = s->name}};
    uint8_t bytes[ISO_ENROL_BYTES];
    iso_enrol_bytes(r->identity.federation, line.token.id, s->nonce, s->transport.public_key,
                    s->sign.public_key, bytes);
    memcpy(m.enroll.transport_pk, s->transport.public_key, 32);
    memcpy(m.enroll.sign_pk, s->sign.public_key, 32);
    iso_sign(ISO_LABEL_ENROL, bytes, sizeof bytes, s->sign.secret, m.enroll.signature);
    iso_mac(keys.proof_key, bytes, sizeof bytes, m.enroll.mac);
    rig_message(r, peer, &who, &m, NULL, 0);
    return s;
}

RIG void rig_body(const rig_site *s, int task, uint64_t round, uint8_t out[RIG_BODY])
{
    for (size_t i = 0; i < RIG_BODY; i++)
        out[i] = (uint8_t)(i * 7 + (size_t)s->name[0] + (size_t)task * 3 + round);
}

RIG void rig_sign_header(rig_site *s, int task, const iso_envelope *h)
{
    iso_envelope_encode(h, s->header[task]);
    iso_sign(ISO_LABEL_UPDATE, s->header[task], 384, s->sign.secret, s->signature[task]);
}

/* A header for the invitation that the site holds. */
RIG iso_envelope rig_envelope(rig *r, rig_site *s, int task)
{
    uint8_t body[RIG_BODY];
    const iso_msg_invite *v = &s->invite[task];
    rig_body(s, task, v->round, body);
    iso_envelope h = {.round = v->round,
                      .generation = v->generation,
                      .sequence = ++s->sequence,
                      .created_ms = r->wall,
                      .plain_size = 1000,
                      .stream_size = 1160,
                      .chunk_size = ISO_CHUNK_MIN_BYTES,
                      .chunk_count = 1,
                      .sample_count = 100,
                      .score = 0.75f,
                      .adapter_kind = ISO_KIND_LORA,
                      .metric = ISO_METRIC_ACCURACY,
                      .body_digest = iso_digest_of(body, sizeof body)};
    memcpy(h.federation_id, r->identity.federation, 16);
    memcpy(h.site_id, s->id, 16);
    memcpy(h.task_id, v->task_id, 16);
    memcpy(h.generation_digest.b, v->generation_digest, 32);
    memcpy(h.base_digest.b, v->base_digest, 32);
    memcpy(h.merge_key_id, v->merge_key_id, 16);
    iso_update_id(h.site_id, h.task_id, h.round, h.sequence, h.update_id);
    return h;
}

RIG void rig_begin(rig *r, rig_site *s, int task)
{
    iso_msg m = {.type = ISO_MSG_UPDATE_BEGIN};
    memcpy(m.update_begin.header, s->header[task], 384);
    memcpy(m.update_begin.signature, s->signature[task], 64);
    memcpy(m.update_begin.idempotency, s->header[task] + 216, 16);
    rig_send(r, s, &m);
}

RIG void rig_chunk(rig *r, rig_site *s, int task, uint32_t index, size_t bytes)
{
    uint8_t body[RIG_BODY];
    iso_peer_name name = {.kind = ISO_PEER_SITE};
    iso_msg m = {.type = ISO_MSG_UPDATE_CHUNK, .update_chunk = {.index = index}};
    memcpy(name.id, s->id, 16);
    memcpy(m.update_chunk.upload_id, s->grant.upload_id, 16);
    rig_body(s, task, s->invite[task].round, body);
    rig_message(r, s->peer, &name, &m, body, bytes);
}

RIG void rig_commit_update(rig *r, rig_site *s, int task)
{
    iso_msg m = {.type = ISO_MSG_UPDATE_COMMIT};
    memcpy(m.update_commit.upload_id, s->grant.upload_id, 16);
    memcpy(m.update_commit.body_digest, s->header[task] + 336, 32);
    rig_send(r, s, &m);
}

RIG void rig_upload(rig *r, rig_site *s, int task)
{
    iso_envelope h = rig_envelope(r, s, task);
    rig_sign_header(s, task, &h);
    rig_begin(r, s, task);
    rig_chunk(r, s, task, 0, RIG_BODY);
    rig_commit_update(r, s, task);
}

/* The worker's answer: every update used (or all refused), a blob a task, the candidates. */
RIG void rig_finish_job(rig *r, bool refuse_first)
{
    iso_job_task_result tasks[4];
    iso_job_verdict verdicts[4][8];
    iso_job_candidate_result candidates[2];
    iso_job_result result = {.kind = r->job_kind,
                             .tasks = tasks,
                             .task_count = r->job_task_count,
                             .candidates = candidates};
    memset(tasks, 0, sizeof tasks);
    memset(verdicts, 0, sizeof verdicts);
    memset(candidates, 0, sizeof candidates);
    assert_true(r->has_job);
    memcpy(result.id, r->job_id, 16);
    for (size_t i = 0; i < r->job_task_count; i++) {
        char text[64];
        size_t usable = 0;
        memcpy(tasks[i].id, r->job_tasks[i].id, 16);
        tasks[i].verdicts = verdicts[i];
        tasks[i].verdict_count = r->job_tasks[i].updates;
        for (size_t k = 0; k < r->job_tasks[i].updates; k++) {
            iso_job_verdict *v = &verdicts[i][k];
            bool is_refused = refuse_first && i == 0 && k == 0;
            memcpy(v->update_id, r->job_tasks[i].update[k], 16);
            v->verdict = is_refused ? ISO_UPDATE_REFUSED : ISO_UPDATE_USED;
            v->code = is_refused ? ISO_CODE_NONFINITE : ISO_CODE_OK;
            snprintf(v->sentence, sizeof v->sentence, "%s", is_refused ? "holds NaN" : "");
            usable += !is_refused;
        }
        if (usable == 0 && iso_digest_is_zero(&r->job_tasks[i].previous))
            continue;
        snprintf(text, sizeof text, "%d %s %02x", r->job_kind, usable ? "new" : "old",
                 r->job_id[0]);
        tasks[i].blob = usable ? iso_digest_of(text, strlen(text)) : r->job_tasks[i].previous;
        tasks[i].bytes = 100;
        tasks[i].rank = 8;
        rig_put_blob(r, &tasks[i].blob, 100);
    }
    if (r->job_kind == ISO_JOB_MERGE)
        for (size_t i = 0; i < r->job_candidates && i < 2; i++) {
            char text[64];
            iso_job_candidate_result *x = &candidates[result.candidate_count++];
            snprintf(text, sizeof text, "candidate %zu of %02x", i, r->job_id[0]);
            x->config = r->config.candidates[i];
            x->manifest = iso_digest_of(text, strlen(text));
            x->bytes = 200;
            x->file_count = 2;
            for (int f = 0; f < 2; f++) {
                snprintf(x->files[f].path, sizeof x->files[f].path, "%s",
                         f ? "adapter/adapter_model.safetensors" : "adapter/adapter_config.json");
                text[0] = (char)('x' + f);
                x->files[f].digest = iso_digest_of(text, strlen(text));
                x->files[f].bytes = 300;
            }
        }
    if (r->job_kind == ISO_JOB_SIGN) {
        result.signature = iso_digest_of(r->job_id, 16);
        result.signature_bytes = 250;
    }
    r->has_job = false;
    iso_coord_event ev = {.kind = ISO_CE_JOB_DONE, .result = &result};
    rig_step(r, &ev);
}

RIG void rig_answer(rig *r, rig_site *s, size_t i, float score, uint64_t samples)
{
    iso_msg m = {.type = ISO_MSG_EVAL_RESULT,
                 .eval_result = {.score = score, .samples = samples, .outcome = ISO_EVAL_SCORED}};
    uint8_t bytes[ISO_EVAL_BYTES];
    memcpy(m.eval_result.eval_id, s->asked[i].eval_id, 16);
    iso_eval_bytes(r->identity.federation, s->id, s->asked[i].eval_id, score, samples, 0.0f,
                   ISO_EVAL_SCORED, bytes);
    iso_sign(ISO_LABEL_REQUEST, bytes, sizeof bytes, s->sign.secret, m.eval_result.signature);
    rig_send(r, s, &m);
}

/* Answers all that is asked: `merged` for candidates, `frozen` for the bare backbone. */
RIG void rig_answer_all(rig *r, rig_site *s, float merged, float frozen)
{
    static const uint8_t none[32];
    for (size_t i = 0; i < s->asked_count; i++) {
        bool is_frozen = memcmp(s->asked[i].candidate_digest, none, 32) == 0;
        rig_answer(r, s, i, is_frozen ? frozen : merged, 200);
    }
    s->asked_count = 0;
}

RIG void rig_verdict(rig *r, rig_site *s, uint64_t number, uint32_t verdict)
{
    if (!s)
        abort(); /* the optimiser looks into a path that no test takes */
    iso_msg m = {.type = ISO_MSG_RELEASE_VERDICT,
                 .release_verdict = {.number = number,
                                     .verdict = verdict,
                                     .before = 0.5f,
                                     .delivered = 0.7f,
                                     .refitted = 0.8f,
                                     .reason = ""}};
    uint8_t bytes[ISO_VERDICT_BYTES];
    iso_verdict_bytes(r->identity.federation, s->id, number, verdict, 0.5f, 0.7f, 0.8f, "", bytes);
    iso_sign(ISO_LABEL_REQUEST, bytes, sizeof bytes, s->sign.secret, m.release_verdict.signature);
    rig_send(r, s, &m);
}

RIG void rig_tick(rig *r, uint64_t ms)
{
    r->now += ms;
    r->wall += ms;
    iso_coord_event ev = {.kind = ISO_CE_TICK};
    rig_step(r, &ev);
}

RIG void rig_status(rig *r, rig_site *s, uint64_t since)
{
    iso_msg m = {.type = ISO_MSG_STATUS, .status = {.since_event = since, .release = s->release}};
    rig_send(r, s, &m);
}

#endif
