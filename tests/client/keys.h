/* Keys of the rig (rig.h, which includes this) and the roster that they sign. */
#ifndef ISO_TESTS_CLIENT_KEYS_H
#define ISO_TESTS_CLIENT_KEYS_H

static inline iso_key rig_key(iso_key_kind kind, uint8_t fill)
{
    uint8_t seed[32];
    iso_key k;
    memset(seed, fill, sizeof seed);
    assert_int_equal(iso_key_from_seed(kind, seed, RIG_WALL, &k, NULL), ISO_OK);
    return k;
}

static inline void rig_minisign(uint8_t fill, iso_minisign_key *out)
{
    uint8_t id[8], seed[32];
    memset(id, fill, sizeof id);
    memset(seed, fill, sizeof seed);
    assert_int_equal(iso_minisign_from_seed(id, seed, out, NULL), ISO_OK);
}

static inline void rig_pack(iso_buf *out, const char *name, const void *data, size_t bytes)
{
    uint8_t n[8];
    iso_put_u16(n, (uint16_t)strlen(name));
    assert_int_equal(iso_buf_append(out, n, 2, NULL), ISO_OK);
    assert_int_equal(iso_buf_append(out, name, strlen(name), NULL), ISO_OK);
    iso_put_u64(n, bytes);
    assert_int_equal(iso_buf_append(out, n, 8, NULL), ISO_OK);
    assert_int_equal(iso_buf_append(out, data, bytes, NULL), ISO_OK);
}

/* Signs r->roster with `root` into the container that the coordinator serves. */
static inline void rig_sign_roster(rig *r, const iso_minisign_key *root)
{
    iso_buf pub = {0}, text = {0}, signature = {0};
    uint8_t n[4];
    assert_int_equal(iso_minisign_public_format(&root->public_part, &pub, NULL), ISO_OK);
    assert_int_equal(iso_roster_format(&r->roster, &text, NULL), ISO_OK);
    assert_int_equal(iso_roster_sign(root, text.data, text.size, &signature, NULL), ISO_OK);
    r->roster_container.size = 0;
    iso_put_u32(n, 3);
    assert_int_equal(iso_buf_append(&r->roster_container, n, 4, NULL), ISO_OK);
    rig_pack(&r->roster_container, "root.pub", pub.data, pub.size);
    rig_pack(&r->roster_container, "roster.json", text.data, text.size);
    rig_pack(&r->roster_container, "roster.json.minisig", signature.data, signature.size);
    r->roster_digest = rig_offer_blob(r, r->roster_container.data, r->roster_container.size);
    iso_buf_free(&pub);
    iso_buf_free(&text);
    iso_buf_free(&signature);
}

#endif
