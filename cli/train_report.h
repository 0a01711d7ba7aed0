/* The page that `isofed train --report FILE` writes. */
#ifndef ISO_CLI_TRAIN_REPORT_H
#define ISO_CLI_TRAIN_REPORT_H

#include "cli/train_run.h"

/* title: the task. Self-contained HTML with the scores, the curves, the confusion and a few of the
 * scored images with their predictions. */
iso_err iso_train_report(const iso_train_outcome *t, const iso_train_plan *plan, const char *title,
                         const char *path, iso_error *e) ISO_MUST_CHECK;

#endif
