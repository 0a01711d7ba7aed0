/* WordPiece on awkward texts (AMENDMENTS 10), expected ids by hand from the published algorithm on
 * a small vocabulary; tables of texts, good and bad. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/fsio.h"
#include "nn/data/feed.h"
#include "nn/data/texts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A token a line: its number is its id. */
static const char VOCABULARY[] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"                      /* 0 .. 3 */
                                 "the\nquick\n##ly\nun\n##want\n##ed\nrunn\n##ing\n" /* 4 .. 11 */
                                 ",\n.\n!\n'\n"                                      /* 12 .. 15 */
                                 "cafe\nnaive\n##s\n"                                /* 16 .. 18 */
                                 "\u5317\n\u4eac\n"       /* 19, 20: CJK */
                                 "a\nb\n##b\n##a\n"       /* 21 .. 24 */
                                 "[\n]\nmask\nsep\n"      /* 25 .. 28 */
                                 "i\n\u00df\n$\n\u00bf\n" /* 29 .. 32 */
                                 "\u1112\u1161\u11ab\n"   /* 33: a Hangul syllable, decomposed */
                                 "The\n\u00e9\n"          /* 34, 35 */
                                 "\u8c48\n";              /* 36: what U+F900 decomposes to */
enum { UNK = 1, CLS = 2, SEP = 3, MOST = 128 };

typedef struct {
    const char *name, *text;
    size_t size; /* 0: up to the NUL */
    size_t most; /* 0: MOST */
    int32_t ids[16];
    size_t count;
} text_row;

#define IDS(...) {__VA_ARGS__}, sizeof((int32_t[]){__VA_ARGS__}) / sizeof(int32_t)

static const text_row UNCASED[] = {
    {"nothing", "", 0, 0, IDS(CLS, SEP)},
    {"only spaces", " \t\r\n\u00a0\u3000 ", 0, 0, IDS(CLS, SEP)},
    {"case and pieces", "The QUICKly", 0, 0, IDS(CLS, 4, 5, 6, SEP)},
    {"the paper's example", "UNwant\u00e9d, running.", 0, 0,
     IDS(CLS, 7, 8, 9, 12, 10, 11, 13, SEP)},
    {"accent, composed", "Caf\u00e9", 0, 0, IDS(CLS, 16, SEP)},
    {"accent, combining", "Cafe\u0301", 0, 0, IDS(CLS, 16, SEP)},
    {"several accents", "a\u0301\u0327\u0302b", 0, 0, IDS(CLS, 21, 23, SEP)},
    {"accents alone", "\u0301\u0302", 0, 0, IDS(CLS, SEP)},
    {"capital with diaeresis", "NA\u00cfVES", 0, 0, IDS(CLS, 17, 18, SEP)},
    {"Turkish capital I with dot", "\u0130", 0, 0, IDS(CLS, 29, SEP)},
    {"capital sharp s", "\u1e9e", 0, 0, IDS(CLS, 30, SEP)},
    {"ideographs are words", "the\u5317\u4eacthe", 0, 0, IDS(CLS, 4, 19, 20, 4, SEP)},
    {"ideograph without a token", "\u5317\u4e00", 0, 0, IDS(CLS, 19, UNK, SEP)},
    {"compatibility ideograph", "a\uf900b", 0, 0, IDS(CLS, 21, 36, 22, SEP)},
    {"Hangul comes apart", "\ud55c", 0, 0, IDS(CLS, 33, SEP)},
    {"control characters vanish", "th\001e\177", 0, 0, IDS(CLS, 4, SEP)},
    {"a NUL vanishes", "th\000e", 4, 0, IDS(CLS, 4, SEP)},
    {"zero width space vanishes", "th\u200be", 0, 0, IDS(CLS, 4, SEP)},
    {"soft hyphen vanishes", "th\u00ade", 0, 0, IDS(CLS, 4, SEP)},
    {"byte order mark vanishes", "\ufeffthe", 0, 0, IDS(CLS, 4, SEP)},
    {"private use vanishes", "th\ue000e", 0, 0, IDS(CLS, 4, SEP)},
    {"replacement character vanishes", "th\ufffde", 0, 0, IDS(CLS, 4, SEP)},
    {"a byte that is no UTF-8",
     "th\xff"
     "e",
     0, 0, IDS(CLS, 4, SEP)},
    {"a character cut short", "the\xe5\x8c", 0, 0, IDS(CLS, 4, SEP)},
    {"a surrogate",
     "th\xed\xa0\x80"
     "e",
     0, 0, IDS(CLS, 4, SEP)},
    {"all kinds of spaces", "the\u00a0the\u3000the\u2028the\tthe\r\nthe", 0, 0,
     IDS(CLS, 4, 4, 4, 4, 4, 4, SEP)},
    {"punctuation cuts", "the,the!'", 0, 0, IDS(CLS, 4, 12, 4, 14, 15, SEP)},
    {"ASCII symbols count", "a$b", 0, 0, IDS(CLS, 21, 31, 22, SEP)},
    {"punctuation beyond ASCII", "\u00bfa", 0, 0, IDS(CLS, 32, 21, SEP)},
    {"names of special tokens are text", "[MASK] [SEP]", 0, 0,
     IDS(CLS, 25, 27, 26, 25, 28, 26, SEP)},
    {"an emoji has no token", "\U0001f600", 0, 0, IDS(CLS, UNK, SEP)},
    {"and spoils its word", "the\U0001f600 the", 0, 0, IDS(CLS, UNK, 4, SEP)},
    {"a word that ends without a piece", "quickz the", 0, 0, IDS(CLS, UNK, 4, SEP)},
    {"a piece needs its ##", "quicka", 0, 0, IDS(CLS, 5, 24, SEP)},
    {"cut to the room", "the the the the", 0, 4, IDS(CLS, 4, 4, SEP)},
    {"cut within a word", "unwanted", 0, 4, IDS(CLS, 7, 8, SEP)},
    {"cut within an unknown word", "unwantz", 0, 4, IDS(CLS, UNK, SEP)},
    {"no room at all", "the", 0, 2, IDS(CLS, SEP)}};

