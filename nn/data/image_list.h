/* Which image files a split has, and under which class: from manifest.tsv or from the folders.
 * The first half of nn/data/images, private to it. */
#ifndef ISO_NN_DATA_IMAGE_LIST_H
#define ISO_NN_DATA_IMAGE_LIST_H

#include "nn/data/images.h"

typedef struct {
    iso_image_row *rows; /* owned; strings in the arena */
    size_t count, capacity;
    iso_image_note *notes; /* owned; strings in the arena */
    size_t note_count, note_capacity;
} iso_image_list;

/* Lists `split` of `folder` in its deterministic order, at most limit_per_class of each class. */
iso_err iso_image_list_fill(iso_image_list *l, const char *folder, const char *split,
                            const char *const *class_names, size_t classes, size_t limit_per_class,
                            iso_arena *arena, iso_error *e) ISO_MUST_CHECK;
iso_err iso_image_list_note(iso_image_list *l, iso_note_kind kind, const char *path,
                            const char *reason, iso_arena *arena, iso_error *e) ISO_MUST_CHECK;
iso_err iso_image_list_add(iso_image_list *l, const iso_image_row *row,
                           iso_error *e) ISO_MUST_CHECK;
void iso_image_list_free(iso_image_list *l);

#endif
