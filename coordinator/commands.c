/* Commands of operators: a table of rows, one function each (admin socket; FED "Admin commands").
 * A reply is {"ok":true,"result":{...}} or {"ok":false,"code":"snake_case","error":"one line"}. */
#include "coordinator/inner.h"
#include "core/yaml.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    iso_coord *c;
    const iso_json *args;
    char by[24]; /* "uid 1000" */
} request;

typedef iso_err command_fn(request *q, iso_json *result, iso_error *e);

static iso_err need_site(const request *q, iso_c_site **out, iso_error *e)
{
    const char *name;
    iso_err err = iso_json_need_str(q->args, "name", &name, e);
    if (err)
        return err;
    *out = iso_c_site_by_name(q->c, name);
    return *out ? ISO_OK : iso_fail(e, ISO_ERR_NO, "no site \"%.64s\"", name);
}

static iso_err need_round(const request *q, const char *key, iso_c_round **out, iso_error *e)
{
    int64_t number;
    iso_err err = iso_json_need_int(q->args, key, 1, INT64_MAX, &number, e);
    if (err)
        return err;
    *out = iso_c_round_by_number(q->c, (uint64_t)number);
    return *out ? ISO_OK : iso_fail(e, ISO_ERR_NO, "no round %lld", (long long)number);
}

/* Names to a mask; absent or empty gives `otherwise`. */
static iso_err get_tasks(const request *q, uint64_t otherwise, uint64_t *mask, iso_error *e)
{
    const iso_json *list = iso_json_key(q->args, "tasks");
    *mask = iso_json_count(list) ? 0 : otherwise;
    for (size_t i = 0; i < iso_json_count(list); i++) {
        const char *name = iso_json_str(iso_json_at(list, i));
        int task = name ? iso_c_task_by_name(q->c, name) : -1;
        if (task < 0) {
            const char *names[ISO_COORD_TASKS_MAX];
            for (size_t t = 0; t < q->c->config.task_count; t++)
                names[t] = q->c->config.tasks[t].name;
            const char *near = name ? iso_nearest(name, names, q->c->config.task_count) : NULL;
            return iso_fail(e, ISO_ERR_USAGE, "no task \"%.64s\"%s%s%s", name ? name : "?",
                            near ? "; did you mean \"" : "", near ? near : "", near ? "\"" : "");
        }
        *mask |= UINT64_C(1) << task;
    }
    return ISO_OK;
}

static iso_err get_reason(const request *q, const char **out, iso_error *e)
{
    return iso_json_get_str(q->args, "reason", "", out, e);
}

static uint64_t all_tasks(const iso_coord *c)
{
    return c->config.task_count == 64 ? UINT64_MAX : (UINT64_C(1) << c->config.task_count) - 1;
}

/* Replaces the members of `result` by those of `other`, which is released. */
static void take_members(iso_json *result, const char *key, iso_json *other)
{
    iso_json_set(result, key, other);
}

/* ---- status, sites, tokens, tasks ---- */

static iso_err sites_list(request *q, iso_json *result, iso_error *e)
{
    (void)e;
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < q->c->site_count; i++)
        iso_json_push(list, iso_c_show_site(q->c, q->c->sites[i], false));
    take_members(result, "sites", list);
    return ISO_OK;
}