static const text_row CASED[] = {
    {"case stays", "The the", 0, 0, IDS(CLS, 34, 4, SEP)},
    {"accents stay", "\u00e9 caf\u00e9", 0, 0, IDS(CLS, 35, UNK, SEP)},
    {"ideographs are not words", "\u5317\u4eac", 0, 0, IDS(CLS, UNK, SEP)}};

static void check_rows(const iso_tokenizer_options *o, const text_row *rows, size_t n)
{
    iso_tokenizer *t;
    iso_error e = {0};
    if (iso_tokenizer_make(&t, VOCABULARY, sizeof VOCABULARY - 1, o, "test", &e))
        fail_msg("%s", e.text);
    assert_int_equal(iso_tokenizer_count(t), 37);
    for (size_t i = 0; i < n; i++) {
        int32_t ids[MOST];
        size_t size = rows[i].size ? rows[i].size : strlen(rows[i].text);
        size_t got =
            iso_tokenizer_encode(t, rows[i].text, size, ids, rows[i].most ? rows[i].most : MOST);
        bool is_equal = got == rows[i].count;
        for (size_t k = 0; is_equal && k < got; k++)
            is_equal = ids[k] == rows[i].ids[k];
        if (!is_equal) {
            printf("%s: got", rows[i].name);
            for (size_t k = 0; k < got; k++)
                printf(" %d", ids[k]);
            printf("\n");
            fail_msg("%s", rows[i].name);
        }
    }
    iso_tokenizer_close(t);
}

static void awkward_texts_have_the_published_ids(void **state)
{
    (void)state;
    check_rows(&(iso_tokenizer_options){true, true, true}, UNCASED,
               sizeof UNCASED / sizeof *UNCASED);
    check_rows(&(iso_tokenizer_options){false, false, false}, CASED, sizeof CASED / sizeof *CASED);
}

/* 100 characters are a word, 101 are unknown, however many there are. */
static void long_words_are_unknown(void **state)
{
    static const struct {
        size_t letters, count;
    } rows[] = {{99, 101}, {100, 102}, {101, 3}, {100000, 3}};
    iso_tokenizer *t;
    iso_error e = {0};
    (void)state;
    iso_tokenizer_options o = {true, true, true};
    assert_int_equal(iso_tokenizer_make(&t, VOCABULARY, sizeof VOCABULARY - 1, &o, "test", &e),
                     ISO_OK);
    char *text = iso_calloc(100000, 1);
    memset(text, 'a', 100000);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int32_t ids[MOST];
        assert_int_equal(iso_tokenizer_encode(t, text, rows[i].letters, ids, MOST), rows[i].count);
        assert_int_equal(ids[1], rows[i].letters > 100 ? UNK : 21);
        assert_int_equal(ids[2], rows[i].letters > 100 ? SEP : 24);
    }
    /* characters, not bytes: 100 accented letters are 200 bytes */
    for (size_t i = 0; i < 100; i++)
        memcpy(text + 2 * i, "\u00e1", 2);
    int32_t ids[MOST];
    assert_int_equal(iso_tokenizer_encode(t, text, 200, ids, MOST), 102);
    free(text);
    iso_tokenizer_close(t);
}

