/* The network between sites and coordinator. A connection is a TCP session: messages of one
 * direction arrive in order, whole, and once, or the connection breaks and what was under way is
 * lost. So loss of a packet is delay (it is sent again, and nothing overtakes it), a partition is
 * silence until it heals or both ends give the connection up, and only `duplicate` does what no
 * honest network does: it says a message twice, to see that the cores do nothing twice. */
#include "sim/inner.h"

#include <stdlib.h>
#include <string.h>

enum { SITE_BITS = 20, RETRANSMIT_US = 250000, QUEUE_BYTES = 4 << 20 };

/* ---- lines ---- */

static void unlink_line(iso_sim *w, sim_line *line)
{
    sim_line **at = &w->sites[line->site]->lines;
    while (*at != line)
        at = &(*at)->next;
    *at = line->next;
    free(line);
}

void sim_line_drop(iso_sim *w, sim_line *line)
{
    if (--line->refs == 0 && ((!line->is_up && !line->is_down) || w->is_over))
        unlink_line(w, line);
}

/* A line whose last open end closes goes when nothing is under way on it. */
static void closed(iso_sim *w, sim_line *line)
{
    line->refs++;
    sim_line_drop(w, line);
}

sim_line *sim_line_of(const iso_sim *w, iso_peer peer)
{
    size_t site = (size_t)(peer & ((1u << SITE_BITS) - 1));
    if (site >= w->site_count)
        return NULL;
    sim_line *line = w->sites[site]->lines;
    while (line && line->id != peer)
        line = line->next;
    return line;
}

/* ---- time on the way ---- */

static uint64_t latency_us(iso_sim *w)
{
    uint64_t us = w->s->net.latency_ms * 1000;
    if (w->s->net.jitter_ms)
        us += sim_random(&w->net, 2 * w->s->net.jitter_ms * 1000);
    return us;
}

static uint64_t arrival(iso_sim *w, const sim_site *s, size_t bytes, uint64_t *free_us)
{
    uint64_t at = w->now_us > s->partition_until_us ? w->now_us : s->partition_until_us;
    at += latency_us(w);
    if (s->bytes_a_second)
        at = (at > *free_us ? at : *free_us) + bytes * 1000000 / s->bytes_a_second;
    if (!w->are_faults_over && sim_chance(&w->net, w->s->net.loss)) {
        at += RETRANSMIT_US + sim_random(&w->net, RETRANSMIT_US);
        w->result.retransmissions++;
    }
    if (at <= *free_us)
        at = *free_us + 1;
    *free_us = at;
    return at;
}

/* ---- breaking ---- */

/* The end that is told learns soon (a reset) or by its heartbeat (a dead line). */
static uint64_t notice_us(iso_sim *w, bool is_silent)
{
    return w->now_us + (is_silent ? SIM_HEARTBEAT_MS * 1000ull : 0) + latency_us(w);
}

static void tell_site(iso_sim *w, sim_line *line, uint64_t at_us)
{
    line->refs++;
    sim_push(w, at_us, EV_LINK_DOWN, line->site + 1, ISO_DOWN_LOST, line);
}

static void tell_coordinator(iso_sim *w, sim_line *line, uint64_t at_us)
{
    line->refs++;
    sim_push(w, at_us, EV_GONE, 0, 0, line);
}

static void break_line(iso_sim *w, sim_line *line)
{
    bool is_silent = sim_chance(&w->net, 0.5);
    line->is_broken = true;
    w->result.cuts++;
    sim_trace(w, "network: %s is cut off%s", w->sites[line->site]->name,
              is_silent ? ", silently" : "");
    if (line->is_down)
        tell_site(w, line, notice_us(w, is_silent));
    if (line->is_up)
        tell_coordinator(w, line, notice_us(w, is_silent));
}

void sim_break_all(iso_sim *w, sim_site *s, bool by_site)
{
    bool is_silent = sim_chance(&w->net, 0.3);
    s->line = by_site ? NULL : s->line;
    for (sim_line *line = s->lines, *next; line; line = next) {
        next = line->next;
        line->is_broken = true;
        if (by_site) {
            line->is_down = false;
            if (line->is_up)
                tell_coordinator(w, line, notice_us(w, is_silent));
        } else {
            line->is_up = false;
            if (line->is_down)
                tell_site(w, line, notice_us(w, is_silent));
        }
        closed(w, line);
    }
}

void sim_partition(iso_sim *w, sim_site *s, uint64_t until_us)
{
    uint64_t length_us = until_us - w->now_us;
    s->partition_until_us = until_us;
    w->result.partitions++;
    sim_trace(w, "network: %s is partitioned for %.1f s", s->name, (double)length_us / 1e6);
    if (length_us < SIM_HEARTBEAT_MS * 1000ull)
        return; /* TCP outlives it */
    for (sim_line *line = s->lines; line; line = line->next) {
        if (line->is_broken)
            continue;
        line->is_broken = true;
        if (line->is_down)
            tell_site(w, line, w->now_us + SIM_HEARTBEAT_MS * 1000ull);
        if (line->is_up)
            tell_coordinator(w, line, w->now_us + SIM_HEARTBEAT_MS * 1000ull + 1);
    }
}

/* ---- connecting ---- */