static iso_err change_site(request *q, iso_json *result, iso_site_state state, iso_error *e)
{
    iso_c_site *s = NULL;
    const char *reason;
    bool force = false, withdraw = false;
    iso_err err = need_site(q, &s, e);
    if (!err)
        err = get_reason(q, &reason, e);
    if (!err)
        err = iso_json_get_bool(q->args, "force", false, &force, e);
    if (!err)
        err = iso_json_get_bool(q->args, "withdraw", false, &withdraw, e);
    for (size_t t = 0; !err && !force && state == ISO_SITE_REVOKED && t < q->c->config.task_count;
         t++) {
        size_t others = 0;
        for (size_t i = 0; i < q->c->site_count; i++)
            others += q->c->sites[i] != s && q->c->sites[i]->state == ISO_SITE_ACTIVE &&
                      (q->c->sites[i]->tasks >> t & 1);
        if ((s->tasks >> t & 1) && others == 0)
            err = iso_fail(e, ISO_ERR_NO,
                           "this leaves task %s without sites: its next round would never meet "
                           "its quorum; add --force to go on",
                           q->c->config.tasks[t].name);
    }
    if (!err)
        err = iso_c_site_set_state(q->c, s, state, q->by, reason, withdraw, e);
    if (err)
        return err;
    iso_json_set(result, "name", iso_json_string(s->name));
    iso_json_set(result, "state", iso_json_string(iso_site_state_name(s->state)));
    iso_json_set(
        result, "at",
        iso_json_string(iso_c_text(q->c, "audit entry %llu", (unsigned long long)q->c->audit_seq)));
    return ISO_OK;
}

static iso_err sites_approve(request *q, iso_json *result, iso_error *e)
{
    return change_site(q, result, ISO_SITE_ACTIVE, e);
}
static iso_err sites_revoke(request *q, iso_json *result, iso_error *e)
{
    return change_site(q, result, ISO_SITE_REVOKED, e);
}
static iso_err sites_quarantine(request *q, iso_json *result, iso_error *e)
{
    return change_site(q, result, ISO_SITE_QUARANTINED, e);
}

static iso_err token_new(request *q, iso_json *result, iso_error *e)
{
    const char *site, *line;
    uint64_t tasks;
    double hours;
    iso_err err = iso_json_need_str(q->args, "site", &site, e);
    if (!err)
        err = get_tasks(q, 0, &tasks, e);
    if (!err)
        err = iso_json_get_num(q->args, "hours", 24.0, &hours, e);
    if (!err)
        err = iso_c_token_make(q->c, site, &tasks, hours, &line, e);
    if (err)
        return err;
    iso_json_set(result, "site", iso_json_string(site));
    iso_json_set(result, "line", iso_json_string(line));
    iso_json_set(result, "hours", iso_json_real(hours));
    return ISO_OK;
}

static iso_err token_list(request *q, iso_json *result, iso_error *e)
{
    (void)e;
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < q->c->token_count; i++) {
        const iso_c_token *t = q->c->tokens[i];
        const char *state = t->is_used                     ? "used"
                            : iso_c_token_is_open(q->c, t) ? "open"
                            : q->c->wall >= t->expires_ms  ? "expired"
                                                           : "burnt";
        iso_json *o = iso_json_object();
        iso_json_set(o, "id", iso_json_string(iso_c_hex(q->c, t->id, 4)));
        iso_json_set(o, "site", iso_json_string(t->name));
        iso_json_set(o, "state", iso_json_string(state));
        iso_json_set(o, "expires_in_ms",
                     iso_json_integer(
                         t->expires_ms > q->c->wall ? (int64_t)(t->expires_ms - q->c->wall) : 0));
        iso_json_push(list, o);
    }
    take_members(result, "tokens", list);
    return ISO_OK;
}

static iso_err tasks_list(request *q, iso_json *result, iso_error *e)
{
    (void)e;
    iso_json *list = iso_json_array();
    for (size_t t = 0; t < q->c->config.task_count; t++)
        iso_json_push(list, iso_c_show_task(q->c, (int)t));
    take_members(result, "tasks", list);
    return ISO_OK;
}

/* ---- rounds ---- */

static iso_err rounds_open(request *q, iso_json *result, iso_error *e)
{
    uint64_t tasks;
    iso_c_round *r = NULL;
    iso_err err = get_tasks(q, all_tasks(q->c), &tasks, e);
    if (!err)
        err = iso_c_round_open(q->c, tasks, q->by, &r, e);
    if (err)
        return err;
    iso_json_set(result, "number", iso_json_integer((int64_t)r->number));
    iso_json_set(result, "kind", iso_json_string(iso_c_round_kind_name(r->kind)));
    iso_json_set(result, "state", iso_json_string(iso_c_round_state_name(r->state)));
    iso_json_set(result, "invited", iso_json_integer((int64_t)r->invite_count));
    return ISO_OK;
}

