/* The coordinator's side of the rig (rig.h, which includes this): greeting, blobs, roster,
 * invitations, grants and receipts, releases signed with its keys; and the trainer's results. */
#ifndef ISO_TESTS_CLIENT_COORDINATOR_H
#define ISO_TESTS_CLIENT_COORDINATOR_H

/* The last message of a type since rig_clear(), or NULL. */
static inline const iso_msg *rig_last(const rig *r, iso_msg_type type)
{
    for (size_t i = r->sent_count; i-- > 0;)
        if (r->sent[i].type == type)
            return &r->sent[i];
    return NULL;
}

static inline size_t rig_count(const rig *r, iso_msg_type type)
{
    size_t n = 0;
    for (size_t i = 0; i < r->sent_count; i++)
        n += r->sent[i].type == type;
    return n;
}

static inline void rig_say_to(rig *r, iso_msg *m, const void *body, size_t body_bytes)
{
    m->version = 1;
    if (!m->epoch)
        m->epoch = r->epoch;
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_MESSAGE,
                                   .link = r->link,
                                   .msg = m,
                                   .body = body,
                                   .body_bytes = body_bytes});
}

static inline void rig_up(rig *r)
{
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_LINK_UP, .link = r->link});
}

static inline void rig_down(rig *r, iso_agent_down why, const char *text)
{
    rig_step(r, &(iso_agent_event){
                    .kind = ISO_AE_LINK_DOWN, .link = r->link, .down = why, .text = text});
}

static inline iso_span rig_head(rig *r, uint8_t out[ISO_SIGNED_HEAD_BYTES])
{
    iso_head_sign(&r->head, &r->audit_sealer, out);
    return (iso_span){out, ISO_SIGNED_HEAD_BYTES};
}

static inline void rig_hello_reply(rig *r, iso_site_state state)
{
    uint8_t head[ISO_SIGNED_HEAD_BYTES];
    iso_msg m = {.type = ISO_MSG_HELLO_REPLY,
                 .hello_reply = {.version = 1,
                                 .epoch = r->epoch,
                                 .next_sequence = 1,
                                 .roster_version = r->roster.version,
                                 .wall_ms = r->wall,
                                 .limits = {.chunk_bytes = 64 * 1024, .credit = 8},
                                 .state = state}};
    m.hello_reply.signed_head = rig_head(r, head);
    rig_say_to(r, &m, NULL, 0);
}

/* Answers the site's BlobGets from what the coordinator has until none is open. */
static inline void rig_serve(rig *r)
{
    for (size_t i = 0; i < r->sent_count; i++) {
        if (r->sent[i].type != ISO_MSG_BLOB_GET)
            continue;
        iso_msg_blob_get get = r->sent[i].blob_get;
        uint64_t about = r->sent[i].id;
        r->sent[i].type = ISO_MSG_NONE; /* answered */
        iso_digest d;
        memcpy(d.b, get.digest, 32);
        const rig_blob *b = rig_find_blob(r->served, r->served_count, &d);
        if (!b) {
            iso_msg m = {.type = ISO_MSG_ERROR,
                         .error = {.code = ISO_CODE_BLOB_UNKNOWN,
                                   .sentence = "no such blob",
                                   .about_id = about}};
            rig_say_to(r, &m, NULL, 0);
            continue;
        }
        const uint32_t chunk = 64 * 1024;
        uint32_t count = (uint32_t)((b->bytes + chunk - 1) / chunk);
        for (uint32_t k = get.from_chunk; k < get.from_chunk + get.credit && k < count; k++) {
            iso_msg m = {.type = ISO_MSG_BLOB_CHUNK,
                         .blob_chunk = {.index = k, .count = count, .size = b->bytes}};
            memcpy(m.blob_chunk.digest, d.b, 32);
            size_t left = b->bytes - (size_t)k * chunk;
            rig_say_to(r, &m, b->data + (size_t)k * chunk, left < chunk ? left : chunk);
        }
    }
}

static inline void rig_offer_roster(rig *r)
{
    iso_msg m = {.type = ISO_MSG_ROSTER_OFFER, .roster_offer = {.version = r->roster.version}};
    memcpy(m.roster_offer.digest, r->roster_digest.b, 32);
    rig_say_to(r, &m, NULL, 0);
    rig_serve(r);
}

/* Dials and greets; with the roster when the site has none. */
static inline void rig_connect(rig *r)
{
    while (r->a->link != ISO_AS_CONNECTING)
        rig_tick(r, iso_agent_next_wake(r->a) > r->mono ? iso_agent_next_wake(r->a) - r->mono : 0);
    rig_up(r);
    rig_hello_reply(r, ISO_SITE_ACTIVE);
    if (!r->a->roster)
        rig_offer_roster(r);
}

