/* Which instruction sets this processor and its operating system allow. */
#define _GNU_SOURCE
#include "trilith.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STATE_AVX = 0x6, STATE_AVX512 = 0xe6, STATE_AMX = 0x60000 };

static uint64_t enabled_states(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

/* Linux hands out AMX state on request, once per process. */
static int amx_permitted(void) {
#if defined(__linux__) && defined(HAVE_AMX)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}

int cpu_has(int isa) {
    uint32_t a, b = 0, c = 0, d = 0;
    uint64_t states = enabled_states();
    __get_cpuid_count(7, 0, &a, &b, &c, &d);
    uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F, DQ, BW, VL */
    int avx2 = (states & STATE_AVX) == STATE_AVX && b & 1u << 5;
    int vnni = (states & STATE_AVX512) == STATE_AVX512 && (b & avx512) == avx512 && c & 1u << 11;
    int amx = (states & STATE_AMX) == STATE_AMX && d & 1u << 24 && d & 1u << 25;
    switch (isa) {
        case SCALAR: return 1;
        case AVX2: return avx2;
        case VNNI: return avx2 && vnni;
        case AMX: return avx2 && vnni && amx && amx_permitted();
        default: return 0;
    }
}

static int has_vbmi;

/* Once, since a virtual machine takes long to answer. */
__attribute__((constructor)) static void look_for_vbmi(void) {
    uint32_t a, b, c = 0, d;
    has_vbmi = __get_cpuid_count(7, 0, &a, &b, &c, &d) && c & 1u << 1;
}

int cpu_has_vbmi(void) { return has_vbmi; }
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

enum { HAS_DOTPROD = 1 << 20 }; /* HWCAP_ASIMDDP */

int cpu_has(int isa) {
    return isa == SCALAR || (isa == NEON && getauxval(AT_HWCAP) & HAS_DOTPROD);
}
#elif defined(__aarch64__) && defined(__APPLE__)
/* Every Apple processor that runs this has dotprod. */
int cpu_has(int isa) { return isa == SCALAR || isa == NEON; }
#else
int cpu_has(int isa) { return isa == SCALAR; }
#endif