static iso_err rounds_list(request *q, iso_json *result, iso_error *e)
{
    (void)e;
    iso_json *list = iso_json_array();
    size_t first = q->c->round_count > 200 ? q->c->round_count - 200 : 0;
    for (size_t i = first; i < q->c->round_count; i++)
        iso_json_push(list, iso_c_show_round(q->c, q->c->rounds[i], false));
    take_members(result, "rounds", list);
    return ISO_OK;
}

static iso_err change_round(request *q, iso_json *result, int what, iso_error *e)
{
    iso_c_round *r = NULL;
    const char *reason;
    iso_err err = need_round(q, "number", &r, e);
    if (!err)
        err = get_reason(q, &reason, e);
    if (!err)
        err = what == 2 ? iso_c_round_abort(q->c, r, q->by, reason, e)
                        : iso_c_round_pause(q->c, r, what == 0, q->by, e);
    if (err)
        return err;
    iso_json_set(result, "number", iso_json_integer((int64_t)r->number));
    iso_json_set(result, "kind", iso_json_string(iso_c_round_kind_name(r->kind)));
    iso_json_set(result, "state",
                 iso_json_string(r->is_paused ? "paused" : iso_c_round_state_name(r->state)));
    iso_json_set(result, "reason", iso_json_string(r->reason));
    return ISO_OK;
}

static iso_err rounds_pause(request *q, iso_json *result, iso_error *e)
{
    return change_round(q, result, 0, e);
}
static iso_err rounds_resume(request *q, iso_json *result, iso_error *e)
{
    return change_round(q, result, 1, e);
}
static iso_err rounds_abort(request *q, iso_json *result, iso_error *e)
{
    return change_round(q, result, 2, e);
}

/* ---- releases ---- */

static iso_err releases_list(request *q, iso_json *result, iso_error *e)
{
    (void)e;
    iso_json *list = iso_json_array();
    size_t first = q->c->release_count > 200 ? q->c->release_count - 200 : 0;
    for (size_t i = first; i < q->c->release_count; i++)
        iso_json_push(list, iso_c_show_release(q->c, q->c->releases[i], false));
    take_members(result, "releases", list);
    return ISO_OK;
}

static iso_err releases_rollback(request *q, iso_json *result, iso_error *e)
{
    int64_t number;
    const char *reason;
    uint64_t round = 0;
    iso_err err = iso_json_need_int(q->args, "number", 1, INT64_MAX, &number, e);
    if (!err)
        err = get_reason(q, &reason, e);
    if (!err)
        err = iso_c_rollback(q->c, (uint64_t)number, q->by, reason, &round, e);
    if (err)
        return err;
    iso_json_set(result, "round", iso_json_integer((int64_t)round));
    iso_json_set(result, "rollback_of", iso_json_integer(number));
    iso_json_set(result, "kind", iso_json_string("rollback"));
    iso_json_set(result, "number",
                 iso_json_integer((int64_t)iso_c_round_by_number(q->c, round)->release));
    return ISO_OK;
}

static iso_err releases_accept(request *q, iso_json *result, iso_error *e)
{
    iso_c_round *r = NULL;
    iso_err err = need_round(q, "round", &r, e);
    if (!err)
        err = iso_c_release_accept(q->c, r, q->by, e);
    if (err)
        return err;
    iso_json_set(result, "round", iso_json_integer((int64_t)r->number));
    iso_json_set(result, "number", iso_json_integer((int64_t)r->release));
    iso_json_set(result, "method", iso_json_string(r->candidates[r->chosen].method));
    return ISO_OK;
}

static iso_err stop(request *q, iso_json *result, iso_error *e)
{
    (void)e;
    q->c->is_stopping = true;
    iso_c_audit(q->c, ISO_AUDIT_STOP, NULL, NULL, "\"by\":\"%s\"", q->by);
    iso_json_set(result, "stopping", iso_json_boolean(true));
    return ISO_OK;
}

