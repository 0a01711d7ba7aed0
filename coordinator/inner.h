/* Inside of the coordinator's core: the functions that its pure files share, by file.
 * Nothing outside coordinator/ includes this; tests of a single file may. */
#ifndef ISO_COORDINATOR_INNER_H
#define ISO_COORDINATOR_INNER_H

#include "coordinator/objects.h"

/* ---- effects.c: everything a step says goes through these ----
 * Rows put before a message are one transaction, and stand before that message. */
void iso_c_put(iso_coord *c, int table, iso_op_kind kind, const void *key, size_t key_bytes,
               const void *value, size_t value_bytes);
void iso_c_delete(iso_coord *c, int table, const void *key, size_t key_bytes);
void iso_c_flush(iso_coord *c); /* COMMIT of what was put; nothing: no effect */
iso_coord_effect *iso_c_emit(iso_coord *c, iso_coord_effect_kind kind);
void *iso_c_alloc(iso_coord *c, size_t n, size_t item_bytes); /* zeroed, lives with the effects */
char *iso_c_text(iso_coord *c, const char *fmt, ...) ISO_PRINTF(2, 3);
/* A message whose kind is set; returns it to be filled in. `about` is the request it answers. */
iso_msg *iso_c_send(iso_coord *c, iso_c_peer *p, iso_msg_type type, uint64_t about);
void iso_c_cut(iso_coord *c, iso_c_peer *p, const char *why);
iso_digest iso_c_put_blob(iso_coord *c, const void *data, size_t bytes);
void iso_c_log(iso_coord *c, iso_level level, const char *event, const char *pairs, ...)
    ISO_PRINTF(4, 5);
void iso_c_reply_json(iso_coord *c, uint64_t admin, iso_json *reply); /* takes ownership */
/* Grows an array of pointers; false on exhaustion. */
bool iso_c_push(iso_coord *c, void ***items, size_t *count, size_t *capacity, void *item);
void iso_c_remove(void **items, size_t *count, const void *item);

/* ---- audit.c ---- */
/* Appends an entry in the transaction at hand; details as printf of canonical JSON members
 * without braces ("\"round\":%llu"). */
void iso_c_audit(iso_coord *c, iso_audit_type type, const uint8_t actor[16],
                 const iso_digest *subject, const char *details, ...) ISO_PRINTF(5, 6);
/* Signed head of now: 216 bytes that live with the effects. */
iso_span iso_c_signed_head(iso_coord *c);
/* Quotes text for audit details and logs; lives with the effects. */
const char *iso_c_quote(iso_coord *c, const char *text);
const char *iso_c_hex(iso_coord *c, const uint8_t *bytes, size_t n);

/* ---- records.c: rows of the store ---- */
void iso_c_save_meta(iso_coord *c);
void iso_c_save_site(iso_coord *c, const iso_c_site *s, iso_op_kind kind);
void iso_c_save_token(iso_coord *c, const iso_c_token *t, iso_op_kind kind);
void iso_c_save_task(iso_coord *c, const iso_c_task *t);
void iso_c_save_round(iso_coord *c, const iso_c_round *r, iso_op_kind kind);
void iso_c_save_invite(iso_coord *c, const iso_c_round *r, const iso_c_invite *v, iso_op_kind kind);
void iso_c_delete_invite(iso_coord *c, const iso_c_round *r, const iso_c_invite *v);
void iso_c_save_upload(iso_coord *c, const iso_c_upload *u);
void iso_c_delete_upload(iso_coord *c, const iso_c_upload *u);
void iso_c_save_update(iso_coord *c, const iso_c_update *u, iso_op_kind kind);
void iso_c_delete_update(iso_coord *c, const iso_c_update *u);
void iso_c_save_score(iso_coord *c, const iso_c_round *r, const iso_c_question *q,
                      const iso_c_site *s, const iso_c_answer *a);
void iso_c_delete_score(iso_coord *c, const iso_c_round *r, const iso_c_question *q,
                        const iso_c_site *s);