void sim_connect(iso_sim *w, sim_site *s, uint64_t link)
{
    sim_line *line = iso_calloc(1, sizeof *line);
    iso_error e;
    if (!line) {
        sim_fail(w, iso_nomem(&e, sizeof *line), &e);
        return;
    }
    if (s->line) /* a fresh socket: the old one is closed */
        sim_close(w, s, s->line);
    line->id = ++w->line_count << SITE_BITS | s->index;
    line->site = s->index;
    line->link = link;
    line->is_down = true;
    line->refs = 1;
    line->next = s->lines;
    s->lines = s->line = line;
    /* TCP and CURVE: two round trips. Nobody answers a partitioned site or for a dead
     * coordinator: the core's own timer ends the attempt. */
    if (s->partition_until_us > w->now_us || !w->c.core)
        sim_line_drop(w, line);
    else
        sim_push(w, w->now_us + 3 * latency_us(w), EV_HANDSHAKE, 0, 0, line);
}

void sim_handshake(iso_sim *w, sim_line *line)
{
    sim_site *s = w->sites[line->site];
    if (!w->c.core || !line->is_down || line->is_broken) {
        sim_line_drop(w, line);
        return;
    }
    bool is_ok = sim_coordinator_admits(w, s->is_enrolled ? s->transport_pk : s->token.transport_pk,
                                        &line->name);
    line->is_up = is_ok;
    line->up_free_us = line->down_free_us = w->now_us + latency_us(w);
    sim_push(w, line->down_free_us, is_ok ? EV_LINK_UP : EV_LINK_DOWN, s->index + 1,
             ISO_DOWN_REFUSED, line);
}

/* The site closes; what it said before still arrives. */
void sim_close(iso_sim *w, sim_site *s, sim_line *line)
{
    if (s->line == line)
        s->line = NULL;
    if (!line || !line->is_down)
        return;
    line->is_down = false;
    if (line->is_up && !line->is_broken)
        tell_coordinator(w, line, arrival(w, s, 0, &line->up_free_us));
    closed(w, line);
}

/* The coordinator closes; what it said before still arrives (after S59's cut of a slow peer too).
 */
void sim_cut(iso_sim *w, iso_peer peer)
{
    sim_line *line = sim_line_of(w, peer);
    if (!line || !line->is_up)
        return;
    sim_site *s = w->sites[line->site];
    if (line->is_down && !line->is_broken)
        tell_site(w, line, arrival(w, s, 0, &line->down_free_us));
    tell_coordinator(w, line, w->now_us); /* the shell's own word that it is gone */
}

/* ---- packets ---- */

static iso_packet *packet(iso_sim *w, const iso_msg *m, iso_sim_blob *blob, uint64_t offset,
                          size_t bytes)
{
    iso_error e;
    iso_packet *p = iso_packet_make(&w->packets, m, blob, blob ? blob->data + offset : NULL, bytes,
                                    w->s->is_encoded, &e);
    if (!p)
        sim_fail(w, ISO_ERR_INTERNAL, &e);
    return p;
}

void sim_put_up(iso_sim *w, sim_line *line, iso_packet *p)
{
    sim_site *s = w->sites[line->site];
    uint64_t at = arrival(w, s, p->bytes, &line->up_free_us);
    p->line = line;
    line->refs++;
    sim_push(w, at, EV_UP, 0, 0, p);
}

static bool is_doubled(iso_sim *w)
{
    if (w->are_faults_over || !sim_chance(&w->net, w->s->net.duplicate))
        return false;
    w->result.duplicates++;
    return true;
}

void sim_send_up(iso_sim *w, sim_site *s, const iso_msg *m, iso_sim_blob *blob, uint64_t offset,
                 size_t bytes)
{
    sim_line *line = s->line;
    if (!line || !line->is_down)
        return;
    iso_packet *p = packet(w, m, blob, offset, bytes);
    if (!p)
        return;
    iso_packet *twin = is_doubled(w) ? packet(w, m, blob, offset, bytes) : NULL;
    if (!w->are_faults_over && sim_chance(&w->net, w->s->net.cut) && !line->is_broken)
        break_line(w, line);
    if (s->malice)
        sim_malice_sent(w, s, m, p);
    sim_put_up(w, line, p);
    if (twin)
        sim_put_up(w, line, twin);
}

void sim_send_down(iso_sim *w, iso_peer peer, const iso_msg *m, iso_sim_blob *blob, uint64_t offset,
                   size_t bytes)
{
    sim_line *line = sim_line_of(w, peer);
    if (!line || !line->is_up || line->is_broken)
        return;
    sim_site *s = w->sites[line->site];
    if (s->bytes_a_second && line->down_free_us > w->now_us &&
        (line->down_free_us - w->now_us) / 1000 * s->bytes_a_second / 1000 > QUEUE_BYTES) {
        sim_cut(w, peer); /* S59: 4 MiB wait for a slow peer */
        return;
    }
    int copies = is_doubled(w) ? 2 : 1;
    if (!w->are_faults_over && sim_chance(&w->net, w->s->net.cut))
        break_line(w, line);
    while (copies-- > 0) {
        iso_packet *p = packet(w, m, blob, offset, bytes);
        if (!p)
            return;
        p->line = line;
        line->refs++;
        sim_push(w, arrival(w, s, p->bytes, &line->down_free_us), EV_DOWN, s->index + 1, 0, p);
    }
}