static const struct {
    const char *name;
    command_fn *run; /* NULL: `show` gives the whole result */
} rows[] = {
    {"status", NULL},
    {"sites.list", sites_list},
    {"sites.show", NULL},
    {"sites.approve", sites_approve},
    {"sites.revoke", sites_revoke},
    {"sites.quarantine", sites_quarantine},
    {"token.new", token_new},
    {"token.list", token_list},
    {"tasks.list", tasks_list},
    {"rounds.open", rounds_open},
    {"rounds.list", rounds_list},
    {"rounds.show", NULL},
    {"rounds.pause", rounds_pause},
    {"rounds.resume", rounds_resume},
    {"rounds.abort", rounds_abort},
    {"releases.list", releases_list},
    {"releases.show", NULL},
    {"releases.rollback", releases_rollback},
    {"releases.accept", releases_accept},
    {"stop", stop},
};

/* The commands whose result is one object as show.c makes it. */
static iso_err show(request *q, const char *name, iso_json **out, iso_error *e)
{
    iso_err err = ISO_OK;
    *out = NULL;
    if (strcmp(name, "status") == 0) {
        *out = iso_c_show_status(q->c);
    } else if (strcmp(name, "sites.show") == 0) {
        iso_c_site *s = NULL;
        if ((err = need_site(q, &s, e)) == ISO_OK)
            *out = iso_c_show_site(q->c, s, true);
    } else if (strcmp(name, "rounds.show") == 0) {
        iso_c_round *r = NULL;
        if ((err = need_round(q, "number", &r, e)) == ISO_OK)
            *out = iso_c_show_round(q->c, r, true);
    } else {
        int64_t number;
        if ((err = iso_json_need_int(q->args, "number", 1, INT64_MAX, &number, e)) != ISO_OK)
            return err;
        iso_c_release *r = iso_c_release_by_number(q->c, (uint64_t)number);
        if (!r)
            return iso_fail(e, ISO_ERR_NO, "no release %lld", (long long)number);
        *out = iso_c_show_release(q->c, r, true);
    }
    return err;
}

static iso_err run(request *q, const char *name, iso_json **result, iso_error *e)
{
    const char *names[sizeof rows / sizeof rows[0]];
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        names[i] = rows[i].name;
        if (strcmp(rows[i].name, name) != 0)
            continue;
        if (!rows[i].run)
            return show(q, name, result, e);
        *result = iso_json_object();
        return rows[i].run(q, *result, e);
    }
    const char *near = iso_nearest(name, names, sizeof rows / sizeof rows[0]);
    return iso_fail(e, ISO_ERR_USAGE, "unknown command \"%.40s\"%s%s", name,
                    near ? "; nearest: " : "", near ? near : "");
}

void iso_c_on_admin(iso_coord *c, const iso_coord_event *ev)
{
    request q = {.c = c};
    iso_json *root = NULL, *result = NULL, *reply = iso_json_object();
    const char *name = NULL;
    iso_error e = {0};
    snprintf(q.by, sizeof q.by, "uid %u", ev->admin_uid);
    iso_err err = iso_json_parse(ev->text, strlen(ev->text), "request", &root, &e);
    if (!err)
        err = iso_json_need_str(root, "cmd", &name, &e);
    if (!err) {
        q.args = iso_json_key(root, "args");
        if (!q.args)
            q.args = root;
        err = run(&q, name, &result, &e);
    }
    iso_json_set(reply, "ok", iso_json_boolean(!err));
    if (err) {
        iso_json_free(result);
        iso_json_set(reply, "code", iso_json_string(iso_err_name(err)));
        iso_json_set(reply, "error", iso_json_string(e.text));
    } else {
        iso_json_set(reply, "result", result);
    }
    iso_c_reply_json(c, ev->admin, reply);
    if (!err && c->is_stopping)
        iso_c_emit(c, ISO_CX_STOP);
    iso_json_free(root);
}