void iso_c_save_release(iso_coord *c, const iso_c_release *r, iso_op_kind kind);
void iso_c_save_notice(iso_coord *c, const iso_c_site *s, const iso_c_notice *n);
void iso_c_delete_notice(iso_coord *c, const iso_c_site *s, uint64_t event);
void iso_c_save_verdict(iso_coord *c, uint64_t number, const iso_c_site *s,
                        const iso_msg_release_verdict *v);

/* ---- roster.c: sites, tokens ---- */
iso_c_site *iso_c_site_by_id(const iso_coord *c, const uint8_t id[16]);
iso_c_site *iso_c_site_by_name(const iso_coord *c, const char *name);
iso_c_site *iso_c_site_new(iso_coord *c, const uint8_t id[16]);
iso_c_token *iso_c_token_by_id(const iso_coord *c, const uint8_t id[4]);
iso_c_token *iso_c_token_new(iso_coord *c, const uint8_t id[4]);
void iso_c_site_free(iso_c_site *s);
/* Recomputes which configured tasks are its own. */
void iso_c_site_tasks(const iso_coord *c, iso_c_site *s);
int iso_c_task_by_id(const iso_coord *c, const uint8_t id[16]);
int iso_c_task_by_name(const iso_coord *c, const char *name);
void iso_c_task_id(const iso_coord *c, const char *name, uint8_t id[16]);
bool iso_c_token_is_open(const iso_coord *c, const iso_c_token *t);
void iso_c_on_enroll(iso_coord *c, iso_c_peer *p, const iso_msg *m);
iso_err iso_c_token_make(iso_coord *c, const char *site, const uint64_t *tasks, double hours,
                         const char **line, iso_error *e);
/* C2. `by` is the operator's name for the audit; reason may be "". */
iso_err iso_c_site_set_state(iso_coord *c, iso_c_site *s, iso_site_state state, const char *by,
                             const char *reason, bool withdraw, iso_error *e);
void iso_c_notify(iso_coord *c, iso_c_site *s, iso_code code, const uint8_t update_id[16],
                  const char *sentence);

/* ---- steps.c: versions of the roster ---- */
void iso_c_save_roster(iso_coord *c, const iso_c_roster *r);
bool iso_c_roster_add(iso_coord *c, const iso_c_roster *r);
/* The roster at hand joins the ones recorded before. ISO_ERR_TRUST when it is none of them and not
 * the next either: sites could not follow. */
iso_err iso_c_rosters_check(const iso_coord *c, iso_error *e) ISO_MUST_CHECK;
void iso_c_rosters_start(iso_coord *c);
/* Offers the version after the one that the site holds; to a new site the newest. */
void iso_c_roster_offer(iso_coord *c, iso_c_peer *p, iso_c_site *s);
/* The site has been sent all of a container: it holds that version now. */
void iso_c_roster_fetched(iso_coord *c, iso_c_peer *p, const iso_digest *container);

/* ---- peers.c: greeting, status, limits, refusals ---- */
void iso_c_on_message(iso_coord *c, const iso_coord_event *ev);
void iso_c_on_bad_message(iso_coord *c, const iso_coord_event *ev);
void iso_c_on_peer_gone(iso_coord *c, iso_peer id);
void iso_c_peers_tick(iso_coord *c);
void iso_c_refuse(iso_coord *c, iso_c_peer *p, uint64_t about, iso_code code, const void *what,
                  size_t what_bytes, const char *sentence, ...) ISO_PRINTF(7, 8);
iso_c_peer *iso_c_peer_by_id(const iso_coord *c, iso_peer id);
void iso_c_peer_drop(iso_coord *c, iso_c_peer *p);
/* Brings an active site up to date: roster, invitations, questions, release. */
void iso_c_greet(iso_coord *c, iso_c_site *s);

/* ---- blobs.c ---- */
void iso_c_on_blob_get(iso_coord *c, iso_c_peer *p, const iso_msg *m);
/* In one pass over what is live, whatever `count` is. */
void iso_c_delete_blobs_unless_live(iso_coord *c, const iso_digest *gone, size_t count);

