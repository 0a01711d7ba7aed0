/* Crash points: named places between two durable steps (specs/security.md 6.3, F1 - F25).
 *
 * A fault test arms one name (the daemons' hidden --crash-at F5, or F5:3 for the third time); the
 * process then kills itself there with SIGKILL, as a power cut would as far as it can tell.
 * Unarmed, a point is one comparison. */
#ifndef ISO_CORE_CRASH_H
#define ISO_CORE_CRASH_H

#include <stdbool.h>

/* "F5" or "F5:3"; NULL disarms. False if the text is neither. Call before threads start. */
bool iso_crash_arm(const char *name);
void iso_crash_point(const char *name);

#endif