static void bad_vocabularies_are_refused(void **state)
{
    static const struct {
        const char *text, *says;
    } rows[] = {{"", "0 bytes"},
                {"[UNK]\n[SEP]\n", "[CLS]"},
                {"[UNK]\n[CLS]\n", "[SEP]"},
                {"[CLS]\n[SEP]\n", "[UNK]"},
                {"[UNK]\n[CLS]\n[SEP]\n\xff\n", "line 4"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_tokenizer *t = NULL;
        iso_error e = {0};
        iso_tokenizer_options o = {true, true, true};
        iso_err err = iso_tokenizer_make(&t, rows[i].text, strlen(rows[i].text), &o, "test", &e);
        if (err != ISO_ERR_DATA || !strstr(e.text, rows[i].says))
            fail_msg("row %zu: %d \"%s\"", i, err, e.text);
    }
}

/* ---- tables ---- */

static char folder[64];

static void put(const char *name, const char *text)
{
    iso_error e = {0};
    char *path = iso_path_join(folder, name);
    assert_int_equal(iso_write_file(path, text, strlen(text), 0644, &e), ISO_OK);
    free(path);
}

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/iso-text-XXXXXX");
    return mkdtemp(folder) ? 0 : 1;
}

static int teardown(void **state)
{
    (void)state;
    return iso_remove_tree(folder, NULL) ? 1 : 0;
}

static iso_tokenizer *small_tokenizer(void)
{
    iso_tokenizer *t;
    iso_tokenizer_options o = {true, true, true};
    assert_int_equal(iso_tokenizer_make(&t, VOCABULARY, sizeof VOCABULARY - 1, &o, "test", NULL),
                     ISO_OK);
    return t;
}

static void a_table_becomes_rows_and_tokens(void **state)
{
    iso_error e = {0};
    iso_image_set s;
    iso_tokenizer *t = small_tokenizer();
    iso_text_coding c = {t, 6};
    (void)state;
    put("texts.tsv", "\xef\xbb\xbfsplit\ttext\tother\tlabel\r\n"
                     "train\tthe quick\tx\tspam\r\n"
                     "test\ta\\tb\\\\\tx\tham\n"
                     "\n"
                     "train\tCaf\u00e9\tx\tham");
    assert_true(iso_texts_are_at(folder));
    assert_true(iso_texts_have_split(folder, "test"));
    assert_false(iso_texts_have_split(folder, "val"));
    iso_image_options o = {.folder = folder, .split = "train"};
    assert_int_equal(iso_texts_load(&s, &o, &c, &e), ISO_OK);
    assert_int_equal(s.count, 2);
    assert_int_equal(s.class_count, 2);
    assert_string_equal(s.class_names[0], "ham");
    assert_string_equal(s.rows[0].path, "texts.tsv:2");
    assert_int_equal(s.rows[0].label, 1);
    assert_string_equal(s.rows[1].text, "Caf\u00e9");
    assert_int_equal(s.token_room, 6);
    static const int32_t want[] = {CLS, 4, 5, SEP, -1, -1, CLS, 16, SEP, -1, -1, -1};
    assert_memory_equal(s.tokens, want, sizeof want);
    iso_image_feed feed = {.set = &s};
    float sample[6];
    iso_image_feed_pixels(&feed, (uint32_t[]){1}, 1, 7, sample);
    for (int i = 0; i < 6; i++)
        assert_true(sample[i] == (float)want[6 + i]);
    iso_images_free(&s);
    o.split = "test";
    assert_int_equal(iso_texts_load(&s, &o, &c, &e), ISO_OK);
    assert_string_equal(s.rows[0].text, "a\tb\\");
    iso_images_free(&s);
    o.split = "val";
    assert_int_equal(iso_texts_load(&s, &o, &c, &e), ISO_ERR_DATA);
    iso_tokenizer_close(t);
}