/* ---- admission.c, uploads.c: updates until their receipt ---- */
void iso_c_on_update_begin(iso_coord *c, iso_c_peer *p, const iso_msg *m);
/* Admitted (rows 1 - 8 hold): C4, or the same upload goes on. */
void iso_c_upload_begin(iso_coord *c, iso_c_peer *p, const iso_envelope *h,
                        const uint8_t header[384], const uint8_t signature[64],
                        const iso_digest *header_digest, uint64_t about);
void iso_c_send_receipt(iso_coord *c, iso_c_peer *p, const iso_c_update *u, uint64_t about);
void iso_c_on_update_chunk(iso_coord *c, iso_c_peer *p, const iso_msg *m, const uint8_t *body,
                           size_t bytes);
void iso_c_on_update_commit(iso_coord *c, iso_c_peer *p, const iso_msg *m);
void iso_c_on_upload_opened(iso_coord *c, const uint8_t id[16], uint32_t chunks);
void iso_c_on_upload_stored(iso_coord *c, const uint8_t id[16], iso_stored stored);
void iso_c_uploads_start(iso_coord *c);
void iso_c_uploads_tick(iso_coord *c);
void iso_c_uploads_peer_gone(iso_coord *c, iso_peer id);
/* Drops open uploads of a site (NULL: all) and round (0: all), telling the site. */
void iso_c_uploads_drop(iso_coord *c, const iso_c_site *s, uint64_t round, iso_code code,
                        const char *why);
bool iso_c_uploads_storing(const iso_coord *c, uint64_t round);
iso_c_upload *iso_c_upload_new(iso_coord *c);
void iso_c_upload_free(iso_coord *c, iso_c_upload *u);

/* ---- round.c, evaluate.c, gate.c, release.c ---- */
iso_c_round *iso_c_round_active(const iso_coord *c); /* OPEN .. HELD, or NULL */
iso_c_round *iso_c_round_by_number(const iso_coord *c, uint64_t number);
iso_c_round *iso_c_round_new(iso_coord *c, uint64_t number);
void iso_c_round_free(iso_c_round *r);
iso_c_round_task *iso_c_round_task_of(iso_c_round *r, int task);
bool iso_c_round_has_ended(const iso_c_round *r);
const char *iso_c_round_state_name(iso_c_round_state s);
const char *iso_c_round_kind_name(iso_c_round_kind k);
bool iso_c_round_add_update(iso_coord *c, iso_c_round *r, iso_c_update *u);
/* invite.c */
iso_c_invite *iso_c_invite_of(const iso_c_round *r, const iso_c_site *s, int task);
bool iso_c_invites_make(iso_coord *c, iso_c_round *r, uint64_t tasks);
/* Where each site's invitations stand, and how many wait for an answer. */
void iso_c_invites_index(iso_c_round *r);
iso_err iso_c_round_open(iso_coord *c, uint64_t tasks, const char *by, iso_c_round **out,
                         iso_error *e);
void iso_c_round_committed(iso_coord *c, iso_c_update *u); /* C5 has happened */
void iso_c_round_tick(iso_coord *c);
void iso_c_round_end(iso_coord *c, iso_c_round *r, iso_c_round_state state, const char *reason);
void iso_c_round_resume(iso_coord *c, iso_c_round *r); /* after a restart */
void iso_c_round_send_invites(iso_coord *c, iso_c_round *r, iso_c_site *s);
void iso_c_on_invite_reply(iso_coord *c, iso_c_peer *p, const iso_msg *m);
void iso_c_rounds_retire(iso_coord *c); /* C13 */
/* Index of the first round that still has its updates, also between restore and start. */
size_t iso_c_first_detailed(const iso_coord *c);
iso_err iso_c_round_abort(iso_coord *c, iso_c_round *r, const char *by, const char *reason,
                          iso_error *e);
