/* One pass over the text, no allocation: each code point becomes a few after lower-casing and
 * decomposition, these are words or parts of the current word; a word ends at the first that is
 * not. Lower-casing is by code point (no final sigma), as in the fast published tokenizers. */
#include "nn/data/tokenizer.h"

#include "core/fsio.h"
#include "core/json.h"
#include "core/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum {
    VOCABULARY_MAX_BYTES = 64 << 20,
    CONFIG_MAX_BYTES = 1 << 20,
    TOKENS_MAX = 1 << 22,
    TOKEN_BYTES_MAX = 512,
    WORD_MAX = 100, /* characters of a word */
    PARTS_MAX = 32  /* code points of a decomposition: 18 is the longest there is */
};

typedef struct {
    const char *text; /* in the vocabulary's bytes, not terminated; NULL: free */
    uint32_t size;
    int32_t id;
} slot;

struct iso_tokenizer {
    char *bytes;
    slot *slots; /* power of two, at most half full */
    size_t mask, count;
    int32_t cls, sep, unknown;
    iso_tokenizer_options options;
};

/* ---- vocabulary ---- */

static size_t hash_of(const char *continuation, const char *text, size_t n)
{
    uint64_t h = 14695981039346656037ULL; /* FNV-1a over "##" text, without joining them */
    for (; *continuation; continuation++)
        h = (h ^ (uint8_t)*continuation) * 1099511628211ULL;
    for (size_t i = 0; i < n; i++)
        h = (h ^ (uint8_t)text[i]) * 1099511628211ULL;
    return (size_t)(h ^ (h >> 32));
}

/* The slot of continuation + text, or the free one where it would go. */
static slot *find(const iso_tokenizer *t, const char *continuation, const char *text, size_t n)
{
    size_t c = strlen(continuation);
    for (size_t i = hash_of(continuation, text, n);; i++) {
        slot *s = &t->slots[i & t->mask];
        if (!s->text || (s->size == c + n && memcmp(s->text, continuation, c) == 0 &&
                         memcmp(s->text + c, text, n) == 0))
            return s;
    }
}

static int32_t id_of(const iso_tokenizer *t, const char *continuation, const char *text, size_t n)
{
    const slot *s = find(t, continuation, text, n);
    return s->text ? s->id : -1;
}

static iso_err add_tokens(iso_tokenizer *t, size_t size, const char *what, iso_error *e)
{
    int32_t id = 0;
    for (size_t at = 0; at < size; id++) {
        const char *line = t->bytes + at, *end = memchr(line, '\n', size - at);
        size_t n = end ? (size_t)(end - line) : size - at;
        at += n + 1;
        if (n && line[n - 1] == '\r')
            n--;
        if (n > TOKEN_BYTES_MAX || !iso_utf8_is_valid(line, n) || memchr(line, 0, n))
            return iso_fail(e, ISO_ERR_DATA, "%s: line %d is no token", what, id + 1);
        if (n) /* an empty line has its number and no token */
            *find(t, "", line, n) = (slot){line, (uint32_t)n, id};
    }
    return ISO_OK;
}

static iso_err need(const iso_tokenizer *t, const char *token, int32_t *id, const char *what,
                    iso_error *e)
{
    *id = id_of(t, "", token, strlen(token));
    return *id >= 0 ? ISO_OK : iso_fail(e, ISO_ERR_DATA, "%s: there is no %s", what, token);
}