static void bad_lines_are_left_out_named_and_counted(void **state)
{
    static const struct {
        const char *line, *reason;
    } rows[] = {{"the", "too few columns"},
                {"the\tham\tdev", "none of train, val, test"},
                {"\tham\ttrain", "no text"},
                {"the\t\ttrain", "no label"},
                {"th\xff\tham\ttrain", "no UTF-8"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int twice = 0; twice < 2; twice++) {
            char text[256];
            iso_error e = {0};
            iso_image_set s;
            snprintf(text, sizeof text, "text\tlabel\tsplit\na\tham\ttrain\nb\tspam\ttrain\n%s\n%s",
                     rows[i].line, twice ? rows[i].line : "");
            put("texts.tsv", text);
            iso_image_options o = {.folder = folder, .split = "train"};
            iso_err err = iso_texts_load(&s, &o, &(iso_text_coding){0}, &e);
            if (twice) { /* more than one of four */
                assert_int_equal(err, ISO_ERR_DATA);
                assert_non_null(strstr(e.text, "line 4"));
                o.allow_unreadable = true;
                err = iso_texts_load(&s, &o, &(iso_text_coding){0}, &e);
            }
            assert_int_equal(err, ISO_OK);
            assert_int_equal(s.count, 2);
            assert_int_equal(s.unreadable_count, 1 + twice);
            assert_string_equal(s.notes[0].path, "texts.tsv:4");
            if (!strstr(s.notes[0].reason, rows[i].reason))
                fail_msg("row %zu: %s", i, s.notes[0].reason);
            iso_images_free(&s);
        }
    iso_error e = {0};
    iso_image_set s;
    iso_image_options o = {.folder = folder, .split = "train"};
    put("texts.tsv", "words\tlabel\na\tham\n");
    assert_int_equal(iso_texts_load(&s, &o, &(iso_text_coding){0}, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "text and label"));
}

static void validation_is_drawn_or_taken(void **state)
{
    iso_error e = {0};
    iso_image_set train, val;
    (void)state;
    iso_buf text = {0};
    assert_int_equal(iso_buf_printf(&text, &e, "text\tlabel\n"), ISO_OK);
    for (int i = 0; i < 40; i++)
        assert_int_equal(iso_buf_printf(&text, &e, "text %d\t%s\n", i, i % 4 ? "often" : "seldom"),
                         ISO_OK);
    assert_int_equal(iso_buf_append(&text, "", 1, &e), ISO_OK);
    put("drawn.tsv", (const char *)text.data);
    iso_buf_free(&text);
    char *path = iso_path_join(folder, "drawn.tsv");
    assert_true(iso_texts_are_at(path));
    iso_image_options o = {.folder = path};
    iso_text_coding none = {0};
    assert_int_equal(iso_texts_load_train_val(&train, &val, &o, 0.2, 1, &none, &e), ISO_OK);
    assert_int_equal(train.count, 32);
    assert_int_equal(val.count, 8);
    size_t seldom = 0;
    for (size_t i = 0; i < val.count; i++) {
        seldom += val.rows[i].label == 1;
        for (size_t k = 0; k < train.count; k++)
            assert_string_not_equal(val.rows[i].path, train.rows[k].path);
    }
    assert_int_equal(seldom, 2);
    iso_digest first = iso_images_digest(&val);
    iso_images_free(&train);
    iso_images_free(&val);
    assert_int_equal(iso_texts_load_train_val(&train, &val, &o, 0.2, 1, &none, &e), ISO_OK);
    iso_digest again = iso_images_digest(&val);
    assert_true(iso_digest_equal(&first, &again));
    iso_images_free(&train);
    iso_images_free(&val);
    o.limit_per_class = 5;
    assert_int_equal(iso_texts_load_train_val(&train, &val, &o, 0.2, 1, &none, &e), ISO_OK);
    assert_int_equal(train.count + val.count, 10);
    iso_images_free(&train);
    iso_images_free(&val);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(awkward_texts_have_the_published_ids),
                                       cmocka_unit_test(long_words_are_unknown),
                                       cmocka_unit_test(bad_vocabularies_are_refused),
                                       cmocka_unit_test(a_table_becomes_rows_and_tokens),
                                       cmocka_unit_test(bad_lines_are_left_out_named_and_counted),
                                       cmocka_unit_test(validation_is_drawn_or_taken)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
