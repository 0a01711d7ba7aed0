/* Reading the folder that `isofed init coordinator` made. */
#include "coordinator/identity.h"

#include "core/fsio.h"
#include "core/safetensors.h"
#include "crypto/roster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const roster_names[] = {"root.pub", "roster.json", "roster.json.minisig"};

iso_err iso_roster_container(const char *root_dir, iso_buf *out, iso_error *e)
{
    uint8_t count[4];
    iso_put_u32(count, 3);
    iso_err err = iso_buf_append(out, count, 4, e);
    for (int i = 0; i < 3 && !err; i++) {
        iso_buf file = {0};
        uint8_t head[2], size[8];
        char *path = iso_path_join(root_dir, roster_names[i]);
        err = path ? iso_read_file(path, ISO_MANIFEST_MAX_BYTES, &file, e) : iso_nomem(e, 0);
        iso_put_u16(head, (uint16_t)strlen(roster_names[i]));
        iso_put_u64(size, file.size);
        if (!err)
            err = iso_buf_append(out, head, 2, e);
        if (!err)
            err = iso_buf_append(out, roster_names[i], strlen(roster_names[i]), e);
        if (!err)
            err = iso_buf_append(out, size, 8, e);
        if (!err)
            err = iso_buf_append(out, file.data, file.size, e);
        iso_buf_free(&file);
        free(path);
    }
    return err;
}

static iso_err read_key(const char *dir, const char *name, iso_key_kind kind,
                        const char *passphrase, iso_key *out, iso_error *e)
{
    char *path = iso_path_join(dir, name);
    iso_err err = path ? iso_key_read(path, kind, passphrase, out, e) : iso_nomem(e, 0);
    free(path);
    return err;
}

/* The roster's own check: signed by the root key that lies beside it, keys equal to ours. */
static iso_err read_roster(const char *root_dir, uint64_t wall_ms, iso_coord_keys_file *k,
                           iso_error *e)
{
    iso_buf text = {0}, signature = {0}, root = {0};
    iso_minisign_public root_key;
    iso_roster roster;
    char *paths[3] = {iso_path_join(root_dir, roster_names[0]),
                      iso_path_join(root_dir, roster_names[1]),
                      iso_path_join(root_dir, roster_names[2])};
    iso_err err = paths[0] && paths[1] && paths[2] ? ISO_OK : iso_nomem(e, 0);
    if (!err)
        err = iso_read_file(paths[0], ISO_MANIFEST_MAX_BYTES, &root, e);
    if (!err)
        err = iso_read_file(paths[1], ISO_MANIFEST_MAX_BYTES, &text, e);
    if (!err)
        err = iso_read_file(paths[2], ISO_MANIFEST_MAX_BYTES, &signature, e);
    if (!err)
        err = iso_minisign_public_parse(root.data, root.size, paths[0], &root_key, e);
    if (!err)
        err = iso_roster_verify(&root_key, text.data, text.size, signature.data, signature.size,
                                &roster, e);
    if (!err && (memcmp(roster.coordinator_transport_pk, k->transport.public_key, 32) != 0 ||
                 memcmp(roster.audit_pk, k->audit.public_key, 32) != 0))
        err = iso_fail(e, ISO_ERR_TRUST, "%s names other keys than keys/ holds", paths[1]);
    if (!err) {
        iso_coord_identity *d = &k->identity;
        memcpy(d->federation, roster.federation_id, 16);
        d->roster_version = roster.version;
        d->root = iso_digest_of(root.data, root.size);
        for (size_t i = 0; i < roster.merge_count && i < ISO_COORD_MERGE_KEYS_MAX; i++) {
            const iso_roster_merge *m = &roster.merge[i];
            iso_coord_merge_key *x = &d->merge_keys[d->merge_key_count++];
            memcpy(x->id, m->id, 16);
            memcpy(x->pk, m->pk, 32);
            x->is_usable = m->state == ISO_ROSTER_ACTIVE && m->not_before_ms <= wall_ms &&
                           (m->not_after_ms == 0 || wall_ms < m->not_after_ms);
        }
        if (roster.release_count)
            iso_hex(d->release_key_id, roster.release[0].key.key_id, 8);
    }
    for (int i = 0; i < 3; i++)
        free(paths[i]);
    iso_buf_free(&text);
    iso_buf_free(&signature);
    iso_buf_free(&root);
    return err;
}

static iso_err read_epoch(const char *dir, uint64_t *epoch, iso_error *e)
{
    iso_buf text = {0};
    uint8_t bytes[8];
    char *path = iso_path_join(dir, "keys/epoch");
    iso_err err = path ? iso_read_file(path, 64, &text, e) : iso_nomem(e, 0);
    if (!err && text.size >= 16)
        text.data[16] = 0;
    if (!err && (text.size < 16 || !iso_unhex(bytes, 8, (const char *)text.data)))
        err = iso_fail(e, ISO_ERR_DATA, "%s: must hold 16 hexadecimal digits", path);
    if (!err)
        *epoch = iso_get_u64(bytes);
    iso_buf_free(&text);
    free(path);
    return err;
}

static iso_err read_generation(const char *backbone, iso_digest *digest, iso_error *e)
{
    iso_safetensors st = {0};
    iso_err err = iso_safetensors_open(&st, backbone, e);
    if (!err)
        *digest = iso_tensor_list_digest(st.items, st.count);
    iso_safetensors_close(&st);
    return err;
}

iso_err iso_coord_identity_read(const char *dir, const char *backbone, const char *passphrase,
                                uint64_t wall_ms, iso_coord_keys_file *k, iso_error *e)
{
    *k = (iso_coord_keys_file){0};
    char *root_dir = iso_path_join(dir, "root");
    iso_err err = root_dir ? ISO_OK : iso_nomem(e, 0);
    if (!err)
        err = read_key(dir, "keys/transport.key", ISO_KEY_COORDINATOR_TRANSPORT, passphrase,
                       &k->transport, e);
    if (!err)
        err = read_key(dir, "keys/audit.key", ISO_KEY_AUDIT, passphrase, &k->audit, e);
    if (!err)
        err = read_roster(root_dir, wall_ms, k, e);
    if (!err)
        err = iso_roster_container(root_dir, &k->roster, e);
    if (!err)
        err = read_epoch(dir, &k->identity.epoch, e);
    if (!err)
        err = read_generation(backbone, &k->identity.generation_digest, e);
    if (!err) {
        memcpy(k->identity.audit_pk, k->audit.public_key, 32);
        memcpy(k->identity.transport_pk, k->transport.public_key, 32);
        k->identity.roster = iso_digest_of(k->roster.data, k->roster.size);
        k->identity.roster_bytes = k->roster.size;
    }
    free(root_dir);
    if (err)
        iso_coord_identity_free(k);
    return err;
}

void iso_coord_identity_free(iso_coord_keys_file *k)
{
    iso_key_free(&k->transport);
    iso_key_free(&k->audit);
    iso_buf_free(&k->roster);
}