iso_err iso_tokenizer_make(iso_tokenizer **out, const void *vocabulary, size_t size,
                           const iso_tokenizer_options *o, const char *what, iso_error *e)
{
    iso_err err = ISO_OK;
    size_t lines = 1, slots = 64;
    for (size_t i = 0; i + 1 < size; i++)
        lines += ((const char *)vocabulary)[i] == '\n';
    if (size < 1 || size > VOCABULARY_MAX_BYTES || lines > TOKENS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "%s: %zu bytes and %zu tokens; expected up to %d tokens",
                        what, size, lines, TOKENS_MAX);
    while (slots < 2 * lines)
        slots *= 2;
    iso_tokenizer *t = iso_calloc(1, sizeof *t);
    if (!t)
        return iso_nomem(e, sizeof *t);
    t->options = *o;
    t->count = lines;
    t->mask = slots - 1;
    t->bytes = iso_calloc(size, 1);
    t->slots = iso_calloc(slots, sizeof *t->slots);
    if (!t->bytes || !t->slots) {
        err = iso_nomem(e, size + slots * sizeof *t->slots);
        goto fail;
    }
    memcpy(t->bytes, vocabulary, size);
    if ((err = add_tokens(t, size, what, e)) || (err = need(t, "[CLS]", &t->cls, what, e)) ||
        (err = need(t, "[SEP]", &t->sep, what, e)) ||
        (err = need(t, "[UNK]", &t->unknown, what, e)))
        goto fail;
    *out = t;
    return ISO_OK;
fail:
    iso_tokenizer_close(t);
    return err;
}

static iso_err read_options(const char *folder, iso_tokenizer_options *o, iso_error *e)
{
    iso_json *j = NULL;
    *o = (iso_tokenizer_options){true, true, true};
    char *path = iso_path_join(folder, "tokenizer_config.json");
    if (!path)
        return iso_nomem(e, strlen(folder));
    iso_err err = iso_path_exists(path) ? iso_json_read(path, CONFIG_MAX_BYTES, &j, e) : ISO_OK;
    if (!err && j) {
        const iso_json *strip = iso_json_key(j, "strip_accents");
        if (!(err = iso_json_get_bool(j, "do_lower_case", true, &o->lower, e)) &&
            !(err = iso_json_get_bool(j, "tokenize_chinese_chars", true, &o->cjk, e))) {
            o->accents = o->lower;
            if (strip && !iso_json_is_null(strip))
                err = iso_json_get_bool(j, "strip_accents", o->lower, &o->accents, e);
        }
        if (err)
            iso_error_context(e, "%s", path);
    }
    iso_json_free(j);
    free(path);
    return err;
}

iso_err iso_tokenizer_open(iso_tokenizer **out, const char *folder, iso_error *e)
{
    iso_buf text = {0};
    iso_tokenizer_options o;
    char *path = iso_path_join(folder, "vocab.txt");
    iso_err err = path ? read_options(folder, &o, e) : iso_nomem(e, strlen(folder));
    if (!err)
        err = iso_read_file(path, VOCABULARY_MAX_BYTES, &text, e);
    if (!err)
        err = iso_tokenizer_make(out, text.data, text.size, &o, path, e);
    iso_buf_free(&text);
    free(path);
    return err;
}

void iso_tokenizer_close(iso_tokenizer *t)
{
    if (!t)
        return;
    free(t->bytes);
    free(t->slots);
    free(t);
}

size_t iso_tokenizer_count(const iso_tokenizer *t)
{
    return t->count;
}

/* ---- text ---- */

typedef struct {
    const iso_tokenizer *t;
    int32_t *ids;
    size_t count, most; /* pieces; most without room for [SEP] */
    char word[WORD_MAX * 4];
    size_t word_bytes, word_chars; /* chars goes on beyond WORD_MAX */
} output;

static void put(output *o, int32_t id)
{
    if (o->count < o->most)
        o->ids[o->count++] = id;
}

/* Takes the word apart; all or nothing. */
static void end_word(output *o)
{
    size_t first = o->count, n = o->word_bytes;
    if (o->word_chars == 0)
        return;
    bool is_known = o->word_chars <= WORD_MAX;
    for (size_t at = 0; is_known && at < n;) {
        size_t end = n;
        int32_t id = -1;
        while (end > at && (id = id_of(o->t, at ? "##" : "", o->word + at, end - at)) < 0)
            do /* back to the start of a character */
                end--;
            while (end > at && ((uint8_t)o->word[end] & 0xc0) == 0x80);
        is_known = id >= 0;
        if (is_known)
            put(o, id);
        at = end;
    }
    if (!is_known) {
        o->count = first;
        put(o, o->t->unknown);
    }
    o->word_bytes = o->word_chars = 0;
}

