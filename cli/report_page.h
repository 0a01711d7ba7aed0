/* The page of a federation: what it learnt, how, and what travelled. */
#ifndef ISO_CLI_REPORT_PAGE_H
#define ISO_CLI_REPORT_PAGE_H

#include "cli/report_data.h"
#include "core/report.h"

/* `dir` is the coordinator's folder. Spectra come from its blobs, pictures from the sites' folders,
 * both on this machine; what cannot be read is left out, and the page says so. */
iso_err report_write_page(const report_data *d, const char *dir, double seconds, const char *path,
                          iso_error *e) ISO_MUST_CHECK;

/* Sections: singular values of task adapters and release (report_spectra.c), test images with the
 * release's predictions (report_pictures.c). */
iso_err report_add_spectra(iso_report *r, const report_data *d, const char *dir,
                           iso_error *e) ISO_MUST_CHECK;
iso_err report_add_pictures(iso_report *r, const report_data *d, const char *dir,
                            iso_error *e) ISO_MUST_CHECK;

#endif
