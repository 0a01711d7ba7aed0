/* `isofed train --check DATA` (U108, U109): what a data folder holds and what is wrong with it,
 * before anything is trained. */
#ifndef ISO_CLI_TRAIN_CHECK_H
#define ISO_CLI_TRAIN_CHECK_H

#include "core/err.h"

#include <stdbool.h>

/* Prints a table (or JSON) to standard output. ISO_ERR_DATA when the folder cannot be trained on,
 * after the table, with the reason. */
iso_err iso_train_check(const char *folder, bool json, iso_error *e) ISO_MUST_CHECK;

#endif