static void add_to_word(output *o, int32_t code)
{
    if (o->word_chars < WORD_MAX)
        o->word_bytes += iso_utf8_put(o->word + o->word_bytes, (unsigned)code);
    o->word_chars++;
}

static bool is_space(int32_t code)
{
    utf8proc_category_t c = utf8proc_category(code);
    return code == ' ' || code == '\t' || code == '\n' || code == '\r' ||
           c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL || c == UTF8PROC_CATEGORY_ZP;
}

/* Categories C*: control, format, private, unassigned. */
static bool is_dropped(int32_t code)
{
    utf8proc_category_t c = utf8proc_category(code);
    return code == 0 || code == 0xfffd || c == UTF8PROC_CATEGORY_CC || c == UTF8PROC_CATEGORY_CF ||
           c == UTF8PROC_CATEGORY_CS || c == UTF8PROC_CATEGORY_CO || c == UTF8PROC_CATEGORY_CN;
}

/* All of ASCII that is neither letter, digit nor space counts, whatever Unicode calls it. */
static bool is_punctuation(int32_t code)
{
    if ((code >= 33 && code <= 47) || (code >= 58 && code <= 64) || (code >= 91 && code <= 96) ||
        (code >= 123 && code <= 126))
        return true;
    utf8proc_category_t c = utf8proc_category(code);
    return c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO;
}

static bool is_ideograph(int32_t code)
{
    static const int32_t ranges[][2] = {{0x4e00, 0x9fff},   {0x3400, 0x4dbf},   {0x20000, 0x2a6df},
                                        {0x2a700, 0x2b73f}, {0x2b740, 0x2b81f}, {0x2b820, 0x2ceaf},
                                        {0xf900, 0xfaff},   {0x2f800, 0x2fa1f}};
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++)
        if (code >= ranges[i][0] && code <= ranges[i][1])
            return true;
    return false;
}

static void take(output *o, int32_t code)
{
    const iso_tokenizer_options *how = &o->t->options;
    int32_t parts[PARTS_MAX];
    utf8proc_ssize_t count = 1;
    bool is_word = how->cjk && is_ideograph(code);
    if (is_word)
        end_word(o);
    parts[0] = how->lower ? utf8proc_tolower(code) : code;
    if (how->accents) {
        int last_class = 0;
        count =
            utf8proc_decompose_char(parts[0], parts, PARTS_MAX, UTF8PROC_DECOMPOSE, &last_class);
    }
    for (utf8proc_ssize_t i = 0; i < count && i < PARTS_MAX; i++) {
        if (how->accents && utf8proc_category(parts[i]) == UTF8PROC_CATEGORY_MN)
            continue;
        bool is_alone = is_punctuation(parts[i]);
        if (is_alone || is_space(parts[i]))
            end_word(o);
        if (!is_space(parts[i]))
            add_to_word(o, parts[i]);
        if (is_alone)
            end_word(o);
    }
    if (is_word)
        end_word(o);
}

size_t iso_tokenizer_encode(const iso_tokenizer *t, const char *text, size_t n, int32_t *ids,
                            size_t most)
{
    output o = {.t = t, .ids = ids, .most = most - 1};
    put(&o, t->cls);
    for (size_t at = 0; at < n && o.count < o.most;) {
        utf8proc_int32_t code;
        size_t length = iso_utf8_length(text + at, n - at);
        if (length)
            utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)length, &code);
        at += length ? length : 1; /* a byte that is no character is dropped */
        if (!length)
            continue;
        if (is_space(code))
            end_word(&o);
        else if (!is_dropped(code))
            take(&o, code);
    }
    end_word(&o);
    ids[o.count++] = t->sep;
    return o.count;
}
