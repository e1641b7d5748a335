/* In the place of cpu.c: a processor with all that is emulated. */
#include <stdlib.h>

#include "trilith.h"

int cpu_has(int isa) { return isa != NEON; }

int cpu_has_vbmi(void) { return !getenv("WITHOUT_VBMI"); }
