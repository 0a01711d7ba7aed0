/* isofed train --sequence: several tasks one after the other, and how much of the earlier ones is
 * left (DESIGN 2, AMENDMENTS 15; specs/data.md 9, 14). Each task has a head of its own, and which
 * task a sample is of is known. */
#ifndef ISO_CLI_TRAIN_SEQUENCE_H
#define ISO_CLI_TRAIN_SEQUENCE_H

#include "cli/train_run.h"

/* What the adapter does at a new task. */
typedef enum {
    ISO_SEQUENCE_CONTINUE, /* trained on; DATA: new gate rows, earlier ones frozen */
    ISO_SEQUENCE_FRESH,    /* a fresh one; each task keeps its own */
    ISO_SEQUENCE_FROZEN    /* none at all: the frozen backbone with a head a task */
} iso_sequence_mode;

extern const char *const iso_sequence_modes[];

/* file: a task folder a line, # begins a comment; relative to the file's folder. plan: as for one
 * task (its data is not looked at). Prints the matrix, or JSON; report may be NULL. */
iso_err iso_train_sequence(const char *backbone, const char *file, const iso_train_plan *plan,
                           iso_sequence_mode mode, const char *out, const char *report, bool json,
                           iso_error *e) ISO_MUST_CHECK;

#endif
