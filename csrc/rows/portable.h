// What every row body stands on: attributes for CPU tiers and nvcc, bit casts, 16-bit floats. No torch.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define FASTSAL_ROW __host__ __device__ __forceinline__
#define FASTSAL_LAMBDA
#elif defined(__GNUC__)
// Always inlined, so that the body is compiled with the instruction set of the tier that calls it.
#define FASTSAL_ROW inline __attribute__((always_inline))
#define FASTSAL_LAMBDA __attribute__((always_inline))
#else
#define FASTSAL_ROW __forceinline
#define FASTSAL_LAMBDA
#endif

namespace fastsal {

template <class To, class From>
FASTSAL_ROW To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
#if defined(__GNUC__) && !defined(__CUDACC__)
  return __builtin_bit_cast(To, from);
#else
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
#endif
}

template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Int = int32_t;
  using Unsigned = uint32_t;
};
template <>
struct Bits<double> {
  using Int = int64_t;
  using Unsigned = uint64_t;
};

// As constants of a class, so that device code may use them: nvcc lets it call no function of the standard library.
template <class T>
struct Limits {
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  static constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  static constexpr T largest = std::numeric_limits<T>::max();
  static constexpr T smallest = std::numeric_limits<T>::denorm_min();
};

// 16-bit floats as they lie in memory; arithmetic happens in float.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

FASTSAL_ROW float value(float v) { return v; }
FASTSAL_ROW double value(double v) { return v; }
FASTSAL_ROW float value(bfloat16 v) { return bits_of<float>(uint32_t(v.bits) << 16); }
FASTSAL_ROW float value(float16 v) {
  // Exponent and mantissa move into place, then 2^112 corrects the bias; subnormals come out right by themselves.
  const uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
  const uint32_t finite = bits_of<uint32_t>(bits_of<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16;
  return bits_of<float>(sign | ((v.bits & 0x7c00) == 0x7c00 ? special : finite));
}

// Round to nearest even into the type of `out`.
FASTSAL_ROW void store(float* out, float v) { *out = v; }
FASTSAL_ROW void store(double* out, double v) { *out = v; }
FASTSAL_ROW void store(bfloat16* out, float v) {
  const uint32_t bits = bits_of<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out->bits = uint16_t(v == v ? rounded : (bits >> 16) | 0x40);
}
FASTSAL_ROW void store(float16* out, float v) {
  const uint32_t bits = bits_of<uint32_t>(v);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // normal: rebias and round to nearest even; subnormal: let the addition of 0.5 shift and round
  const uint32_t normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t subnormal = bits_of<uint32_t>(bits_of<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;                    // overflow to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;                           // NaN stays NaN
  out->bits = uint16_t(sign | half);
}

template <class T>
FASTSAL_ROW bool is_finite(T v) {
  return v - v == T(0);
}

}  // namespace fastsal