static inline iso_msg rig_invite(const rig *r, size_t task, uint64_t round, bool is_head)
{
    static const char *const classes[] = {"good", "bad"};
    iso_msg m = {.type = ISO_MSG_INVITE,
                 .invite = {.round = round,
                            .generation = 0,
                            .deadline_ms = r->wall + 3600000,
                            .spec = {.adapter_kind = ISO_KIND_LORA,
                                     .rank = 8,
                                     .alpha = 16,
                                     .steps = is_head ? 0 : 100,
                                     .learning_rate = 0.001f,
                                     .seed = 1,
                                     .norm_cap = 100,
                                     .update_bytes = 64 << 20,
                                     .min_samples = 10,
                                     .metric = "accuracy",
                                     .classes = classes,
                                     .class_count = 2,
                                     .modality = "image",
                                     .kind_parameters = ""}}};
    memset(m.invite.invite_id, (int)(16 * task + round), 16);
    memcpy(m.invite.task_id, r->tasks[task].id, 16);
    memcpy(m.invite.generation_digest, r->config.generation_digest.b, 32);
    memcpy(m.invite.merge_key_id, r->roster.merge[0].id, 16);
    return m;
}

static inline iso_score rig_score(float value, uint64_t samples)
{
    return (iso_score){true, value, samples};
}

/* The running job ends with these scores; HEAD and TRAIN leave a container of `bytes`. */
static inline void rig_finish_job(rig *r, float delivered, float refitted, float before,
                                  size_t bytes)
{
    iso_trainer_event ev = {.kind = ISO_TRAINER_DONE, .samples = 200};
    assert_true(r->has_job);
    r->has_job = false;
    memcpy(ev.id, r->job.id, 16);
    ev.val = (iso_score_pair){rig_score(delivered, 100), rig_score(refitted, 100)};
    ev.test = ev.val;
    ev.val_before = (iso_score_pair){rig_score(before, 100), rig_score(before, 100)};
    memset(ev.output.b, 0x0d, 32);
    if (r->job.kind == ISO_TRAINER_HEAD || r->job.kind == ISO_TRAINER_TRAIN) {
        uint8_t *data = malloc(bytes);
        rig_fill(r, data, bytes);
        ev.container = rig_keep(r, data, bytes);
        ev.container_bytes = bytes;
        free(data);
    }
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_TRAINER, .trainer = &ev});
}

static inline void rig_fail_job(rig *r, bool is_final, const char *why)
{
    iso_trainer_event ev = {.kind = ISO_TRAINER_FAILED, .code = ISO_ERR_DATA, .is_final = is_final};
    assert_true(r->has_job);
    r->has_job = false;
    memcpy(ev.id, r->job.id, 16);
    snprintf(ev.sentence, sizeof ev.sentence, "%s", why);
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_TRAINER, .trainer = &ev});
}

static inline void rig_grant(rig *r, uint32_t next, uint32_t credit)
{
    iso_msg m = {.type = ISO_MSG_UPDATE_GRANT,
                 .update_grant = {.next_chunk = next, .credit = credit}};
    memset(m.update_grant.upload_id, 0x77, 16);
    rig_say_to(r, &m, NULL, 0);
}

static inline void rig_ack(rig *r, uint32_t received, uint32_t credit)
{
    iso_msg m = {.type = ISO_MSG_CHUNK_ACK, .chunk_ack = {.received = received, .credit = credit}};
    memset(m.chunk_ack.upload_id, 0x77, 16);
    rig_say_to(r, &m, NULL, 0);
}

static inline void rig_refuse(rig *r, iso_code code, uint64_t about)
{
    iso_msg m = {.type = ISO_MSG_ERROR,
                 .error = {.code = code, .sentence = "for a reason", .about_id = about}};
    rig_say_to(r, &m, NULL, 0);
}

/* The receipt of the update in transit, signed by `key`. */
static inline void rig_receipt(rig *r, const iso_key *key, void (*change)(iso_receipt *))
{
    iso_msg m = {.type = ISO_MSG_RECEIPT};
    iso_receipt q = {.epoch = r->epoch, .audit_seq = 11};
    const iso_sealer sealer = iso_sealer_real(key);
    const agent_update *u = agent_find_update(r->a, r->a->upload.update_id);
    assert_non_null(u);
    memcpy(q.federation_id, r->config.federation_id, 16);
    memcpy(q.site_id, r->config.site_id, 16);
    memcpy(q.update_id, u->update_id, 16);
    q.header_digest = iso_digest_of(u->header, 384);
    if (change)
        change(&q);
    iso_receipt_encode(&q, m.receipt.receipt);
    sealer.sign(sealer.ctx, ISO_LABEL_RECEIPT, m.receipt.receipt, ISO_RECEIPT_BYTES,
                m.receipt.signature);
    rig_say_to(r, &m, NULL, 0);
}

/* Invited, trained, sealed: the update waits in the outbox and Begin is sent. */
static inline void rig_make_update(rig *r, uint64_t round, size_t bytes)
{
    iso_msg m = rig_invite(r, 0, round, true);
    rig_say_to(r, &m, NULL, 0);
    assert_true(r->has_job);
    rig_finish_job(r, 0.7f, 0.7f, 0, bytes);
}

/* ---- releases ---- */

