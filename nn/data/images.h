/* Labelled images from folders `split/class/file` (DESIGN 6), decoded, resized and kept as bytes.
 *
 * Order is deterministic: that of manifest.tsv (columns path, class, group, split) when the task
 * folder has one, else sorted by class and file name. Files are recognised by their first bytes,
 * not by their names. A file that cannot be decoded is left out and noted with its reason; more
 * than max(1, 1 %) of such files is an error unless allowed (specs/security.md 9.1). */
#ifndef ISO_NN_DATA_IMAGES_H
#define ISO_NN_DATA_IMAGES_H

#include "core/digest.h"
#include "core/mem.h"
#include "nn/data/decode.h"
#include "nn/data/preprocess.h"

enum {
    ISO_IMAGE_FILE_MAX = 64 * 1024 * 1024, /* bytes of one file */
    ISO_IMAGE_CLASSES_MAX = 4096
};

typedef struct {
    const char *path;  /* "train/scratch/0001.png", relative to the task folder */
    const char *group; /* manifest's group, or "" */
    int label;         /* index in class_names */
    const char *text;  /* of a text set (nn/data/texts.h); else NULL */
    uint64_t size;     /* bytes of the file */
    iso_digest digest; /* of the file's bytes */
} iso_image_row;

typedef enum {
    ISO_NOTE_UNREADABLE,    /* a file that was left out: corrupt, empty, not permitted */
    ISO_NOTE_EMPTY_CLASS,   /* a class without a usable image in this split */
    ISO_NOTE_UNKNOWN_CLASS, /* a folder that is none of the wanted classes: left out */
    ISO_NOTE_OTHER          /* not a regular file, file beside the class folders, ... */
} iso_note_kind;

typedef struct {
    iso_note_kind kind;
    const char *path, *reason;
} iso_image_note;

typedef struct {
    const char **class_names; /* sorted bytewise, or the order asked for */
    size_t class_count;
    iso_image_row *rows;
    size_t count;
    uint8_t *pixels; /* (count, height, width, 3); NULL in a text set */
    int height, width;
    int32_t *tokens; /* of a text set: (count, token_room), -1 behind the last; else NULL */
    size_t token_room;
    iso_preprocess pre;
    iso_image_note *notes; /* for the caller to show; nothing is printed here */
    size_t note_count;
    size_t unreadable_count, listed_count;
    uint64_t file_bytes; /* of the images kept, as they lie on disk */
    iso_arena arena;
} iso_image_set;

typedef struct {
    const char *folder; /* the task's folder */
    const char *split;  /* "train", "val", "test" */
    const iso_preprocess *pre;
    size_t limit_per_class;         /* the first n of each class in order; 0: all */
    bool allow_unreadable;          /* go on however many files are bad */
    const char *const *class_names; /* wanted classes in order, or NULL: all that are there */
    size_t class_count;
} iso_image_options;

/* Loads one split. A missing split folder is ISO_ERR_DATA; so is a split without any image. */
iso_err iso_images_load(iso_image_set *s, const iso_image_options *o, iso_error *e) ISO_MUST_CHECK;

/* Training and validation images: the folders train/ and val/ when val/ is there, else `val_share`
 * of each class of train/ by a seeded draw (at least one image, when a class has two or more).
 * o->split is ignored. limit_per_class counts before the draw. */
iso_err iso_images_load_train_val(iso_image_set *train, iso_image_set *val,
                                  const iso_image_options *o, double val_share, uint64_t seed,
                                  iso_error *e) ISO_MUST_CHECK;

void iso_images_free(iso_image_set *s); /* zeroed struct is fine */

/* One file, decoded, resized and cropped into out (height, width, 3) of iso_preprocess_size(). The
 * line of an error names the file. */
iso_err iso_image_read(const char *path, const iso_preprocess *pre, uint8_t *out,
                       iso_error *e) ISO_MUST_CHECK;

/* Class names of a task folder: union over its splits, sorted; strings in the arena. */
iso_err iso_images_classes(const char *folder, iso_arena *arena, const char ***names, size_t *count,
                           iso_error *e) ISO_MUST_CHECK;
bool iso_images_has_split(const char *folder, const char *split);

/* Normalised pixels of rows idx[0..n-1] into out (n, 3, height, width). In parallel. */
void iso_images_batch(const iso_image_set *s, const uint32_t *idx, size_t n, float *out);

/* Labels of all rows into out (count). */
void iso_images_labels(const iso_image_set *s, int *out);

/* Digest over paths, labels and file digests in order: what a checkpoint compares (U60). */
iso_digest iso_images_digest(const iso_image_set *s);

#endif
