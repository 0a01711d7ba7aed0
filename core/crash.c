/* One armed name a process: the one piece of global state in core, set by tests only. */
#include "core/crash.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char armed_name[16];
static long armed_count;

bool iso_crash_arm(const char *name)
{
    armed_name[0] = 0;
    armed_count = 0;
    if (!name)
        return true;
    const char *colon = strchr(name, ':');
    size_t length = colon ? (size_t)(colon - name) : strlen(name);
    if (length == 0 || length >= sizeof armed_name)
        return false;
    long count = 1;
    if (colon) {
        char *end = NULL;
        count = strtol(colon + 1, &end, 10);
        if (end == colon + 1 || *end || count < 1)
            return false;
    }
    memcpy(armed_name, name, length);
    armed_name[length] = 0;
    armed_count = count;
    return true;
}

void iso_crash_point(const char *name)
{
    if (armed_count == 0 || strcmp(name, armed_name) != 0 || --armed_count > 0)
        return;
    kill(getpid(), SIGKILL);
    _exit(137); /* not reached: SIGKILL cannot be blocked */
}