typedef struct {
    uint64_t number, epoch;
    iso_digest previous; /* zero with number 1 */
    const iso_minisign_key *key;
    void (*change)(iso_manifest *m);
    bool is_head_of_other; /* the signed head names another digest */
    uint64_t bytes_total;  /* 0: as it is */
    const char *adapter;   /* text of the model file */
    uint64_t valid_until_ms;
    iso_release_kind kind;
    uint64_t rollback_of;
} rig_release;

static inline rig_release rig_release_of(const rig *r, uint64_t number, const iso_digest *previous)
{
    rig_release v = {.number = number,
                     .epoch = r->epoch,
                     .key = &r->release,
                     .adapter = "adapter one",
                     .valid_until_ms = r->wall + 30ull * RIG_DAY};
    if (previous)
        v.previous = *previous;
    return v;
}

/* Makes the release's blobs and offers it; returns its manifest's digest. */
static inline iso_digest rig_offer_release(rig *r, const rig_release *v)
{
    static const char config[] = "{}\n", press[] = "head of press", weld[] = "head of weld",
                      recipe[] = "recipe", eval[] = "{}\n", foreign[] = "head of another";
    iso_manifest_file files[] = {
        {"adapter/adapter_config.json", 3, rig_offer_blob(r, config, 3)},
        {"adapter/adapter_model.safetensors", strlen(v->adapter),
         rig_offer_blob(r, v->adapter, strlen(v->adapter))},
        {"eval.json", 3, rig_offer_blob(r, eval, 3)},
        {"heads/paint.safetensors", 15, iso_digest_of(foreign, 15)}, /* not served to this site */
        {"heads/press.safetensors", 13, rig_offer_blob(r, press, 13)},
        {"heads/weld.safetensors", 12, rig_offer_blob(r, weld, 12)},
        {"recipe.yaml", 6, rig_offer_blob(r, recipe, 6)},
    };
    iso_manifest_task tasks[2];
    for (int i = 0; i < 2; i++) {
        tasks[i] = (iso_manifest_task){.score = 0.8, .baseline = 0.7, .samples = 100, .updates = 1};
        memcpy(tasks[i].id, r->tasks[i].id, 16);
    }
    iso_manifest m = {.epoch = v->epoch,
                      .number = v->number,
                      .previous_number = v->number - 1,
                      .previous_digest = v->previous,
                      .created_ms = v->valid_until_ms <= r->wall ? v->valid_until_ms - 1 : r->wall,
                      .valid_until_ms = v->valid_until_ms,
                      .kind = v->kind,
                      .rollback_of = v->rollback_of,
                      .generation_digest = r->config.generation_digest,
                      .method = "iso_cts",
                      .spectrum = "rank",
                      .tasks = tasks,
                      .task_count = 2,
                      .files = files,
                      .file_count = sizeof files / sizeof *files,
                      .audit_seq = 5,
                      .min_software = "0.1.0"};
    memcpy(m.federation, r->config.federation_id, 16);
    if (v->change)
        v->change(&m);
    iso_buf text = {0}, signature = {0};
    iso_error e = {0};
    uint64_t total = 0;
    if (iso_manifest_format(&m, &text, &e) != ISO_OK ||
        iso_manifest_sign(v->key, text.data, text.size, &signature, &e) != ISO_OK)
        fail_msg("%s", e.text);
    iso_digest manifest = rig_offer_blob(r, text.data, text.size);
    uint8_t named[48];
    memcpy(named, "isofed-minisig-1", 16);
    memcpy(named + 16, manifest.b, 32);
    iso_digest alias = iso_digest_of(named, sizeof named);
    rig_add_blob(r->served, &r->served_count, &alias, signature.data, signature.size);
    iso_manifest_total(&m, &total);
    iso_buf_free(&text);
    iso_buf_free(&signature);
    r->head.release = v->number;
    r->head.manifest = manifest;
    if (v->is_head_of_other)
        r->head.manifest.b[0] ^= 1;
    r->head.seq++;
    r->head.time_ms = r->wall;
    uint8_t head[ISO_SIGNED_HEAD_BYTES];
    iso_msg offer = {.type = ISO_MSG_RELEASE_OFFER,
                     .release_offer = {.number = v->number,
                                       .valid_until_ms = v->valid_until_ms,
                                       .bytes_total = v->bytes_total ? v->bytes_total : total}};
    memcpy(offer.release_offer.manifest_digest, manifest.b, 32);
    memcpy(offer.release_offer.base_digest, r->config.generation_digest.b, 32);
    offer.release_offer.signed_head = rig_head(r, head);
    rig_say_to(r, &offer, NULL, 0);
    rig_serve(r);
    return manifest;
}

/* Ends whatever jobs of the release follow each other: look, trials, check. */
static inline void rig_try_release(rig *r, float delivered, float refitted, float before)
{
    while (r->has_job && (r->job.kind == ISO_TRAINER_INSPECT || r->job.kind == ISO_TRAINER_TRIAL ||
                          r->job.kind == ISO_TRAINER_CHECK))
        rig_finish_job(r, delivered, refitted, before, 0);
}

#endif