void iso_c_round_hold(iso_coord *c, iso_c_round *r, const char *reason);
iso_err iso_c_round_pause(iso_coord *c, iso_c_round *r, bool is_paused, const char *by,
                          iso_error *e);
void iso_c_update_free(iso_c_update *u);
void iso_c_update_judge(iso_coord *c, iso_c_update *u, iso_update_state state, iso_code code,
                        const char *sentence);
void iso_c_start_job(iso_coord *c, iso_c_round *r);
void iso_c_on_job_done(iso_coord *c, const iso_job_result *result);
void iso_c_on_job_failed(iso_coord *c, const uint8_t id[16], const char *why);
uint64_t iso_c_merge_mask(const iso_coord *c); /* tasks that have an adapter */

extern const char *const iso_c_metric_names[METRICS];
void iso_c_evaluate_begin(iso_coord *c, iso_c_round *r);
bool iso_c_questions_make(iso_coord *c, iso_c_round *r);
iso_c_evaluator *iso_c_evaluator_add(iso_coord *c, iso_c_round *r, iso_c_site *s);
void iso_c_evaluate_ask(iso_coord *c, iso_c_round *r, iso_c_site *s, bool is_again);
void iso_c_evaluate_joined(iso_coord *c, iso_c_round *r, iso_c_site *s);
void iso_c_on_eval_result(iso_coord *c, iso_c_peer *p, const iso_msg *m);
bool iso_c_evaluate_is_complete(const iso_coord *c, const iso_c_round *r);
/* Sample-weighted mean of a candidate (-1: frozen) on a task; NAN when nobody scored it. */
double iso_c_mean_score(const iso_c_round *r, int candidate, int task, int metric,
                        uint64_t *samples);

void iso_c_gate(iso_coord *c, iso_c_round *r); /* C9 */
double iso_c_gate_margin(double least, double baseline, uint64_t samples);

iso_c_release *iso_c_release_current(const iso_coord *c);
iso_c_release *iso_c_release_by_number(const iso_coord *c, uint64_t number);
iso_c_release *iso_c_release_new(iso_coord *c, uint64_t number);
void iso_c_release_free(iso_c_release *r);
void iso_c_release_prepare(iso_coord *c, iso_c_round *r); /* manifest, then SIGNING */
void iso_c_release_signed(iso_coord *c, iso_c_round *r, const iso_job_result *result); /* C10 */
void iso_c_release_offer(iso_coord *c, iso_c_site *s);
void iso_c_on_verdict(iso_coord *c, iso_c_peer *p, const iso_msg *m);
iso_err iso_c_rollback(iso_coord *c, uint64_t number, const char *by, const char *reason,
                       uint64_t *round, iso_error *e); /* C11 */
iso_err iso_c_release_accept(iso_coord *c, iso_c_round *r, const char *by, iso_error *e);
void iso_c_signature_alias(const iso_coord *c, const iso_digest *manifest, iso_digest *out);

/* ---- policy.c ---- */
/* Tasks whose owners are all enrolled, active and connected: what `trigger: auto` opens. */
uint64_t iso_c_policy_ready(const iso_coord *c);
typedef enum { CLOSE_NOT_YET, CLOSE_ALL_ANSWERED, CLOSE_DEADLINE } iso_c_close;
iso_c_close iso_c_policy_close(const iso_coord *c, const iso_c_round *r);
bool iso_c_policy_may_invite(const iso_coord *c, const iso_c_site *s, int task);

/* ---- commands.c, show.c ---- */
void iso_c_on_admin(iso_coord *c, const iso_coord_event *ev);
iso_json *iso_c_show_status(iso_coord *c);
iso_json *iso_c_show_site(iso_coord *c, const iso_c_site *s, bool is_full);
iso_json *iso_c_show_round(iso_coord *c, const iso_c_round *r, bool is_full);
iso_json *iso_c_show_release(iso_coord *c, const iso_c_release *r, bool is_full);
iso_json *iso_c_show_task(iso_coord *c, int task);

#endif
