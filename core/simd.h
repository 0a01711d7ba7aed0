/* One loop, several instruction sets: the compiler emits a version for each and the loader picks
 * one at start. Put ISO_CLONES before a hot function whose loop carries "omp simd"; the result is
 * the same for any number of threads, and may differ in the last bits between processor types. */
#ifndef ISO_CORE_SIMD_H
#define ISO_CORE_SIMD_H

/* Not with clang: up to 15 it gives the resolver a name that other files do not find. */
#if defined(__x86_64__) && defined(ISO_RUNTIME_DISPATCH) && !defined(__clang__)
#define ISO_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ISO_CLONES
#endif

#endif
