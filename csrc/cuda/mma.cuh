// The matrix instruction of a warp: the only inline assembly of the CUDA sources (sm_80 and later).
#pragma once

#include "common.cuh"

namespace gancomp::cuda {

// How products are formed: one 32-bit word of an operand holds kPerWord consecutive values of the summed index.
template <typename T>
struct Halves {  // T is Half or Bfloat16
  static constexpr int kPerWord = 2;
  __device__ static uint32_t pack(T first, T second) {
    const T values[2] = {first, second};
    uint32_t word;
    memcpy(&word, values, sizeof(word));
    return word;
  }
  __device__ static uint32_t pack(float first, float second) { return pack(from_float<T>(first), from_float<T>(second)); }
#ifdef GANCOMP_EMULATION
  static float unpack(uint32_t word, int k) {
    T values[2];
    memcpy(values, &word, sizeof(word));
    return to_float(values[k]);
  }
#endif
};

struct Tf32 {
  static constexpr int kPerWord = 1;
  __device__ static uint32_t pack(float value) {
#ifdef GANCOMP_EMULATION
    return emulation::round_to_tf32(value);
  }
  static float unpack(uint32_t word, int) {
    return __uint_as_float(word);
#else
    uint32_t word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
    return word;
#endif
  }
};

struct Exact {  // float32 multiply-adds, no matrix instruction
  static constexpr int kPerWord = 1;
  __device__ static uint32_t pack(float value) { return __float_as_uint(value); }
};

// d += a * b for a of 16 rows x 8 words and b of 8 words x 8 columns, spread over the warp. With g = lane / 4, q = lane % 4:
//   a[0], a[1], a[2], a[3]: (row, word) = (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4)
//   b[0], b[1]: (word, column) = (q, g), (q + 4, g)
//   d[0], d[1], d[2], d[3]: (row, column) = (g, 2 q), (g, 2 q + 1), (g + 8, 2 q), (g + 8, 2 q + 1)
template <typename Compute>
__device__ inline void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef GANCOMP_EMULATION
  emulation::multiply_add<Compute::kPerWord>(d, a, b, [](uint32_t word, int k) { return Compute::unpack(word, k); });
#else
  if constexpr (std::is_same_v<Compute, Halves<Half> >) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (std::is_same_v<Compute, Halves<Bfloat16> >) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<Compute, Tf32>);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace gancomp::cuda
